"""What does a sweep of transplants say, in sentences? The same for the terminal and for the page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from analyze.layers.plan import SUFFICIENCY
from analyze.transplant.prediction import curve_words
from eval.compare.scope import IN_THIS_RUN, LEVEL, counted_tests, is_significant
from eval.display.formatting import MINUS, NOTHING, change, format_share, listed, probability
from eval.statistics.pooled import CHECKPOINTS

if TYPE_CHECKING:
    import pandas as pd

MOST = 0.5
NUM_NAMED = 6
WHOLE = 1.0
"""The factor with which sentences are about the change as it is."""


def answers(transplants: "pd.DataFrame") -> list[str]:
    """Returns a sentence per ability, END and direction: which units give, or cost, more than half of the gain."""
    found = []
    several = transplants["task"].nunique() > 1, transplants["arm"].nunique() > 1
    alpha = sentence_alpha(transplants)
    keys = ["task", "ability", "arm", "direction"]
    for (task, ability, arm, direction), own in transplants[transplants["alpha"] == alpha].groupby(keys, sort=False):
        where = ", ".join(filter(None, [str(ability), str(task) if several[0] else "", str(arm) if several[1] else ""]))
        found.append(f"{where}, {direction}: {_answer(own, str(direction), alpha)}")
    return found


def sentence_alpha(transplants: "pd.DataFrame") -> float:
    """Returns 1, or the factor nearest to it."""
    alphas: list[float] = sorted(set(transplants["alpha"]), key=lambda alpha: (abs(alpha - WHOLE), alpha))
    return alphas[0]


def _answer(own: "pd.DataFrame", direction: str, alpha: float) -> str:
    arm = own["arm"].iloc[0]
    known = own[own["share"].notna()]
    best = own.sort_values("difference", ascending=direction != SUFFICIENCY).head(1).iloc[0]
    if direction == SUFFICIENCY:
        words = (f"{best['unit']} alone gives the most", "give more than half of the gain alone")
    else:
        words = (f"without {best['unit']} the most is lost", "cost more than half of the gain if left out")
    text = f"with α = {alpha:g}, {words[0]}: {change(best['difference'], best['low'], best['high'])}"
    text += f" against {best['against']}"
    if known.empty:
        text += f". {arm} has no significant gain over the start, so no share is defined"
    else:
        most = known[known["share_low"] > MOST]
        text += f". {len(most)} of {len(known)} units {words[1]}{_named(most)}"
    tested = own[[is_significant(row) for _, row in own.iterrows()]]
    names = listed([str(name) for name in tested["unit"].head(NUM_NAMED)])
    more = f" and {len(tested) - NUM_NAMED} more" if len(tested) > NUM_NAMED else ""
    tests = counted_tests(own["num_tests"].max())
    text += f". Significantly different: {names + more if len(tested) else 'none'} ({tests}, Holm)"
    return text + (f"; {IN_THIS_RUN}, one checkpoint of {arm}." if (own["scope"] == CHECKPOINTS).any() else ".")


def _named(rows: "pd.DataFrame") -> str:
    if rows.empty:
        return ""
    best = rows.sort_values("share", ascending=False).head(NUM_NAMED)
    more = f" and {len(rows) - NUM_NAMED} more" if len(rows) > NUM_NAMED else ""
    shares = [
        f"{row['unit']} {format_share(row['share'], row['share_low'], row['share_high'])}" for _, row in best.iterrows()
    ]
    return f" ({', '.join(shares)}{more})"


def predictions(agreement: "pd.DataFrame | None") -> list[str]:
    """Returns sentences: how well transplants rank the places as the trained arms do; none without trained arms."""
    if agreement is None:
        return []
    if agreement.empty:
        return ["Prediction of the trained arms: not measured, as no curve has four places in common with them."]
    alpha = sentence_alpha(agreement)
    return [*_predictions(agreement[agreement["alpha"] == alpha])]


def _predictions(rows: "pd.DataFrame") -> Iterator[str]:
    for _, row in rows.iterrows():
        if row.isna()["rho"]:
            yield f"{curve_words(row)}: one of the two curves is constant, so they have no rank correlation."
            continue
        verdict = "predicts" if row["rho"] > 0 and row["p"] < LEVEL else "is not shown to predict"
        yield (
            f"{curve_words(row)}: the transplant {verdict} the order of the trained arms "
            f"(ρ = {rho_words(row)}, {int(row['num_places'])} places, p = {probability(row['p'])}); "
            f"its mean error is {100 * row['mean_error']:.1f} points."
        )


def rho_words(row: Any) -> str:
    """Returns a rank correlation with its interval: `0.83 [0.20, 1.00]`."""
    if row["rho"] != row["rho"]:
        return NOTHING
    interval = "" if row["low"] != row["low"] else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['rho']:.2f}{interval}".replace("-", MINUS)


def summary(transplants: "pd.DataFrame", agreement: "pd.DataFrame | None") -> list[str]:
    """Returns the lines that the command prints."""
    return [*answers(transplants), *predictions(agreement)]
