"""How much of RL's gain does each arm keep, and so which change was necessary? The sentences of a necessity study.

The share kept is (arm − sft) / (full − sft). It is given only where the interval of full − sft lies above zero.
An arm that keeps more than half of the gain, by its whole interval, did not need what it froze for most of the gain.
"""

from typing import TYPE_CHECKING, Any

from analyze.report.parts import corrected
from analyze.report.start import BASE
from analyze.report.study import NecessityStudy
from eval.compare.sentences import LEVEL
from eval.display.formatting import MINUS, change, listed, percent, points, probability

if TYPE_CHECKING:
    import pandas as pd

ACCURACY = "accuracy"
START, FULL = "sft", "full"
NOT_ARMS = (FULL, BASE)
"""Models of a comparison that keep no share of a gain: the gain is full's, and base comes before SFT."""
CONTROLS = ("only-", "freeze-random")
"""Arms that freeze more than one block, or layers drawn at random: they do not judge a block."""
MOST = 0.5


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
        return f"Not answered: there is no comparison of an arm {FULL} with {START}, so RL’s gain is unknown."
    gained = {ability: own for ability, own in rows.items() if own["gain_kept"].notna()[FULL]}
    if not gained:
        found = [f"{ability} {_full(own)}" for ability, own in rows.items()]
        return (
            f"Undecided: {FULL} has no certain gain over {START} on any ability ({'; '.join(found)}), so it "
            "cannot be seen whether freezing a block costs any."
        )
    return " ".join(_judge(ability, own) for ability, own in gained.items())


def _full(own: "pd.DataFrame") -> str:
    row: Any = own.loc[FULL]
    return f"{change(row['difference'], row['low'], row['high'])}, n = {int(row['n'])}"


def _judge(ability: str, own: "pd.DataFrame") -> str:
    arms = own.drop(index=[name for name in NOT_ARMS if name in own.index])
    arms = arms[arms["gain_kept"].notna()]
    gain = f"RL’s gain on {ability} ({FULL} {MINUS} {START}: {_full(own)})"
    if arms.empty:
        return f"Undecided: no arm with frozen layers was compared, so it is unknown what is left of {gain}."
    is_control = arms.index.astype(str).str.startswith(CONTROLS)
    judged = arms if is_control.all() else arms[~is_control]
    lost = list(judged.index[judged["gain_kept_high"] < MOST])
    unclear = list(judged.index[(judged["gain_kept_low"] <= MOST) & (judged["gain_kept_high"] >= MOST)])
    partly = list(judged.index[(judged["gain_kept_low"] > MOST) & (judged["gain_kept_high"] < 1)])
    every = judged.index[0] if len(judged) == 1 else f"each of {listed(list(judged.index))}"
    if lost:
        head = f"Yes: {listed(lost)} {_verb(lost)} less than half of {gain}"
    elif unclear:
        head = f"Undecided: the intervals of {listed(unclear)} allow more and less than half of {gain}"
    elif partly:
        head = f"In part: {every} keeps more than half of {gain}, but {listed(partly)} less than all of it"
    else:
        head = f"No: {every} keeps more than half of {gain}, and none is shown to lose any of it"
    return f"{head}. Kept: {'; '.join(f'{arm} {gain_kept(row)}' for arm, row in arms.iterrows())}."


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
                "significant": bool(row["p_holm"] < LEVEL),
                "tokens": f"{means['mean_tokens'][START]:.1f} → {means['mean_tokens'][FULL]:.1f}",
                "kept": {str(arm): gain_kept(each) or "–" for arm, each in own.iterrows() if arm not in NOT_ARMS},
            }
        )
    return found


def _verdict(row: Any) -> str:
    if row["p_holm"] >= LEVEL:
        return "not significant"
    return "gain" if row["difference"] > 0 else "loss"


def beside_full(study: NecessityStudy) -> list[str]:
    """Returns a sentence per ability: which arms differ significantly from full RL."""
    sentences = []
    for ability in study.abilities:
        own = study.pooled(ability, ACCURACY, FULL)
        own = own[~own["arm"].isin([BASE, START]) & (own["n"] > 0)]
        if own.empty:
            continue
        beyond = own[own["p_holm"] < LEVEL]
        said = [
            f"{row['arm']} {MINUS} {FULL} is {change(row['difference'], row['low'], row['high'])}, "
            f"{corrected(row['p_holm'])}"
            for _, row in beyond.iterrows()
        ]
        largest = own["detectable"].max()
        detectable = f"; a difference of {points(largest, sign=False)} points would be found four times in five"
        nothing = f"no arm differs significantly from {FULL}{detectable if largest == largest else ''}"
        sentences.append(f"{ability} (n = {int(own['n'].max())}): {listed(said) or nothing}.")
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
