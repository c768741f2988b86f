"""What does a comparison say, in a sentence and in a figure? Made of the pooled rows of `comparison.csv`.

The rows have a column `label`: the ability, with its task where there are several and its metric where two differ.
`eval/compare/scope.py` has the words for what a row is about and whether it is significant.
"""

from typing import TYPE_CHECKING, Any

from eval.compare.scope import counted_tests, covers, is_significant, runs, verdict
from eval.display.colours import model_colour
from eval.display.forest import Mark, Panel, draw_forest
from eval.display.formatting import MINUS, change, listed, points
from eval.statistics.pairing import ABILITY, ACCURACY
from eval.statistics.pooled import TRAINING

if TYPE_CHECKING:
    import pandas as pd

METRIC_WORDS = {ACCURACY: "accuracy", ABILITY: "by the paper’s definition"}
BETTER, WORSE, NEITHER = "significantly better", "significantly worse", "no significant difference"
MOST_NAMED = 3
"""Models that a sentence names one by one."""


def row_change(row: Any) -> str:
    """Formats a row's difference with its interval."""
    return change(row["difference"], row["low"], row["high"])


def row_ability(row: Any) -> str:
    """Returns a row's ability, with its task where there are several, without its metric."""
    return str(row["label"]).removesuffix(f", {METRIC_WORDS[row['metric']]}")


def num_prompts(rows: "pd.DataFrame") -> str:
    """Formats the number of prompts: `500`, or `400 to 500` where abilities differ in it."""
    numbers = sorted(set(rows["n"].astype(int)))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def with_labels(pooled: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows of accuracy, and of the paper's definition where that differs, with a label each."""
    import pandas as pd

    kept = []
    several_tasks = pooled["task"].nunique() > 1
    for (task, ability), own in pooled[pooled["n"] > 0].groupby(["task", "ability"], sort=False):
        name = f"{ability} ({task})" if several_tasks else str(ability)
        accuracy, defined = own[own["metric"] == ACCURACY], own[own["metric"] == ABILITY]
        if list(defined["difference"]) in ([], list(accuracy["difference"])):
            kept.append(accuracy.assign(label=name))
        else:
            kept += [rows.assign(label=f"{name}, {METRIC_WORDS[metric]}")
                     for metric, rows in ((ACCURACY, accuracy), (ABILITY, defined))]  # fmt: skip
    return pd.concat(kept) if kept else pooled.iloc[:0].assign(label="")


def answers(rows: "pd.DataFrame", against: str) -> list[str]:
    """Says what was found of models compared with one: a sentence a model where there are few, else one an ability.

    Args:
        rows: of comparisons with that model, with labels.
    """
    arms = list(dict.fromkeys(rows["arm"]))
    if len(arms) <= MOST_NAMED:
        return [changes(rows[rows["arm"] == arm], f"{arm} {MINUS} {against}") for arm in arms]
    said = []
    for label, own in rows.groupby("label", sort=False):
        kinds = [kind(row) for _, row in own.iterrows()]
        counts = f"{kinds.count(BETTER)} are significantly better and {kinds.count(WORSE)} worse"
        said.append(f"{label} (n = {num_prompts(own)}), compared with {against}: of {_models(own)} {counts}.")
    return said


def _models(rows: "pd.DataFrame") -> str:
    """Counts models by what their rows are about: `4 models (3 over 2 training seeds, 1 in this run)`."""
    counts: dict[str, int] = {}
    for _, row in rows.iterrows():
        counts[runs(row)] = counts.get(runs(row), 0) + 1
    parts = [f"{number} {words}" if len(counts) > 1 else words for words, number in counts.items()]
    return f"{len(rows)} models ({', '.join(parts)})"


def changes(rows: "pd.DataFrame", models: str) -> str:
    """Says on which abilities one model is significantly better or worse than another, or neither.

    Abilities for which the paper's definition gives other numbers than the accuracy are given by both.
    """
    accuracy, defined = rows[rows["metric"] == ACCURACY], rows[rows["metric"] == ABILITY]
    kinds: dict[str, list[str]] = {}
    for _, row in accuracy.iterrows():
        kinds.setdefault(kind(row), []).append(f"{row_ability(row)} ({_noted(row)})")
    parts = [f"{name} on {listed(kinds[name])}" for name in (BETTER, WORSE, NEITHER) if name in kinds]
    sentence = f"{models} {runs(rows.iloc[0])}: {'; '.join(parts)}; n = {num_prompts(accuracy)}."
    if defined.empty:
        return sentence
    said = [f"{row_change(row)} on {row_ability(row)} ({verdict(row)})" for _, row in defined.iterrows()]
    return f"{sentence} By the paper’s definition of the abilities: {listed(said)}."


def _noted(row: Any) -> str:
    """Formats a row's difference; if it is not significant although its interval excludes zero, says why."""
    said = verdict(row)
    return row_change(row) if said in ("significant", "not significant") else f"{row_change(row)}, {said}"


def could_find(rows: "pd.DataFrame", against: str) -> str:
    """Says which differences in accuracy from one model this many seeds and prompts could have shown.

    Args:
        rows: of comparisons with that model.
    """
    own = rows[(rows["metric"] == ACCURACY) & (rows["detectable"] > 0)]
    own = own[own["scope"] == TRAINING] if (own["scope"] == TRAINING).any() else own
    if own.empty:
        return ""
    low, high = (points(end, sign=False) for end in (own["detectable"].min(), own["detectable"].max()))
    span = f"{low} points" if low == high else f"{low} to {high} points (it depends on model and ability)"
    sizes = sorted({int(size) for size in own[["num_seeds", "num_seeds_against"]].max(axis=1)})
    seeds = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    trained = own.iloc[0]["scope"] == TRAINING
    data = f"{seeds} training seeds a model" if trained else "one run a model"
    which = "a true difference" if trained else "a true difference of these checkpoints"
    return (
        f"With {data} and {num_prompts(own)} prompts an ability, {which} from {against} of at least {span} is found "
        "four times in five, before correction for the number of tests."
    )


def kind(row: Any) -> str:
    """Says whether a model is significantly better, significantly worse, or neither."""
    if not is_significant(row):
        return NEITHER
    return BETTER if row["difference"] > 0 else WORSE


def draw_differences(rows: "pd.DataFrame", against: str) -> str:
    """Draws the differences of one metric from one model as an SVG element: a panel a label, a row a model."""
    arms = list(dict.fromkeys(rows["arm"]))
    panels = [
        Panel(title=row_ability(group.iloc[0]), rows={row["arm"]: [_mark(row, arms)] for _, row in group.iterrows()})
        for _, group in rows.groupby("label", sort=False)
    ]
    words = METRIC_WORDS[rows.iloc[0]["metric"]].capitalize()
    alt = f"{words}: difference of each model from {against}"
    return draw_forest(panels, label=f"model {MINUS} {against}, points", alt=alt)


def _mark(row: Any, arms: list[str]) -> Mark:
    return Mark(
        value=row["difference"],
        low=row["low"],
        high=row["high"],
        filled=is_significant(row),
        colour=model_colour(row["arm"], arms),
        corrected=(row["low_holm"], row["high_holm"]),
    )


def describe_figure(rows: "pd.DataFrame", against: str) -> str:
    """Returns the caption of `draw_differences`."""
    return (
        f"{METRIC_WORDS[rows.iloc[0]['metric']].capitalize()}: each model minus {against} on the same prompts, with "
        f"95 % intervals over {covers(rows['scope'])}. Thin lines: the same intervals corrected for "
        f"{counted_tests(rows['num_tests'].max())}, cut off at the edge of a panel; marks are filled if they exclude "
        "zero, which is significant, and hollow if not."
    )
