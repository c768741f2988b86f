"""How good is the model that RL starts from? Its accuracy beside base and RL, and whether it is weaker than base."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyze.report.parts import Figure
from eval.claims.published import BRIDGE, REASONING, VISION
from eval.compare.scope import is_significant, runs, verdict
from eval.display.colours import model_colour
from eval.display.forest import Mark, Panel, draw_forest
from eval.display.formatting import MINUS, change, listed

if TYPE_CHECKING:
    import pandas as pd

BASE = "base"
ABILITIES = (VISION, BRIDGE, REASONING)


def weaker_start(comparison: "pd.DataFrame", baseline: str, reference: str | None) -> str:
    """Says on which abilities the start lies below base by more than its interval; empty where on none.

    Args:
        comparison: pooled rows of `eval.compare` with a column `label`, the ability and its definition in words.
        baseline: the model that RL starts from.
        reference: the model after RL.
    """
    rows = comparison[(comparison["arm"] == BASE) & (comparison["n"] > 0)]
    below = rows[(rows["against"] == baseline) & (rows["low"] > 0)]
    if below.empty:
        return ""
    after = rows[rows["against"] == reference].set_index(["ability", "metric"])
    said = []
    for _, row in below.iterrows():
        sentence = (
            f"{baseline} {MINUS} base {runs(row)} is {_reversed(row)} on {row['label']} (n = {int(row['n'])}, "
            f"{verdict(row)})"
        )
        if (row["ability"], row["metric"]) in after.index:
            end = after.loc[(row["ability"], row["metric"])]
            sentence += f", {reference} {MINUS} base {runs(end)} {_reversed(end)}"
        said.append(sentence)
    verb = "is" if any(is_significant(row) for _, row in below.iterrows()) else "may be"
    return (
        f"The start {verb} weaker than base: {'; '.join(said)}. What {reference or 'RL'} gains there over {baseline} "
        "may in part restore what was lost before."
    )


def _place(ability: str) -> int:
    """Returns the place of an ability in a figure: the paper's three first, in its order."""
    return ABILITIES.index(ability) if ability in ABILITIES else len(ABILITIES)


def _reversed(row: Any) -> str:
    """Formats the difference seen from the other side: the table has base less the model."""
    return change(-row["difference"], -row["high"], -row["low"])


def draw_levels(scores: "pd.DataFrame", models: Sequence[str]) -> Figure | None:
    """Draws the accuracy of these models per ability, a mark a seed; None where none of them was scored.

    Args:
        scores: rows of `eval.compare` with model, seed, task, ability, accuracy and its interval.
    """
    own = scores[scores["model"].isin(models) & (scores["n"] > 0)]
    if own.empty:
        return None
    own = own.assign(place=[_place(name) for name in own["ability"]]).sort_values("place", kind="stable")
    several = own["task"].nunique() > 1 if "task" in own else False
    panels = []
    for keys, group in own.groupby(["task", "ability"] if several else ["ability"], sort=False):
        rows = {
            model: [
                Mark(value=row["accuracy"], low=row["low"], high=row["high"], colour=model_colour(model, models))
                for _, row in group[group["model"] == model].iterrows()
            ]
            for model in models
            if model in set(own["model"])
        }
        panels.append(Panel(title=", ".join(map(str, keys)), rows=rows))
    shown = [model for model in models if model in set(own["model"])]
    num_prompts = sorted(set(own["n"].astype(int)))
    n = f"n = {num_prompts[0]}" if len(num_prompts) == 1 else f"n = {num_prompts[0]} to {num_prompts[-1]}"
    return Figure(
        drawing=draw_forest(panels, label="accuracy, %", alt=f"Accuracy of {listed(shown)} per ability", signed=False),
        caption=f"Accuracy of {listed(shown)} on the same held-out prompts ({n} an ability); a mark a training "
        "seed with its 95 % interval over new prompts only, and at the right their mean.",
    )
