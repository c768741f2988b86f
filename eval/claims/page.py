"""What does the page of the claims say first? Its answer in one sentence, and the figure of the statements."""

from typing import TYPE_CHECKING, Any

from eval.claims.tables import CONTRADICTED, MEASURED, SUPPORTED
from eval.compare.scope import IN_THIS_RUN, LEVEL, verdict_of
from eval.display.forest import Mark, Panel, draw_forest
from eval.display.formatting import interval, points
from eval.statistics.pooled import TRAINING

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED_PANEL, MEASURED_PANEL = "published", "measured here"
PUBLISHED_COLOUR, MEASURED_COLOUR = "#565e68", "#0072B2"
DECIDED = (SUPPORTED, CONTRADICTED)
MOST_NAMED = 3
"""Statements of one verdict that the answer names one by one."""


def answer(statements: "pd.DataFrame", claims: "pd.DataFrame", *, measured: bool) -> str:
    """Says in a sentence how many statements of the paper are supported, contradicted, or cannot be decided.

    Args:
        statements: rows of `statements.csv`.
        claims: rows of `claims.csv`.
        measured: judged by what was measured; otherwise by the paper's own percentages.
    """
    verdicts = [str(verdict) for verdict in statements["verdict"]]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys([*DECIDED, *verdicts])]
    prefix = MEASURED if measured else ""
    named = []
    for verdict in DECIDED:
        rows = statements[statements["verdict"] == verdict]
        if 0 < len(rows) <= MOST_NAMED:
            said = [
                f"“{row['statement']}” ({_difference(row, prefix)}{f', {measured_runs(row)}' if measured else ''})"
                for _, row in rows.iterrows()
            ]
            named.append(f"{verdict}: {', '.join(said)}")
    by = "the measurements" if measured else "the paper’s own percentages"
    head = f"Of {len(verdicts)} statements, judged by {by}: {', '.join(counts)}."
    if not measured:
        num_significant = int(claims["exceeds_noise"].sum())
        verb = "is" if num_significant == 1 else "are"
        head = f"{num_significant} of {len(claims)} published differences {verb} significant. {head}"
    return head + "".join(f" {sentence[0].upper()}{sentence[1:]}." for sentence in named)


def measured_runs(row: Any) -> str:
    """Returns what a measured statement's interval covers besides prompts: training seeds, or nothing."""
    if row["measured_scope"] == TRAINING:
        return f"over {int(row['measured_num_seeds'])} training seeds"
    return IN_THIS_RUN


def measured_verdict(row: Any) -> str:
    """Says whether a measured difference is significant, and names the correction if its interval excludes zero."""
    p_holm, low, high, number = (row[f"{MEASURED}{name}"] for name in ("p_holm", "low", "high", "num_tests"))
    return "" if p_holm != p_holm else verdict_of(p_holm, low, high, number)


def _difference(row: Any, prefix: str) -> str:
    return f"{points(row[f'{prefix}difference'])} points {interval(row[f'{prefix}low'], row[f'{prefix}high'])}"


def draw_statements(statements: "pd.DataFrame", *, measured: bool) -> str:
    """Draws each statement's difference as published, and beside it as measured, as an SVG element."""
    sources = {PUBLISHED_PANEL: ("", PUBLISHED_COLOUR)}
    if measured:
        sources[MEASURED_PANEL] = (MEASURED, MEASURED_COLOUR)
    panels = [
        Panel(title=title, rows={row["statement"]: _marks(row, prefix, colour) for _, row in statements.iterrows()})
        for title, (prefix, colour) in sources.items()
    ]
    alt = f"Differences behind the statements: {' and '.join(sources)}"
    return draw_forest(panels, label="difference that the statement is about, points", alt=alt)


def _marks(row: Any, prefix: str, colour: str) -> list[Mark]:
    value, low, high, p = (row[f"{prefix}{name}"] for name in ("difference", "low", "high", "p_holm"))
    return [Mark(value=value, low=low, high=high, filled=p < LEVEL, colour=colour)] if value == value else []
