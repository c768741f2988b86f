"""The answers of the positive control on the page of all instruments."""

import math
from pathlib import Path

from benchmarks.known_answers import necessity
from benchmarks.known_answers.answers import FOUND, WRONG, Answer, answer_table
from benchmarks.known_answers.instruments import INSTRUMENTS
from tracking.tables import write_table


def test_its_rows_keep_their_verdicts_and_the_figure_has_the_gains_kept(tmp_path: Path) -> None:
    rows = (
        ("gain kept", "freeze-mid", 0, 0.02, -0.1, 0.2, True),
        ("gain kept", "freeze-late", 1, 0.4, 0.2, 0.6, False),
        ("different replies", "freeze-mid-seed0", 1, 1, math.nan, math.nan, True),
    )
    names = ("quantity", "place", "truth", "estimate", "low", "high", "is_right")
    found = [Answer(instrument="necessity", case="mid", **dict(zip(names, row, strict=True))) for row in rows]
    write_table(tmp_path / "answers.csv", answer_table(found))
    read = necessity.read_control(tmp_path / "answers.csv")
    assert [answer.verdict for answer in read] == [FOUND, WRONG, FOUND]
    figure = INSTRUMENTS[necessity.NAME].draw(answer_table(read))
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["gain kept"]
