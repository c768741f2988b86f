"""What does a comparison say, in a sentence and in a figure? Made of the pooled rows of `comparison.csv`.

The rows have a column `label`: the ability, with its task where there are several and its metric where two differ.
"""

from typing import TYPE_CHECKING, Any

from eval.display.colours import model_colour
from eval.display.forest import Mark, Panel, draw_forest
from eval.display.formatting import MINUS, change, listed
from eval.statistics.pairing import ABILITY, ACCURACY

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
"""Of a corrected p; below it a difference is called significant."""
METRIC_WORDS = {ACCURACY: "accuracy", ABILITY: "by the paper’s definition"}
BETTER, WORSE, NEITHER = "significantly better", "significantly worse", "no significant difference"
MOST_NAMED = 3
"""Models that a sentence names one by one."""


def is_significant(row: Any) -> bool:
    return bool(row["p_holm"] < LEVEL)


def verdict(row: Any) -> str:
    """Says whether a difference is significant."""
    return "significant" if is_significant(row) else "not significant"


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
        counts = f"of {len(own)} models {kinds.count(BETTER)} are significantly better and {kinds.count(WORSE)} worse"
        said.append(f"{label} (n = {num_prompts(own)}), compared with {against}: {counts}.")
    return said


def changes(rows: "pd.DataFrame", models: str) -> str:
    """Says on which abilities one model is significantly better or worse than another, or neither."""
    accuracy, defined = rows[rows["metric"] == ACCURACY], rows[rows["metric"] == ABILITY]
    kinds: dict[str, list[str]] = {}
    for _, row in accuracy.iterrows():
        kinds.setdefault(kind(row), []).append(f"{row_ability(row)} ({row_change(row)})")
    parts = [f"{name} on {listed(kinds[name])}" for name in (BETTER, WORSE, NEITHER) if name in kinds]
    sentence = f"{models}: {'; '.join(parts)}; n = {num_prompts(accuracy)}."
    before = {(row["task"], row["ability"]): kind(row) for _, row in accuracy.iterrows()}
    differing = [
        f"{row_change(row)} on {row_ability(row)} ({verdict(row)})"
        for _, row in defined.iterrows()
        if kind(row) != before.get((row["task"], row["ability"]))
    ]
    return f"{sentence} By the paper’s definition of the abilities: {listed(differing)}." if differing else sentence


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
    )
