"""The answers of the positive control on the page of all instruments."""

from pathlib import Path

from benchmarks.known_answers import necessity
from benchmarks.known_answers.answers import FOUND, WRONG, answer_table
from benchmarks.known_answers.instruments import INSTRUMENTS
from benchmarks.necessary_block import answers as control
from tracking.tables import write_table


def test_its_rows_keep_their_verdicts_and_the_figure_has_the_gains_kept(tmp_path: Path) -> None:
    found = [
        control.Answer(case="mid", quantity="gain kept", place="freeze-mid", truth=0, estimate=0.02, low=-0.1, high=0.2, is_right=True),
        control.Answer(case="mid", quantity="gain kept", place="freeze-late", truth=1, estimate=0.4, low=0.2, high=0.6, is_right=False),
        control.Answer(case="mid", quantity="different replies", place="freeze-mid-seed0", truth=1, estimate=1, is_right=True),
    ]  # fmt: skip
    write_table(tmp_path / "answers.csv", control.answer_table(found))
    read = necessity.read_answers(tmp_path / "answers.csv")
    assert [answer.verdict for answer in read] == [FOUND, WRONG, FOUND]
    figure = INSTRUMENTS[necessity.NAME].draw(answer_table(read))
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["gain kept"]
