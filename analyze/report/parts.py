"""What is a page made of? Questions, with parts: sentences, figures, tables, controls, limits, and what is missing."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.display.formatting import interval, percent, points, probability

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture inlined into the page, with what is to be seen in it."""

    source: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the columns from `num_words` on hold numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_words: int = 1
    folded: bool = False
    """Shown on demand, and in print."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One probe's or one table's share of an answer."""

    title: str
    what: str
    """What was done, and what the words in it mean."""
    answers: Sequence[str] = ()
    """What of it belongs into the summary."""
    findings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    controls: Sequence[str] = ()
    limits: Sequence[str] = ()


@dataclass(kw_only=True)
class Section:
    """One question of the paper, with its parts and what is missing to answer it."""

    anchor: str
    question: str
    lead: str
    parts: list[Part] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    necessity: list[dict[str, Any]] = field(default_factory=list)
    """What the necessity study's own template shows."""

    @property
    def is_empty(self) -> bool:
        return not self.parts and not self.necessity

    @property
    def answers(self) -> list[tuple[str, Sequence[str]]]:
        """Returns what the summary says of this question."""
        own = [("Accuracy", each["answers"]) for each in self.necessity if each["answers"]]
        return own + [(part.title, part.answers) for part in self.parts if part.answers]

    @property
    def findings(self) -> list[tuple[str, str]]:
        """(what it is about, sentence) of all parts."""
        own = [finding for each in self.necessity for finding in each["findings"]]
        return own + [(part.title, sentence) for part in self.parts for sentence in part.findings]


def inline_file(path: Path) -> str:
    """Returns a PNG file as a data URI."""
    return _uri(path.read_bytes())


def inline_drawing(drawing: "Drawing") -> str:
    """Returns a drawing as a data URI, and closes it."""
    import matplotlib.pyplot as plt

    from eval.display.axes import RESOLUTION_DPI

    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
    plt.close(drawing)
    return _uri(buffer.getvalue())


def files_as_figures(directory: Path, captions: dict[str, str]) -> list[Figure]:
    """Returns the figures among these that a command drew, by file name without `.png`."""
    folder = directory / "figures"
    return [
        Figure(source=inline_file(folder / f"{name}.png"), caption=caption)
        for name, caption in captions.items()
        if (folder / f"{name}.png").is_file()
    ]


def share(value: float, low: float, high: float) -> str:
    """Formats a share with its interval: `72.0 % [58.3, 82.5]`."""
    return f"{percent(value)} % [{percent(low)}, {percent(high)}]"


def change(value: float, low: float, high: float) -> str:
    """Formats a difference with its interval: `+1.2 points [−1.4, +3.8]`."""
    return f"{points(value)} points {interval(low, high)}".rstrip()


def model_name(label: str, seed: Any = None) -> str:
    """Returns a model as the page names it: `full (seed 0)` of `full-seed0`, or of an arm and its seed."""
    if seed is not None and seed == seed and seed != "":
        return f"{label} (seed {int(float(seed))})"
    return re.sub(r"-seed(\d+)$", r" (seed \1)", label)


def corrected(p: float) -> str:
    return f"corrected p = {probability(p)}"


def listed(words: Sequence[str]) -> str:
    """Joins words: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
