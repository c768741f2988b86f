"""What is a page made of? Questions with answers, and parts: figures, sentences, tables, controls, limits, gaps."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.compare.scope import ABOUT
from eval.display.formatting import percent, probability
from eval.statistics.pooled import CHECKPOINTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

REWARDED = ("full", "rl")
"""Names of the model after RL with nothing frozen."""
LONGEST_OPEN_TABLE = 12
"""Rows; longer tables are folded."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture in the page: a data URI, or an SVG element that carries its own alternative text."""

    caption: str
    source: str = ""
    drawing: str = ""
    alt: str = ""
    """What the picture shows, for readers who do not see it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the columns from `num_words` on hold numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_words: int = 1
    about: str = ""
    """What the rows are about, if it is not what their part is about."""

    @property
    def folded(self) -> bool:
        """True for a long table: shown on demand, and in print."""
        return len(self.rows) > LONGEST_OPEN_TABLE


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one command contributes to an answer."""

    title: str
    answer: str
    """One sentence: the main number with its interval and n, or that the data cannot decide."""
    what: str
    """What was measured, and what the words mean."""
    about: str = ABOUT[CHECKPOINTS]
    """Whether the statements are about training or about these checkpoints, as `eval.compare.scope.about` says it."""
    answer_about: str = ""
    """The same of the answer, if it is not about all of it."""
    note: str = ""
    """How the answer fits to other sections."""
    warning: str = ""
    """What a reader must know before the answer is used."""
    findings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    """The first one shows the answer."""
    tables: Sequence[Table] = ()
    controls: Sequence[str] = ()
    failed: bool = False
    """True where one of the controls failed."""
    limits: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        return anchor(self.title)


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
    def answer(self) -> str:
        """Returns the answer in one sentence, of the first part that has one; empty where nothing answers it."""
        answers = [each["answer"] for each in self.necessity] + [part.answer for part in self.parts]
        return next(filter(None, answers), "")

    @property
    def about(self) -> str:
        """Returns what the answer is about: training, or these checkpoints."""
        found = [(each["answer"], each["about"]) for each in self.necessity]
        found += [(part.answer, part.answer_about or part.about) for part in self.parts]
        return next((label for said, label in found if said), "")

    @property
    def note(self) -> str:
        """Returns how the answer fits to other sections."""
        return next((part.note for part in self.parts if part.answer and part.answer == self.answer), "")

    @property
    def warning(self) -> str:
        """Returns what a reader must know before the answer is used."""
        warnings = [each["warning"] for each in self.necessity] + [part.warning for part in self.parts]
        return next(filter(None, warnings), "")

    @property
    def figure(self) -> Figure | None:
        """Returns the figure that shows the answer."""
        figures = [each["lead_figure"] for each in self.necessity] + [
            figure for part in self.parts if part.answer == self.answer for figure in part.figures[:1]
        ]
        return next((figure for figure in figures if figure is not None), None)


def anchor(title: str) -> str:
    """Returns the name under which a heading can be linked."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


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
        Figure(source=inline_file(folder / f"{name}.png"), caption=caption, alt=caption)
        for name, caption in captions.items()
        if (folder / f"{name}.png").is_file()
    ]


def share(value: float, low: float, high: float) -> str:
    """Formats a share with its interval: `72.0 % [58.3, 82.5]`."""
    return f"{percent(value)} % [{percent(low)}, {percent(high)}]"


def model_name(label: str, seed: Any = None) -> str:
    """Returns a model as the page names it: `full (seed 0)` of `full-seed0`, or of an arm and its seed."""
    if seed is not None and seed == seed and seed != "":
        return f"{label} (seed {int(float(seed))})"
    return re.sub(r"-seed(\d+)$", r" (seed \1)", label)


def corrected(p: float) -> str:
    return f"corrected p = {probability(p)}"


def main_model(names: Sequence[str]) -> str:
    """Returns the model that an answer speaks of: full RL where it is among them, else the last."""
    return next((name for name in names if name.partition(" (seed")[0] in REWARDED), names[-1])


def same_elsewhere(num_same: int, num_others: int, what: str) -> str:
    """Says in how many other cases the same holds: `; the same in 2 of 3 other models`; empty where there are none."""
    return f"; the same in {num_same} of {num_others} other {what}" if num_others else ""


def _uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
