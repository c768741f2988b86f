"""What does a long command write, on a terminal and elsewhere?"""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

import tracking.progress
from tracking.command import REPOSITORY_ROOT
from tracking.progress import BYTES, WEIGHT, Progress, plural, progress, say, weighted_progress


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines come every twentieth of a second."""
    monkeypatch.setattr(tracking.progress, "FIRST_LINE_S", 0.05)
    monkeypatch.setattr(tracking.progress, "LINE_INTERVAL_S", 0.05)


def test_one_long_item_is_not_silent_and_the_last_line_says_how_long_all_took(
    hurried: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in progress(["a", "b"], label="answers", unit="batch"):
        time.sleep(0.3)
        lines = capsys.readouterr().err.splitlines()
        assert lines, "an item of six intervals wrote nothing"
        if number == "a":
            assert lines[0] == "answers: 0 of 2 batches after 0s"
        else:
            assert lines[-1].startswith("answers: 1 of 2 batches, ") and lines[-1].endswith(" left")
    assert capsys.readouterr().err.splitlines()[-1] == "answers: 2 of 2 batches in 1s"


def test_what_is_done_before_the_first_line_is_due_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(5), label="answers", unit="batch")) == [0, 1, 2, 3, 4]
    assert list(weighted_progress("ab", [1, 3], label="energy")) == ["a", "b"]
    assert list(progress([], label="nothing")) == []
    assert capsys.readouterr().err == ""


def test_work_that_breaks_off_says_nothing_of_an_end(hurried: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Progress(label="answers", total=2, unit="batch") as shown:
        shown.advance()
        time.sleep(0.2)
        raise RuntimeError("out of memory")
    lines = capsys.readouterr().err.splitlines()
    assert lines and not any(" in " in line for line in lines)
    time.sleep(0.2)
    assert capsys.readouterr().err == "", "lines go on after the end"


def line_after(monkeypatch: pytest.MonkeyPatch, shown: Progress, elapsed_s: float) -> str:
    begin = time.monotonic()
    monkeypatch.setattr(shown, "_begin", begin)
    monkeypatch.setattr(tracking.progress.time, "monotonic", lambda: begin + elapsed_s)
    try:
        return shown.line()
    finally:
        shown.close()
        monkeypatch.undo()


def test_a_line_counts_only_what_this_attempt_did(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Progress(label="splice", total=10e9, unit=BYTES, done=4e9)
    shown.advance(2e9)
    assert line_after(monkeypatch, shown, 4.0) == "splice: 6.00GB of 10.0GB, 500MB/s, 8s left"


def test_slow_work_is_given_in_seconds_a_unit_and_weights_as_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Progress(label="answers", total=10, unit="batch")
    slow.advance(4)
    assert line_after(monkeypatch, slow, 100.0) == "answers: 4 of 10 batches, 25.0 s per batch, 2m 30s left"
    weighted = Progress(label="spectra", total=200, unit=WEIGHT)
    weighted.reach(50)
    weighted.reach(20)
    assert line_after(monkeypatch, weighted, 10.0) == "spectra: 25%, 30s left"
    endless = Progress(label="words", unit="document")
    endless.advance(1000)
    assert line_after(monkeypatch, endless, 10.0) == "words: 1,000 documents, 100.0 documents/s"


def test_only_the_main_process_writes(
    hurried: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    for _ in progress(range(2), label="answers"):
        time.sleep(0.1)
    say("loading a model")
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_and_lines_above_it() -> None:
    program = (
        "import tracking.progress\n"
        "from tracking.progress import progress, say\n"
        "tracking.progress.STAYS_S = 0\n"
        "for item in progress(range(3), label='answers', unit='batch'): say(f'item {item}')"
    )
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    done = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY_ROOT, stderr=child, text=True)
    os.close(child)
    assert done.wait() == 0
    written = b""
    try:
        while piece := os.read(parent, 4096):
            written += piece
    except OSError:  # a terminal whose last writer has gone
        pass
    os.close(parent)
    shown = written.decode()
    assert "answers: 100%" in shown and "3/3" in shown and "item 2" in shown


def test_units_have_their_plurals() -> None:
    assert [plural(unit) for unit in ("batch", "reply", "pair")] == ["batches", "replies", "pairs"]
