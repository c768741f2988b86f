import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tracking.command import REPOSITORY_ROOT
from tracking.run import RUN_FILE, is_finished, open_run, read_run

SETTINGS: dict[str, Any] = {"model": "m", "decoding": {"temperature": 0.0, "max_tokens": 64}, "tasks": ["a", "b"]}


def do_run(directory: Path, *, command: str = "eval.run", overwrite: bool = False, **changes: Any) -> bool:
    """Runs a command that writes `product`; returns whether it had anything to do."""
    with open_run(directory, command=command, settings={**SETTINGS, **changes}, overwrite=overwrite) as run:
        if run.finished:
            return False
        (directory / "product").write_text(command)
    return True


@contextmanager
def process_holding(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A second process in the middle of the same run."""
    script = (
        "import json, sys, time; from pathlib import Path; from tracking.run import open_run\n"
        "with open_run(Path(sys.argv[1]), command='eval.run', settings=json.loads(sys.argv[2])):\n"
        "    Path(sys.argv[1], 'product').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(directory), json.dumps(SETTINGS)],
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def test_same_command_on_a_finished_directory_does_nothing(tmp_path: Path) -> None:
    assert do_run(tmp_path / "out")
    before = (tmp_path / "out" / RUN_FILE).read_bytes()
    assert not do_run(tmp_path / "out")
    assert (tmp_path / "out" / RUN_FILE).read_bytes() == before
    assert is_finished(tmp_path / "out")


def test_run_file_records_what_was_run_with_what(tmp_path: Path) -> None:
    with open_run(tmp_path, command="eval.run", settings=SETTINGS) as run:
        run.note(num_samples=12)
        assert read_run(tmp_path)["status"] == "running" and not is_finished(tmp_path)
    state = read_run(tmp_path)
    assert state["command"] == "eval.run" and state["settings"] == SETTINGS and state["status"] == "finished"
    (attempt,) = state["attempts"]
    assert attempt["argv"] == sys.argv and attempt["num_samples"] == 12
    assert attempt["start"] <= attempt["end"]
    assert set(attempt["git"]) == {"commit", "dirty"}
    assert attempt["versions"]["torch"] and attempt["hardware"]["num_cpus"] >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "n"}, "model = 'm', now it is 'n'"),
        ({"decoding": {"temperature": 0.0, "max_tokens": 32}}, r"decoding\.max_tokens = 64, now it is 32"),
        ({"tasks": ["a"]}, r"tasks = \['a', 'b'\], now it is \['a'\]"),
        ({"seed": 3}, "seed = None, now it is 3"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    do_run(tmp_path)
    before = (tmp_path / RUN_FILE).read_bytes()
    with pytest.raises(ValueError, match=f"was made with {message}; .*--overwrite"):
        do_run(tmp_path, **change)
    assert (tmp_path / RUN_FILE).read_bytes() == before


def test_settings_as_dataclasses_paths_and_tuples_equal_themselves_when_read_back(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Decoding:
        stops: tuple[str, ...] = ("a", "b")
        folder: Path = Path("x/y")

    for attempt in range(2):
        with open_run(tmp_path, command="eval.run", settings={"decoding": Decoding(), "root": Path("z")}) as run:
            assert run.finished == (attempt == 1)


def test_other_commands_directory_is_refused(tmp_path: Path) -> None:
    do_run(tmp_path)
    with pytest.raises(ValueError, match=r"belongs to eval\.run, not to analyze\.swap"):
        do_run(tmp_path, command="analyze.swap")


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_directory_is_refused_and_untouched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex' but no run\.json"):
        do_run(tmp_path, overwrite=overwrite)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("thesis.tex", "precious")]


def test_output_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("precious")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        do_run(path)
    assert path.read_text() == "precious"


def test_unreadable_run_file_is_refused_by_name(tmp_path: Path) -> None:
    do_run(tmp_path)
    (tmp_path / RUN_FILE).write_text('{"command": ')
    with pytest.raises(ValueError, match=r"run\.json is not readable as JSON"):
        do_run(tmp_path)


def test_overwrite_starts_over_with_other_settings(tmp_path: Path) -> None:
    do_run(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").write_text("old")
    assert do_run(tmp_path, model="n", overwrite=True)
    state = read_run(tmp_path)
    assert state["settings"]["model"] == "n" and state["status"] == "finished" and len(state["attempts"]) == 1
    assert not (tmp_path / "figures").exists()


def test_overwrite_leaves_what_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "image.png").write_text("precious")
    do_run(tmp_path / "out")
    (tmp_path / "out" / "data").symlink_to(tmp_path / "dataset")
    do_run(tmp_path / "out", overwrite=True)
    assert (tmp_path / "dataset" / "image.png").read_text() == "precious"


def test_failure_is_recorded_and_the_next_attempt_continues(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), open_run(tmp_path, command="eval.run", settings=SETTINGS):
        (tmp_path / "half").write_text("half")
        raise OSError("disk full")
    state = read_run(tmp_path)
    assert state["status"] == "failed" and not is_finished(tmp_path)
    assert state["attempts"][0]["error"] == "OSError: disk full" and state["attempts"][0]["end"]
    with open_run(tmp_path, command="eval.run", settings=SETTINGS) as run:
        assert run.continued and (tmp_path / "half").exists()
    state = read_run(tmp_path)
    assert state["status"] == "finished" and len(state["attempts"]) == 2
    assert "error" not in state["attempts"][1]


def test_interrupt_is_recorded_as_such(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, command="eval.run", settings=SETTINGS):
        raise KeyboardInterrupt
    assert read_run(tmp_path)["status"] == "interrupted"


def test_killed_run_is_continued_and_both_attempts_are_listed(tmp_path: Path) -> None:
    with process_holding(tmp_path) as child:
        child.kill()
        child.wait()
    assert not is_finished(tmp_path)
    with open_run(tmp_path, command="eval.run", settings=SETTINGS) as run:
        assert run.continued and not run.finished
        assert (tmp_path / "product").read_text() == "half"
    first, second = read_run(tmp_path)["attempts"]
    assert first["pid"] == child.pid and first["end"] is None
    assert second["pid"] != child.pid and second["end"] is not None


def test_two_processes_never_write_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracking.run.LOCK_PATIENCE_S", 0.2)
    with process_holding(tmp_path):
        before = (tmp_path / RUN_FILE).read_bytes()
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="is being written by another process"):
                do_run(tmp_path, overwrite=overwrite)
        assert (tmp_path / RUN_FILE).read_bytes() == before
        assert (tmp_path / "product").read_text() == "half"


def test_directory_of_a_holder_that_just_ends_is_waited_for(tmp_path: Path) -> None:
    with process_holding(tmp_path) as child:
        started = time.monotonic()
        threading.Timer(0.5, child.kill).start()
        assert do_run(tmp_path)
        assert time.monotonic() - started > 0.3


def test_only_the_main_process_of_a_distributed_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with open_run(tmp_path, command="train.grpo", settings=SETTINGS) as run:
        run.note(num_steps=1)
    assert not list(tmp_path.iterdir())


def test_directory_without_a_run_is_named(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    with pytest.raises(ValueError, match=r"has no run\.json; expected the output directory of a command"):
        read_run(tmp_path)


def test_run_killed_before_its_first_note_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / f".partial-{RUN_FILE}").write_text('{"comm')
    assert do_run(tmp_path)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", ['{"name": "another tool"}', "[]"])
def test_directory_with_another_tools_run_file_is_refused_and_untouched(
    tmp_path: Path, text: str, overwrite: bool
) -> None:
    (tmp_path / RUN_FILE).write_text(text)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"run\.json was not written by this suite"):
        do_run(tmp_path, overwrite=overwrite)
    assert (tmp_path / RUN_FILE).read_text() == text and (tmp_path / "thesis.tex").read_text() == "precious"
