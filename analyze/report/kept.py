"""How much of the gain does each arm keep, and so which change was necessary? The sentences of a necessity study.

The share kept is (arm − sft) / (full − sft), with Fieller's interval. It is judged only if full − sft is a significant
gain. Two margins, which the page names, decide what is said of an arm:

    kept most      the interval lies above one half: what the arm froze was not necessary for most of the gain
    lost most      the interval lies below one half: it was necessary for most of the gain
    undecided      the interval includes one half
    equal to full  two one-sided tests at 5 % show that arm and full differ by less than five points

That no difference from full was found shows neither of them.
"""

from typing import TYPE_CHECKING, Any

from analyze.report.parts import corrected
from analyze.report.start import BASE
from analyze.report.study import NecessityStudy
from eval.compare.scope import IN_THIS_RUN, MARGIN, equality, is_significant, num_seeds, runs, verdict
from eval.compare.sentences import METRIC_WORDS, row_change
from eval.display.formatting import MINUS, change, listed, percent, points, probability
from eval.statistics.pairing import ABILITY, ACCURACY
from eval.statistics.pooled import TRAINING

if TYPE_CHECKING:
    import pandas as pd

START, FULL = "sft", "full"
NOT_ARMS = (FULL, BASE)
"""Models of a comparison that keep no share of a gain: the gain is full's, and base comes before SFT."""
CONTROLS = ("only-", "freeze-random")
"""Arms that freeze more than one block, or layers drawn at random: they do not judge a block."""
MOST = 0.5
MOST_NAMED = 8
"""Arms that a sentence names at most; of more, as in a layer sweep, it gives the number and the extremes."""
MARGINS = (
    f"Margins: an arm keeps most of the gain if the 95 % interval of the share that it keeps lies above "
    f"{100 * MOST:.0f} %; it equals full if two one-sided tests at 5 % show a difference below {100 * MARGIN:.0f} "
    "points. Neither follows from the absence of a significant difference. The intervals are not corrected for the "
    "number of arms."
)


def gain_kept(row: Any) -> str:
    """Formats the share of the gain that a comparison row keeps: `85 % [60, 110]`; empty where none is given."""
    if row["gain_kept"] != row["gain_kept"]:
        return ""
    kept, low, high = (f"{100 * row[name]:.0f}" for name in ("gain_kept", "gain_kept_low", "gain_kept_high"))
    return f"{kept} % [{low}, {high}]".replace("-", MINUS)


def answer(study: NecessityStudy) -> str:
    """Answers in a sentence per gain whether the frozen blocks were necessary for it, or says why it cannot."""
    rows = {ability: study.pooled(ability, ACCURACY, START).set_index("arm") for ability in study.abilities}
    rows = {ability: own for ability, own in rows.items() if FULL in own.index}
    if not rows:
        return f"Not answered: there is no comparison of an arm {FULL} with {START}, so its gain is unknown."
    gained = {ability: own for ability, own in rows.items() if _has_gained(own.loc[FULL])}
    if not gained:
        found = [f"{ability} {_full(own)}, {verdict(own.loc[FULL])}" for ability, own in rows.items()]
        where = f", {IN_THIS_RUN}" if next(iter(rows.values())).loc[FULL, "scope"] != TRAINING else ""
        return (
            f"Undecided{where}: {FULL} has no significant gain over {START} on any ability ({'; '.join(found)}), so it "
            "cannot be seen whether freezing a block costs any."
        )
    return " ".join(_judge(ability, own) + _defined(study, ability) for ability, own in gained.items())


def _has_gained(row: Any) -> bool:
    return bool(is_significant(row) and row["difference"] > 0 and row["gain_kept"] == row["gain_kept"])


def _full(own: "pd.DataFrame") -> str:
    row: Any = own.loc[FULL]
    return f"{row_change(row)}, n = {int(row['n'])}"


def _defined(study: NecessityStudy, ability: str) -> str:
    """Gives the gain by the paper's definition of the ability, where that was measured and has another number."""
    own = study.pooled(ability, ABILITY, START).set_index("arm")
    if FULL not in own.index or own.loc[FULL, "n"] == 0:
        return ""
    row: Any = own.loc[FULL]
    if row["difference"] == study.pooled(ability, ACCURACY, START).set_index("arm").loc[FULL, "difference"]:
        return ""
    definition = METRIC_WORDS[ABILITY].capitalize()
    return f" {definition} of {ability}, {FULL} {MINUS} {START} is {row_change(row)}, {verdict(row)}."


def _judge(ability: str, own: "pd.DataFrame") -> str:
    arms = own.drop(index=[name for name in NOT_ARMS if name in own.index])
    arms = arms[arms["gain_kept"].notna()]
    row: Any = own.loc[FULL]
    where = "" if row["scope"] == TRAINING else f", {IN_THIS_RUN}"
    seeds = f", {num_seeds(row)} training seeds" if row["scope"] == TRAINING else ""
    gain = f"the gain in accuracy on {ability} ({FULL} {MINUS} {START}: {_full(own)}{seeds})"
    if arms.empty:
        return f"Undecided{where}: no arm with frozen layers was compared, so it is unknown what is left of {gain}."
    is_control = arms.index.astype(str).str.startswith(CONTROLS)
    judged = arms if is_control.all() else arms[~is_control]
    lost = list(judged.index[judged["gain_kept_high"] < MOST])
    kept = list(judged.index[judged["gain_kept_low"] > MOST])
    unclear = [arm for arm in judged.index if arm not in (*lost, *kept)]
    partly = [arm for arm in kept if judged.loc[arm, "gain_kept_high"] < 1]
    if lost:
        head = f"Yes{where}: {_named(lost)} {_verb(lost)} less than half of {gain}"
    elif unclear:
        head = f"Undecided{where}: the intervals of {_named(unclear)} allow more and less than half of {gain}"
    else:
        every = kept[0] if len(kept) == 1 else f"each of {_named(kept)}"
        short = "In part" if partly else "No, not for most of it"
        head = f"{short}{where}: {every} keeps more than half of {gain}"
        head += f", but {_named(partly)} less than all of it" if partly else ""
    return f"{head}. Kept, with 95 % intervals: {_shares(arms)}."


def _named(arms: list[Any]) -> str:
    if len(arms) <= MOST_NAMED:
        return listed(arms)
    return f"{len(arms)} arms ({', '.join(map(str, arms[:2]))}, …, {arms[-1]})"


def _shares(arms: "pd.DataFrame") -> str:
    """Lists the share that each arm keeps; of many arms, the least and the most."""
    if len(arms) <= MOST_NAMED:
        return "; ".join(f"{arm} {gain_kept(row)}" for arm, row in arms.iterrows())
    is_control = arms.index.astype(str).str.startswith(CONTROLS)
    said = []
    for words, own in (("frozen blocks", arms[~is_control]), ("controls", arms[is_control])):
        if not own.empty:
            ordered = own.sort_values("gain_kept")
            least, most = ordered.iloc[0], ordered.iloc[-1]
            said.append(f"{len(own)} {words} from {gain_kept(least)} ({least.name}) to {gain_kept(most)} ({most.name})")
    return f"{'; '.join(said)}. The figure below shows all"


def _verb(arms: list[Any]) -> str:
    return "keeps" if len(arms) == 1 else "keep"


def gain_rows(study: NecessityStudy) -> list[dict[str, Any]]:
    """Returns a row per ability: what SFT and full RL reach, the difference, and what each arm keeps of a gain."""
    if study.scores.empty or START not in set(study.scores["model"]):
        return []
    scores = study.scores[study.scores["task"] == study.scores["task"].iloc[0]]
    found = []
    for ability in study.abilities:
        own = study.pooled(ability, ACCURACY, START).set_index("arm")
        if FULL not in own.index:
            continue
        row: Any = own.loc[FULL]
        means = scores[scores["ability"] == ability].groupby("model")[["accuracy", "mean_tokens"]].mean()
        found.append(
            {
                "ability": ability,
                "n": int(row["n"]),
                "start": percent(means["accuracy"][START]),
                "full": percent(means["accuracy"][FULL]),
                "change": change(row["difference"], row["low"], row["high"]),
                "p_holm": probability(row["p_holm"]),
                "verdict": _verdict(row),
                "significant": is_significant(row),
                "about": runs(row),
                "tokens": f"{means['mean_tokens'][START]:.1f} → {means['mean_tokens'][FULL]:.1f}",
                "kept": {str(arm): gain_kept(each) or "–" for arm, each in own.iterrows() if arm not in NOT_ARMS},
            }
        )
    return found


def _verdict(row: Any) -> str:
    if not is_significant(row):
        return verdict(row)
    return "gain" if row["difference"] > 0 else "loss"


def beside_full(study: NecessityStudy) -> list[str]:
    """Returns a sentence per ability: which arms differ significantly from full, and which are shown to equal it."""
    sentences = []
    for ability in study.abilities:
        own = study.pooled(ability, ACCURACY, FULL)
        own = own[~own["arm"].isin([BASE, START]) & (own["n"] > 0)]
        if own.empty:
            continue
        beyond = own[[is_significant(row) for _, row in own.iterrows()]]
        said = [
            f"{row['arm']} {MINUS} {FULL} is {change(row['difference'], row['low'], row['high'])}, "
            f"{corrected(row['p_holm'])}"
            for _, row in beyond.iterrows()
        ]
        largest = own["detectable"].max()
        detectable = f" (a difference of {points(largest, sign=False)} points would be found four times in five)"
        nothing = f"no significant difference from {FULL} was found{detectable if largest == largest else ''}"
        equal: dict[str, list[str]] = {}
        for _, row in own.drop(index=beyond.index).iterrows():
            equal.setdefault(equality(row), []).append(str(row["arm"]))
        shown = [f"{listed(arms)}: {words}" for words, arms in equal.items()]
        sentences.append(
            f"{ability} (n = {int(own['n'].max())}, {runs(own.iloc[0])}): "
            f"{'; '.join([listed(said) or nothing, *shown])}."
        )
    return sentences


def proof_sentence(rows: list[dict[str, Any]]) -> str:
    """Says in a sentence what the proofs of freezing show."""
    num_frozen, num_breaches = sum(row["frozen"] for row in rows), sum(row["breaches"] for row in rows)
    runs = f"{len(rows)} training run{'s' if len(rows) > 1 else ''}"
    if num_breaches:
        return f"BREACH: {num_breaches} of the frozen tensors of {runs} differ from the start in a saved checkpoint."
    if not num_frozen:
        return f"No tensor was frozen in {runs}."
    return f"All {num_frozen} frozen tensors of {runs} have the same bits in every saved checkpoint as at the start."
