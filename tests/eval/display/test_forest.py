"""Does the figure of differences place every estimate correctly, and mark significant ones without colour?"""

import re
from xml.etree import ElementTree

import pytest

from eval.display.forest import Mark, Panel, draw_forest
from eval.display.page import HARD_SPACE, unbroken

NOTHING = float("nan")


def drawn(*rows: tuple[str, list[Mark]], signed: bool = True) -> ElementTree.Element:
    panels = [Panel(title="vision <1>", rows=dict(rows))]
    return ElementTree.fromstring(draw_forest(panels, label="points", alt='differences & "more"', signed=signed))


def test_marks_lie_in_the_order_of_their_values_inside_their_intervals() -> None:
    marks = [Mark(value=value, low=value - 0.02, high=value + 0.03) for value in (-0.1, 0.0, 0.2)]
    svg = drawn(*((f"m{number}", [mark]) for number, mark in enumerate(marks)))
    circles = [float(circle.get("cx", "")) for circle in svg.iter("circle")]
    assert circles == sorted(circles) and len(set(circles)) == 3
    assert (circles[1] - circles[0]) / (circles[2] - circles[1]) == pytest.approx(0.5, abs=0.01)
    bars = [line for line in svg.iter("line") if line.get("stroke-width") == "2.6"]
    for bar, circle in zip(bars, circles, strict=True):
        before, after = circle - float(bar.get("x1", "")), float(bar.get("x2", "")) - circle
        assert after / before == pytest.approx(1.5, abs=0.05)


def test_significance_is_shown_by_filling_and_signs_are_written() -> None:
    svg = drawn(("a", [Mark(value=0.1, low=0, high=0.2)]), ("b", [Mark(value=-0.1, low=-0.2, high=0, filled=False)]))
    assert [circle.get("fill") == "#fff" for circle in svg.iter("circle")] == [False, True]
    texts = [text.text for text in svg.iter("text")]
    assert "+10.0" in texts and "−10.0" in texts and "vision <1>" in texts


def test_shares_have_no_sign_and_need_no_zero() -> None:
    svg = drawn(("a", [Mark(value=0.62, low=0.58, high=0.66)]), signed=False)
    texts = [str(text.text) for text in svg.iter("text")]
    assert "62.0" in texts and not [text for text in texts if text.startswith(("+", "0"))]


def test_what_was_not_measured_leaves_its_row_empty() -> None:
    svg = drawn(("a", [Mark(value=0.1, low=NOTHING, high=NOTHING)]), ("b", [Mark(value=NOTHING, low=0, high=0)]))
    assert len(list(svg.iter("circle"))) == 1 and "b" in [text.text for text in svg.iter("text")]
    with pytest.raises(ValueError, match="no estimate to draw"):
        draw_forest([Panel(title="vision", rows={"a": []})], label="", alt="")


def test_many_panels_are_put_in_several_lines_without_overlap() -> None:
    panels = [Panel(title=f"task {number}", rows={"a": [Mark(value=0.1, low=0, high=0.2)]}) for number in range(7)]
    svg = ElementTree.fromstring(draw_forest(panels, label="points", alt="differences"))
    places = [(float(circle.get("cx", "")), float(circle.get("cy", ""))) for circle in svg.iter("circle")]
    assert len(set(places)) == 7 and len({x for x, _ in places}) == 3 and len({y for _, y in places}) == 3
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    assert all(0 < x < width and 0 < y < height for x, y in places)


def test_the_marks_of_many_seeds_stay_in_their_row() -> None:
    many = [Mark(value=0.1, low=0, high=0.2)] * 8
    svg = drawn(("a", many), ("b", many))
    heights = [float(circle.get("cy", "")) for circle in svg.iter("circle")]
    between = (max(heights[:8]) + min(heights[8:])) / 2
    assert len(set(heights)) == 16 and max(heights[:8]) < between < min(heights[8:])


def test_no_line_ends_inside_an_interval_or_a_difference() -> None:
    text = unbroken("full − sft is +1.2 points [−1.4, +3.8] (n = 500), 45 % of all")
    assert re.split(" ", text) == [
        f"full{HARD_SPACE}−{HARD_SPACE}sft", "is", f"+1.2{HARD_SPACE}points", f"[−1.4,{HARD_SPACE}+3.8]",
        f"(n{HARD_SPACE}={HARD_SPACE}500),", f"45{HARD_SPACE}%", "of", "all",
    ]  # fmt: skip
