"""What was planted, and what did an instrument find? One answer per number, with its verdict."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

FOUND, WRONG = "found", "wrong"
TOLERANCE = 1e-5
"""Of shares: tables round them to six digits."""
BLOCK_LAYERS = {"early": (0, 1), "mid": (2, 3), "late": (4, 5)}
"""Block -> its layers, of the six of every planted model; by hand, not by the code that is under test."""
COLUMNS = (
    "instrument", "case", "quantity", "place", "truth", "estimate", "low", "high", "tolerance", "verdict",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One planted number and the instrument's estimate of it."""

    instrument: str
    case: str
    """What was planted, in words."""
    quantity: str
    """What was measured."""
    place: str = ""
    """Where: a layer, a head, a tensor, a pattern."""
    truth: float
    estimate: float
    """NaN if the instrument gives no number, which is wrong."""
    low: float = math.nan
    """Lower end of the instrument's 95 % interval; NaN if it gives none."""
    high: float = math.nan
    tolerance: float = 0.0
    """How far estimate and interval may be from the truth: what rounding explains."""
    is_right: bool | None = None
    """The verdict where the truth is not a number that the estimate must equal, such as a bound; by default None."""

    @property
    def deviation(self) -> float:
        """The distance between estimate and truth."""
        return abs(self.estimate - self.truth)

    @property
    def verdict(self) -> str:
        """`found` if the estimate is within the tolerance and the interval, if there is one, contains the truth.

        `is_right` replaces this rule.
        """
        if self.is_right is not None:
            return FOUND if self.is_right else WRONG
        is_near = self.deviation <= self.tolerance  # False for NaN
        is_outside = self.low - self.tolerance > self.truth or self.high + self.tolerance < self.truth
        return FOUND if is_near and not is_outside else WRONG


def answer_table(answers: Sequence[Answer]) -> "pd.DataFrame":
    """Returns a row per answer, with `COLUMNS`."""
    import pandas as pd

    rows = [asdict(answer) | {"verdict": answer.verdict} for answer in answers]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def read_answers(path: Path) -> list[Answer]:
    """Returns the answers of an `answers.csv`, with its verdicts."""
    rows = read_table(path).fillna({"place": ""}).to_dict("records")
    return [
        Answer(
            instrument=str(row["instrument"]),
            case=str(row["case"]),
            quantity=str(row["quantity"]),
            place=str(row["place"]),
            truth=float(row["truth"]),
            estimate=float(row["estimate"]),
            low=float(row["low"]),
            high=float(row["high"]),
            tolerance=float(row["tolerance"]),
            is_right=row["verdict"] == FOUND,
        )
        for row in rows
    ]


def describe(answer: Answer) -> str:
    """Returns one line on an answer: what was planted, and what was found."""
    interval = "" if math.isnan(answer.low) else f" [{answer.low:.6g}, {answer.high:.6g}]"
    where = f", {answer.place}" if answer.place else ""
    return (
        f"{answer.instrument}: {answer.case}: {answer.quantity}{where}: planted {answer.truth:.6g}, found "
        f"{answer.estimate:.6g}{interval}"
    )
