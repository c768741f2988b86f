"""How large are several differences, and how certain? An SVG figure: a panel a group, a row a model, a bar an interval.

Filled marks are significant, hollow ones are not, so that the figure can be read on paper in black and white.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.display.formatting import MINUS, percent, points

WIDTH = 920
"""Of the drawing, in its own units; the page scales it."""
TITLE_HEIGHT, TICKS_HEIGHT, LABEL_HEIGHT = 26, 24, 18
ROW_HEIGHT, MARK_HEIGHT = 24, 5
"""Of a row with few marks, and what each of many marks adds."""
TICK_WIDTH = 38
MOST_COLUMNS = 3
MARK_SPREAD = 8
"""Between the marks of one row, at most."""
LETTER_WIDTH = 8.2
VALUE_WIDTH, GAP = 44, 14
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
Box = tuple[float, float, float]
"""Left and right end of a panel's axis, and its top."""
INK, SOFT, LINE = "#1c1e21", "#5d6570", "#c9ced4"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One estimate with its 95 % interval, as shares."""

    value: float
    low: float
    high: float
    filled: bool = True
    colour: str = INK
    corrected: tuple[float, float] = (float("nan"), float("nan"))
    """The interval corrected for the number of tests; drawn as a thin line, as far as the panel reaches."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One group of estimates."""

    title: str
    rows: Mapping[str, Sequence[Mark]]


def draw_forest(panels: Sequence[Panel], *, label: str, alt: str, signed: bool = True, values: bool = True) -> str:
    """Returns an SVG element in which all panels share one axis and one order of rows.

    Args:
        label: of the axis.
        alt: what the figure shows, for readers who do not see it.
        signed: differences, drawn with a line at zero; otherwise shares.
        values: write the mean of a row's marks beside it; no, if its marks mean different things.

    Raises:
        ValueError: where there is nothing to draw.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.rows))
    marks = [mark for panel in panels for row in panel.rows.values() for mark in row if _is_drawn(mark)]
    if not marks:
        raise ValueError(f"no estimate to draw in {[panel.title for panel in panels]}")
    limits = _limits(marks, signed=signed)
    most_marks = max(len(row) for panel in panels for row in panel.rows.values())
    row_height = max(ROW_HEIGHT, MARK_HEIGHT * most_marks + 8)
    left = max(len(name) for name in names) * LETTER_WIDTH + 10
    room = int((WIDTH - left) // (max(len(panel.title) for panel in panels) * LETTER_WIDTH))
    most = max(1, min(MOST_COLUMNS, room))
    num_columns = len(panels) if len(panels) <= most else min(most, math.ceil(len(panels) / 2))
    num_lines = math.ceil(len(panels) / num_columns)
    width, height = (WIDTH - left) / num_columns, TITLE_HEIGHT + row_height * len(names) + TICKS_HEIGHT
    end = num_lines * height + LABEL_HEIGHT
    parts = [
        f'<svg class="forest" role="img" aria-label="{html.escape(alt)}" viewBox="0 0 {WIDTH} {end}" '
        f'font-family="inherit" font-size="13" fill="{INK}">'
    ]
    for line in range(num_lines):
        for number, name in enumerate(names):
            parts.append(_text(left - 10, line * height + _middle(number, row_height) + 4.5, name, anchor="end"))
    for number, panel in enumerate(panels):
        line, column = divmod(number, num_columns)
        box = (left + column * width, left + (column + 1) * width - VALUE_WIDTH - GAP, line * height)
        parts += _axis(panel.title, box, row_height * len(names), limits, signed=signed)
        for row, name in enumerate(names):
            own = panel.rows.get(name, ())
            parts += _row(own, _middle(row, row_height), row_height, box, limits)
            if values:
                parts += _value(own, _middle(row, row_height), box, signed=signed)
    parts.append(_text((left + WIDTH) / 2, end - 4, label, anchor="middle", colour=SOFT))
    return "".join([*parts, "</svg>"])


def _is_drawn(mark: Mark) -> bool:
    return not math.isnan(mark.value)


def _middle(row: int, row_height: float) -> float:
    return TITLE_HEIGHT + row_height * (row + 0.5)


def _limits(marks: Sequence[Mark], *, signed: bool) -> tuple[float, float]:
    """Returns the ends of the axis: all intervals, and zero where differences are drawn."""
    ends = [end for mark in marks for end in (mark.value, mark.low, mark.high) if not math.isnan(end)]
    low, high = min([*ends, *([0.0] if signed else [])]), max([*ends, *([0.0] if signed else [])])
    room = max(0.06 * (high - low), 0.005)
    return low - room, high + room


def _axis(title: str, box: Box, height: float, limits: tuple[float, float], *, signed: bool) -> list[str]:
    begin, end, top = box
    bottom = top + TITLE_HEIGHT + height
    low, high = limits
    parts = [
        f'<text x="{begin:.1f}" y="{top + 15:.1f}" font-weight="600">{html.escape(title)}</text>',
        _line(begin, bottom, end, bottom, LINE),
    ]
    most = max(2, int((end - begin) // TICK_WIDTH))
    step = next((step for step in STEPS if (high - low) / step <= most), STEPS[-1])
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        x = _place(number * step, box, limits)
        is_zero = signed and number == 0
        parts.append(_line(x, top + TITLE_HEIGHT, x, bottom, SOFT if is_zero else "#eceef0"))
        text = f"{100 * number * step:.0f}".replace("-", MINUS)
        parts.append(_text(x, bottom + 15, f"+{text}" if signed and number > 0 else text, anchor="middle", colour=SOFT))
    return parts


def _place(value: float, box: Box, limits: tuple[float, float]) -> float:
    """Returns where a value lies from left to right."""
    begin, end, _ = box
    low, high = limits
    return begin + (end - begin) * (value - low) / (high - low)


def _row(marks: Sequence[Mark], middle: float, height: float, box: Box, limits: tuple[float, float]) -> list[str]:
    drawn = [mark for mark in marks if _is_drawn(mark)]
    spread = min(MARK_SPREAD, (height - 8) / max(1, len(drawn) - 1))
    parts = []
    for number, mark in enumerate(drawn):
        y = box[2] + middle + (number - (len(drawn) - 1) / 2) * spread
        if not math.isnan(mark.corrected[0]):
            first, last = (_place(min(max(x, limits[0]), limits[1]), box, limits) for x in mark.corrected)
            parts.append(_line(first, y, last, y, mark.colour, 0.8))
        if not math.isnan(mark.low):
            parts.append(_line(_place(mark.low, box, limits), y, _place(mark.high, box, limits), y, mark.colour, 2.6))
        fill = mark.colour if mark.filled else "#fff"
        parts.append(
            f'<circle cx="{_place(mark.value, box, limits):.1f}" cy="{y:.1f}" r="4.2" fill="{fill}" '
            f'stroke="{mark.colour}" stroke-width="1.8"/>'
        )
    return parts


def _value(marks: Sequence[Mark], middle: float, box: Box, *, signed: bool) -> list[str]:
    drawn = [mark.value for mark in marks if _is_drawn(mark)]
    if not drawn:
        return []
    mean = sum(drawn) / len(drawn)
    text = points(mean) if signed else percent(mean)
    return [_text(box[1] + VALUE_WIDTH, box[2] + middle + 4.5, text, anchor="end")]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, *, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'
