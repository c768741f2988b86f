"""What did a check find? It holds, it does not hold, or it does not apply; with the number and its tolerance."""

from dataclasses import asdict, dataclass
from typing import Any

HOLDS, FAILS, ABSENT = "holds", "does not hold", "does not apply"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one check."""

    check: str
    state: str
    detail: str
    """What was compared, or why not."""
    restriction: str | None = None
    """What a check that holds leaves out."""
    error: float | None = None
    tolerance: float | None = None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        number = "" if self.error is None else f" (error {self.error:.1e}, tolerance {self.tolerance:.0e})"
        restriction = f"; {self.restriction}" if self.restriction else ""
        return f"{self.check:<16}{self.state:<16}{self.detail}{number}{restriction}"


def holds(check: str, detail: str) -> Outcome:
    return Outcome(check=check, state=HOLDS, detail=detail)


def fails(check: str, detail: str) -> Outcome:
    return Outcome(check=check, state=FAILS, detail=detail)


def absent(check: str, reason: str) -> Outcome:
    return Outcome(check=check, state=ABSENT, detail=reason)


def within(check: str, error: float, tolerance: float, detail: str, *, restriction: str | None = None) -> Outcome:
    """Returns `holds` if an error is at most its tolerance; NaN is above every tolerance."""
    state = HOLDS if error <= tolerance else FAILS
    return Outcome(check=check, state=state, detail=detail, restriction=restriction, error=error, tolerance=tolerance)
