"""Formats shares, differences, intervals and p-values for pages, in points and with a real minus sign."""

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
