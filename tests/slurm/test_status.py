"""The status of a study, read from Slurm and from the commands' files."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from slurm.status import format_status, main, progress_of, state_of, study_status, worked_s
from slurm.submitting.queueing import State, task_names
from tracking.command import Preempted
from tracking.run import open_run


def run(directory: Path, *, error: BaseException | None = None) -> Path:
    try:
        with open_run(directory, command="test", settings={}):
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    return directory


@pytest.mark.parametrize(
    ("error", "queued", "past", "expected"),
    [
        (None, None, None, "finished"),
        (None, None, "FAILED", "finished"),
        (RuntimeError("x"), None, None, "failed"),
        (RuntimeError("x"), None, "TIMEOUT", "TIMEOUT"),
        (Preempted("x"), None, None, "stopped"),
        (Preempted("x"), "PENDING", None, "PENDING"),
        (RuntimeError("x"), "RUNNING", "FAILED", "RUNNING"),
        (None, "COMPLETING", None, "finished"),
    ],
)
def test_the_queue_comes_first_then_the_files_then_the_accounting(
    tmp_path: Path, error: BaseException | None, queued: str | None, past: str | None, expected: str
) -> None:
    directory = run(tmp_path / "out", error=error)
    states = [None if name is None else State(state=name) for name in (queued, past)]
    assert state_of(directory, *states) == expected


def test_a_job_that_left_nothing_is_judged_by_the_accounting(tmp_path: Path) -> None:
    assert state_of(tmp_path / "none", None, None) == "not run"
    assert state_of(tmp_path / "none", None, State(state="CANCELLED")) == "CANCELLED"


def test_steps_and_the_time_they_leave_follow_from_all_attempts(tmp_path: Path) -> None:
    begin = datetime.now(UTC) - timedelta(seconds=300)
    attempts = [
        {"start": begin.isoformat(), "end": (begin + timedelta(seconds=60)).isoformat()},
        {"start": (begin + timedelta(seconds=240)).isoformat(), "end": None},
    ]
    assert worked_s(attempts) == pytest.approx(120, abs=2)
    (tmp_path / "run.json").write_text(
        json.dumps({"command": "c", "settings": {}, "status": "running", "attempts": attempts})
    )
    (tmp_path / "progress.json").write_text('{"step": 40, "num_steps": 60}')
    done, left = progress_of(tmp_path, running=True)
    assert done == "40/60 steps" and left in ("about 1m 00s", "about 59s", "about 1m 01s")


def test_a_study_that_ran_here_is_shown_as_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "arms" / "a")
    run(tmp_path / "arms" / "b", error=RuntimeError("x"))
    (tmp_path / "swap").mkdir()
    (tmp_path / "swap" / "records.jsonl").write_text("{}\n" * 1200)
    jobs: list[dict[str, Any]] = [
        {"name": "a", "stage": "train", "index": 0, "command": [], "output_dir": str(tmp_path / "arms" / "a")},
        {"name": "b", "stage": "train", "index": 1, "command": [], "output_dir": str(tmp_path / "arms" / "b")},
        {"name": "swap", "stage": "swap", "index": 0, "command": [], "output_dir": str(tmp_path / "swap")},
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"jobs": jobs}))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "b.log").write_text("line\n" * 9 + "out of memory\n")
    main([str(tmp_path)])
    told = capsys.readouterr().out
    assert "train  1 finished, 1 failed" in told
    assert "1,200 records" in told and "1 of 3 jobs are finished" in told
    assert "out of memory" in told
    assert format_status(study_status(tmp_path)).splitlines() == told.splitlines()


@pytest.mark.parametrize(
    ("names", "expected"),
    [("7", ["7"]), ("7_3", ["7_3"]), ("7_[1-3,5%2]", ["7_1", "7_2", "7_3", "7_5"]), ("7_[0]", ["7_0"])],
)
def test_tasks_that_were_never_started_are_told_apart_in_the_accounting(names: str, expected: list[str]) -> None:
    assert task_names(names) == expected


def test_what_runs_here_is_running_and_what_was_killed_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with open_run(tmp_path / "out", command="test", settings={}):
        assert state_of(tmp_path / "out", None, None) == "RUNNING"
        long_ago = time.time() - 600
        os.utime(tmp_path / "out" / ".owner", (long_ago, long_ago))
        assert state_of(tmp_path / "out", None, None) == "stopped"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with open_run(tmp_path / "slurm", command="test", settings={}):
        assert state_of(tmp_path / "slurm", None, None) == "stopped"  # the queue would know it


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plan\.json does not exist; expected the output_dir of slurm\.launch"):
        study_status(tmp_path)
