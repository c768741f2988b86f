"""Does every instrument find what was planted? One self-contained page: planted against found."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.known_answers.answers import FOUND, WRONG
from eval.display.formatting import MINUS, NOTHING
from eval.display.page import page_environment

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.known_answers.instruments import Instrument

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "calibration.html.j2"


def render(
    answers: "pd.DataFrame",
    instruments: "Mapping[str, Instrument]",
    figures: Path,
    missing: Sequence[str] = (),
) -> str:
    """Returns the page as HTML.

    Args:
        answers: as `answer_table` returns them.
        instruments: those that were asked, by name.
        figures: the folder with a `NAME.png` per instrument.
        missing: instruments that should have been asked and gave no answers.
    """
    sections = []
    for name, instrument in instruments.items():
        own = answers[answers["instrument"] == name]
        sections.append(
            {
                "name": name,
                "commands": instrument.commands,
                "planted": instrument.planted,
                "figure": {
                    "source": _uri(figures / f"{name}.png"),
                    "caption": instrument.caption,
                    "drawing": "",
                    "alt": "",
                },
                "cases": own["case"].nunique(),
                "rows": answer_rows(own),
                **counts(own),
            }
        )
    return page_environment(TEMPLATES).get_template(PAGE).render(
        headline=headline(answers),
        missing=missing,
        wrong=answer_rows(answers[answers["verdict"] == WRONG]),
        sections=sections,
        **counts(answers),
    )  # fmt: skip


def headline(answers: "pd.DataFrame") -> str:
    """Returns the first sentence: how many of the planted truths were found."""
    own = counts(answers)
    return f"{own['num_found']} of {own['num_planted']} planted truths found."


def counts(answers: "pd.DataFrame") -> dict[str, Any]:
    """Returns how many truths were planted and found, and the largest deviation of an estimate."""
    deviation = float((answers["estimate"] - answers["truth"]).abs().max())
    return {
        "num_planted": len(answers),
        "num_found": int((answers["verdict"] == FOUND).sum()),
        "deviation": number(float(f"{deviation:.2g}")),
    }


def answer_rows(answers: "pd.DataFrame") -> Sequence[dict[str, Any]]:
    """Returns the answers as text."""
    return [
        {name: row[name] for name in ("instrument", "case", "quantity", "place", "verdict")}
        | {
            "truth": number(row["truth"]),
            "estimate": number(row["estimate"]),
            "interval": "" if row["low"] != row["low"] else f"[{number(row['low'])}, {number(row['high'])}]",
        }
        for row in answers.to_dict("records")
    ]


def number(value: float) -> str:
    """Formats a number with at most six digits."""
    return NOTHING if value != value else f"{value:.6g}".replace("-", MINUS)


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
