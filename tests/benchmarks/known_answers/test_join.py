"""Answers of several calibrations on one page."""

from pathlib import Path

import pytest

from benchmarks.known_answers.answers import Answer, answer_table, read_answers
from benchmarks.known_answers.command import main
from tracking.run import is_finished
from tracking.tables import write_table


def calibrated(folder: Path, instrument: str, estimate: float = 0.5) -> str:
    """Leaves the answers of one instrument."""
    found = [
        Answer(instrument=instrument, case="a layer", quantity="accuracy", place=place, truth=0.5, estimate=value,
               low=value - 0.1, high=value + 0.1, tolerance=1e-5)
        for place, value in (("layer 0", 0.5), ("", estimate))
    ]  # fmt: skip
    folder.mkdir(parents=True)
    write_table(folder / "answers.csv", answer_table(found))
    return f"{instrument}={folder}"


def join(out: Path, *joined: str) -> None:
    main(["--output-dir", str(out), "--instruments", "skip", "splices", "--joined", *joined])


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    calibrated(tmp_path / "a", "skip", estimate=0.7)
    read = read_answers(tmp_path / "a" / "answers.csv")
    assert [(answer.place, answer.estimate, answer.verdict) for answer in read] == [
        ("layer 0", 0.5, "found"),
        ("", 0.7, "wrong"),
    ]
    write_table(tmp_path / "again.csv", answer_table(read))
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "a" / "answers.csv").read_text()


def test_all_answers_are_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [calibrated(tmp_path / name, name) for name in ("splices", "skip")]
    join(tmp_path / "out", *folders)
    assert "4 of 4 planted truths found." in capsys.readouterr().out
    assert [answer.instrument for answer in read_answers(tmp_path / "out" / "answers.csv")] == [
        *["skip"] * 2,
        *["splices"] * 2,
    ]
    page = (tmp_path / "out" / "calibration.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2 and "No answers of" not in page


def test_an_instrument_without_answers_fails_after_the_page_is_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no answers of splices"):
        join(tmp_path / "out", calibrated(tmp_path / "skip", "skip"))
    assert "<b>No answers of splices.</b>" in (tmp_path / "out" / "calibration.html").read_text()
    assert not is_finished(tmp_path / "out")


def test_a_wrong_answer_fails_after_the_page_is_written(tmp_path: Path) -> None:
    folders = [calibrated(tmp_path / "skip", "skip"), calibrated(tmp_path / "splices", "splices", estimate=0.9)]
    with pytest.raises(RuntimeError, match="1 of 4 planted truths are not found: splices: a layer: accuracy"):
        join(tmp_path / "out", *folders)
    assert "<b>Not found: 1 of 4 planted truths.</b>" in (tmp_path / "out" / "calibration.html").read_text()


def test_what_is_joined_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"joined 'swap=x'; expected NAME=DIR, such as"):
        join(tmp_path / "out", "swap=x")
    with pytest.raises(ValueError, match=r"answers\.csv does not exist"):
        join(tmp_path / "out", f"skip={tmp_path / 'nowhere'}")
