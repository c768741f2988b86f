"""Formats shares, differences, intervals and p-values for pages, in points and with a real minus sign."""

from collections.abc import Sequence

MINUS = "−"
NOTHING = "–"


def points(value: float, *, sign: bool = True) -> str:
    """Formats a share as points: `+12.3`."""
    if value != value:
        return NOTHING
    text = f"{abs(100 * value):.1f}"
    return (MINUS if value < 0 and float(text) else "+" if sign else "") + text


def interval(low: float, high: float) -> str:
    """Formats an interval of shares as points: `[+1.0, +9.5]`; empty if there is none."""
    return "" if low != low else f"[{points(low)}, {points(high)}]"


def percent(value: float) -> str:
    """Formats a share as a percentage."""
    return NOTHING if value != value else f"{100 * value:.1f}".replace("-", MINUS)


def probability(value: float) -> str:
    """Formats a p-value."""
    if value != value:
        return NOTHING
    return f"{value:.1e}".replace("-", MINUS) if value < 0.001 else f"{value:.3f}"


def change(value: float, low: float, high: float) -> str:
    """Formats a difference with its interval: `+1.2 points [−1.4, +3.8]`."""
    return f"{points(value)} points {interval(low, high)}".rstrip()


def listed(words: Sequence[str]) -> str:
    """Joins words: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def format_share(value: float, low: float = float("nan"), high: float = float("nan")) -> str:
    """Formats a share with its interval as percentages: `73.2 % [71.0, 75.3]`."""
    if value != value:
        return NOTHING
    return f"{percent(value)} %" + ("" if low != low else f" [{percent(low)}, {percent(high)}]")


def format_difference(value: float, low: float, high: float) -> str:
    """Formats a difference of shares with its interval as points: `+5.4 [+2.5, +8.4]`."""
    return f"{points(value)} {interval(low, high)}".rstrip()
