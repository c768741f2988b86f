"""What can the models do, and by how much do they differ? Parts drawn from the tables of `eval.compare`.

Splices are made of one training run. Where another comparison has more runs of the same arm, `same.py` finds it, and
the part says so beside its numbers.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analyze.report.inputs import Output
from analyze.report.parts import Figure, Part, Table, corrected, model_name, share
from analyze.report.same import Shared, shared_start
from analyze.report.start import BASE, weaker_start
from eval.claims.published import HYBRIDS
from eval.compare.scope import ABOUT, LEVEL, about, covers, is_significant, read_comparison, row_about, runs, verdict
from eval.compare.sentences import answers as sentences
from eval.compare.sentences import (
    describe_figure,
    draw_differences,
    num_prompts,
    row_ability,
    row_change,
    with_labels,
)
from eval.display.formatting import MINUS, NOTHING, interval, listed, percent, points, probability
from eval.statistics.differences import POOLED
from eval.statistics.pairing import ABILITY, ACCURACY
from eval.statistics.pooled import CHECKPOINTS
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

UNDEFINED = float("nan")


def has_splices(output: Output) -> bool:
    """True for a comparison that contains splices of two models."""
    return bool(set(read_table(output.directory / "comparison.csv")["arm"]) & set(HYBRIDS))


def ability_part(outputs: Sequence[Output]) -> Part:
    """What models can do, compared with the model that they started from."""
    return _comparison_part(
        outputs,
        {},
        title="Change in abilities",
        what="Every model answers the same held-out prompts greedily. Accuracy is the share of right answers. The "
        "paper defines two abilities differently: vision is right with the picture and wrong with a black one, "
        "vision-to-reasoning is right with the picture and right with a description of it (Eqs. 4 to 6).",
    )


def splice_part(outputs: Sequence[Output], compared: Sequence[Output] = ()) -> Part:
    """What splices of two models can do.

    Args:
        compared: comparisons of trained models on the same page.
    """
    return _comparison_part(
        outputs,
        {output.name: shared for output in outputs if (shared := shared_start(output, compared)) is not None},
        title="Splices",
        what="A splice combines decoder blocks of the model before RL (in, the paper’s IN) and of one model after RL "
        "(rl), without further training: in-rl-rl has the early layers of in and the mid and late layers of rl. Where "
        "a splice gains over in, rl’s layers carried the gain with them. Gain kept is the splice’s gain as a share of "
        "rl’s own; it is given only where the interval of rl’s gain lies above zero.",
        limits=(
            "One training run gave rl. The intervals cover new prompts, not another training run.",
            "All parts outside the decoder (vision tower, embeddings, norm and head) come from one donor; what "
            "training changed there is not tested.",
            "A splice may lose because its parts do not fit together, even where they carry what was learned.",
        ),
    )


def _comparison_part(
    outputs: Sequence[Output], shared: Mapping[str, Shared], *, title: str, what: str, limits: Sequence[str] = ()
) -> Part:
    findings, answers, rows, figures, score_rows, warnings = [], [], [], [], [], []
    scopes: list[str] = []
    answered: list[str] = []
    for output in outputs:
        directory = output.directory
        comparison, scores = read_comparison(directory / "comparison.csv"), read_table(directory / "scores.csv")
        baseline, reference = output.settings["baseline"], output.settings.get("reference")
        chosen = with_labels(comparison[comparison["seed"].astype(str) == POOLED])
        if output.name in shared:
            chosen = shared[output.name].quoted_in(chosen)
        scopes += list(chosen["scope"])
        against = chosen[chosen["against"] == baseline]
        told = _told(against, reference)
        answered += list(told["scope"])
        answers.append(_answer(told, baseline, reference))
        if output.name in shared:
            answers.append(shared[output.name].short)
        warnings.append(weaker_start(chosen, baseline, reference))
        findings += [
            _finding(str(label), own.set_index("arm"), baseline, reference)
            for label, own in against.groupby("label", sort=False)
        ]
        rows += [_difference_row(row, reference) for _, row in chosen.iterrows()]
        score_rows += _score_rows(scores)
        figures += [
            Figure(drawing=draw_differences(own, baseline), caption=describe_figure(own, baseline))
            for _, own in against.groupby("metric", sort=False)
            if len(own)
        ]
    return Part(
        title=title,
        answer=" ".join(filter(None, answers)),
        about=about(scopes),
        answer_about=about(answered),
        note=" ".join(each.sentence for each in shared.values()),
        warning=" ".join(filter(None, warnings)),
        what=what,
        findings=findings,
        figures=figures,
        tables=[
            Table(
                caption="What each model can do: percent right with Wilson’s interval over new prompts, the share of "
                "well-formed answers, and the mean number of tokens in a reply.",
                columns=("model", "ability", "n", "accuracy", "ability score", "well-formed", "tokens"),
                rows=score_rows,
                num_words=2,
                about=ABOUT[CHECKPOINTS],
            ),
            Table(
                caption=f"Differences, paired on the same prompts, with 95 % intervals over {covers(scopes)}; p "
                "corrected for all tests of one metric (Holm). Detectable: the smallest difference that would be found "
                "four times in five, before correction.",
                columns=("ability", "metric", "models", "about", "n", "difference", "95 % interval", "p, corrected",
                         "detectable", "gain kept", "verdict"),
                rows=rows,
                num_words=4,
            ),
        ],
        limits=limits or ("Greedy answers to prompts of one source; other kinds of tasks may give other results.",),
    )  # fmt: skip


def _told(against: "pd.DataFrame", reference: str | None) -> "pd.DataFrame":
    """Returns the rows that the answer speaks of: of splices all, else those of the reference."""
    others = against[against["arm"] != BASE]
    has_reference = reference in set(others["arm"]) and not set(others["arm"]) & set(HYBRIDS)
    return others[others["arm"] == reference] if has_reference else others


def _answer(rows: "pd.DataFrame", baseline: str, reference: str | None) -> str:
    """Says in a sentence what the comparison found: of splices whether a gain transfers."""
    if not set(rows["arm"]) & set(HYBRIDS):
        return " ".join(sentences(rows, baseline))
    own = rows[(rows["arm"] == reference) & (rows["metric"] == ABILITY)]
    said = [f"{row_change(row)} on {row_ability(row)} ({verdict(row)})" for _, row in own.iterrows()]
    defined = f" By the paper’s definition, {reference} {MINUS} {baseline} is {listed(said)}." if said else ""
    return _transfer(rows[rows["metric"] == ACCURACY], baseline, reference) + defined


def _transfer(rows: "pd.DataFrame", baseline: str, reference: str | None) -> str:
    """Says how many splices gain where the model after RL gains."""
    own = rows[rows["arm"] == reference]
    if own.empty:
        return (
            f"Undecided, in this run: the model after RL was not compared with {baseline}, so it is unknown what there "
            "is to transfer."
        )
    gained = own[(own["p_holm"] < LEVEL) & (own["difference"] > 0)]
    found = [f"{row_ability(row)} {row_change(row)}, {verdict(row)}" for _, row in own.iterrows()]
    if gained.empty:
        return (
            f"Undecided, {runs(own.iloc[0])}: {reference} has no significant gain over {baseline} on any ability "
            f"({'; '.join(found)}; n = {num_prompts(own)}), so it cannot be seen whether a gain transfers."
        )
    return " ".join(_transferred(row, rows[rows["label"] == row["label"]], baseline) for _, row in gained.iterrows())


def _transferred(gain: Any, rows: "pd.DataFrame", baseline: str) -> str:
    splices = rows[rows["arm"].isin(HYBRIDS)]
    above = splices[(splices["p_holm"] < LEVEL) & (splices["difference"] > 0)].sort_values("difference")
    head = "Not shown" if above.empty else "Yes" if len(above) == len(splices) else "In part"
    ends = [above.iloc[end] for end in ([0, -1] if len(above) > 1 else [0] if len(above) else [])]
    said = " to ".join(f"{row['arm']} {row_change(row)}" for row in ends)
    return (
        f"{head}, {runs(gain)}: {gain['arm']} gains {row_change(gain)} on {row_ability(gain)} over {baseline} (n = "
        f"{int(gain['n'])}), and {len(above)} of {len(splices)} splices that put its layers into {baseline} also gain "
        f"significantly{f' ({said})' if said else ''}."
    )


def _finding(ability: str, own: "pd.DataFrame", baseline: str, reference: str | None) -> str:
    """Says all differences of an ability from the baseline."""
    parts = []
    if reference in own.index:
        row = own.loc[reference]
        parts.append(f"{reference} {MINUS} {baseline} {runs(row)} is {_difference_words(row)}")
    others = own.drop(index=[name for name in (reference, BASE) if name in own.index])
    beyond = others[[is_significant(row) for _, row in others.iterrows()]]
    if len(others):
        words = {runs(row) for _, row in others.iterrows()}
        which = f" {words.pop()}" if len(words) == 1 else ""
        said = f"{_counted(len(beyond), others)}{which} differ significantly from {baseline}"
        largest = others["detectable"].max()
        named = [f"{arm} {row_change(row)}" for arm, row in beyond.iterrows()]
        if named:
            said += f": {listed(named)}"
        elif largest == largest:
            said += f" (a difference of {points(largest, sign=False)} points would be found four times in five)"
        parts.append(said)
    if BASE in own.index and reference != BASE:
        row = own.loc[BASE]
        parts.append(f"base {MINUS} {baseline} {runs(row)} is {_difference_words(row)}")
    return f"{ability} (n = {int(own['n'].max())}): {'; '.join(parts)}."


def _counted(number: int, others: "pd.DataFrame") -> str:
    arms = set(others.get("arm", others.index))
    what = "splices" if arms <= set(HYBRIDS) else "models"
    return f"{number or 'none'} of {len(others)} {'other ' if what == 'models' else ''}{what}"


def _difference_words(row: Any) -> str:
    """Says a difference with its interval, its p, and whether it is significant."""
    return f"{row_change(row)}, {corrected(row['p_holm'])}, {verdict(row)}"


def _difference_row(row: Any, reference: str | None) -> list[str]:
    return [
        row["ability"], row["metric"], f"{row['arm']} {MINUS} {row['against']}", row_about(row), str(int(row["n"])),
        points(row["difference"]), interval(row["low"], row["high"]), probability(row["p_holm"]),
        points(row["detectable"], sign=False), "" if row["arm"] in (reference, BASE) else _kept(row), verdict(row),
    ]  # fmt: skip


def _kept(row: Any) -> str:
    kept = row.get("gain_kept", UNDEFINED)
    if kept != kept:
        return ""
    low, high = (f"{100 * row[f'gain_kept_{end}']:.0f}" for end in ("low", "high"))
    return f"{100 * kept:.0f} % [{low}, {high}]".replace("-", MINUS)


def _score_rows(scores: "pd.DataFrame") -> list[list[str]]:
    rows = []
    for _, row in scores.iterrows():
        rows.append([
            model_name(str(row["model"]), row["seed"]), str(row["ability"]), str(int(row["n"])),
            share(row["accuracy"], row["low"], row["high"]),
            share(row["ability_score"], row["ability_low"], row["ability_high"])
            if row["ability_score"] == row["ability_score"] else NOTHING,
            percent(row["well_formed_frac"]), f"{row['mean_tokens']:.1f}",
        ])  # fmt: skip
    return rows
