"""The GPU measurements without a GPU: step selection, results kept after a stop, checks before the first step."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import is_done, run_step
from benchmarks.gpu.environment import (
    ROOM_TO_REHEARSE,
    check_machine,
    check_modules,
    check_writable,
    child_environment,
)
from benchmarks.gpu.records import DONE, FAILED, STOPPED, Figures, read_record, record_path, write_record
from benchmarks.gpu.schedule import RESERVE_S, STEPS, allowance, choose_steps
from benchmarks.gpu.testing import count, marked_files
from benchmarks.gpu.training import summarise
from tracking.command import REPOSITORY_ROOT

STEP = STEPS[0]
FACTS = {"step": "x", "rehearsal": True, "git": {"commit": "c", "dirty": False}}


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [
        (STEP.limit_s + RESERVE_S + 1, STEP.limit_s),  # plenty: its own limit
        (STEP.expected_s + RESERVE_S, STEP.expected_s),  # just enough: all that is left
        (STEP.expected_s + RESERVE_S - 1, None),
        (-3, None),
    ],
)
def test_a_step_gets_what_is_left_up_to_its_limit_and_nothing_where_it_does_not_fit(
    left_s: float, expected: float | None
) -> None:
    assert allowance(STEP, left_s=left_s) == expected


def test_a_rehearsal_is_not_cut_short_on_a_busy_machine() -> None:
    assert allowance(STEP, left_s=1000 + RESERVE_S, limited=False) == 1000


def test_steps_come_in_the_tables_order_and_a_misspelt_one_is_named() -> None:
    assert [step.name for step in choose_steps(["deltas", "tests"])] == ["tests", "deltas"]
    default = choose_steps([])
    assert "modes" not in [step.name for step in default]
    assert len(default) <= 9  # files that a person carries home
    with pytest.raises(ValueError, match="step 'splices' is unknown; did you mean 'splice'"):
        choose_steps(["splices"])


def test_a_step_that_is_ended_keeps_its_figures_and_leaves_no_process(tmp_path: Path) -> None:
    path = record_path(tmp_path, "probes")
    step = next(step for step in STEPS if step.name == "probes")
    record = run_step(
        step, path, work_dir=tmp_path, allowed_s=0.3, rehearse=True, facts={**FACTS, "figures": {"rows": [1]}},
        environment=child_environment(rehearse=True),
    )  # fmt: skip
    assert record == read_record(path)
    assert (record["status"], record["figures"]) == (STOPPED, {"rows": [1]})
    assert "were over" in record["reason"]
    commands = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            commands.append(entry.read_bytes())
    assert commands
    assert not any(str(path).encode() in command for command in commands)


def test_a_step_that_fails_leaves_what_it_said(tmp_path: Path) -> None:
    record = run_step(
        replace(STEP, name="absent"), record_path(tmp_path, "absent"), work_dir=tmp_path, allowed_s=60, rehearse=True,
        facts=FACTS, environment=child_environment(rehearse=True),
    )  # fmt: skip
    assert (record["status"], record["reason"]) == (FAILED, "exit status 2")
    assert "invalid choice: 'absent'" in record["traceback"][-1]


def test_figures_are_on_disk_as_soon_as_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "gpu_x.json"
    write_record(path, {**FACTS, "status": "running"})
    figures = Figures(path)
    figures.note(seconds=1.5)
    figures.add("rows", {"shape": "a"})
    figures.add("rows", {"shape": "b"})
    assert json.loads(path.read_text())["figures"] == {"seconds": 1.5, "rows": [{"shape": "a"}, {"shape": "b"}]}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"status": FAILED}, False),
        ({"rehearsal": False}, False),
        ({"git": {"commit": "d", "dirty": False}}, False),
        ({"git": {"commit": "c", "dirty": True}}, False),
    ],
)
def test_only_what_the_same_tree_measured_in_the_same_way_is_kept(changed: dict[str, Any], expected: bool) -> None:
    assert is_done({**FACTS, "status": DONE, **changed}, FACTS) is expected
    assert not is_done(None, FACTS)
    unknown = {**FACTS, "git": {"commit": None, "dirty": None}}
    assert not is_done({**unknown, "status": DONE}, unknown)


def test_a_missing_package_is_one_line_that_says_where_to_get_it_and_nothing_is_written(tmp_path: Path) -> None:
    hidden = (
        "import runpy, sys; sys.modules['datasets'] = None; runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden, "--output-dir", str(tmp_path / "out"), "--rehearse"],
        cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: missing modules: datasets; ") and "benchmarks/gpu/wheels.txt" in line
    assert not (tmp_path / "out").exists()


def test_a_package_of_one_step_leaves_the_others(tmp_path: Path) -> None:
    steps = [replace(STEPS[0], needs=("no_such_module",)), STEPS[1]]
    with pytest.raises(ValueError, match=rf"missing modules: no_such_module; .*, or --steps {STEPS[1].name}$"):
        check_modules(steps)


def test_an_unfit_machine_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torch finds no GPU; .*--rehearse"):
        check_machine({"gpus": []}, ROOM_TO_REHEARSE, work_dir=tmp_path, rehearse=False)
    with pytest.raises(ValueError, match=r"GiB free, 1000000000 are needed; name another --work-dir"):
        check_machine({"gpus": []}, replace(ROOM_TO_REHEARSE, disk=1e9), work_dir=tmp_path, rehearse=True)
    small = replace(ROOM_TO_REHEARSE, gpu=70)
    facts = {"gpus": ["a"], "gpu_free_gib": 40.0}
    assert "40 GiB of the GPU" in check_machine(facts, small, work_dir=tmp_path, rehearse=False)[0]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        check_writable(tmp_path / "file" / "out")


def test_every_file_with_a_test_for_gpus_is_found() -> None:
    assert {"tests/analyze/deltas/test_spectra.py", "tests/train/test_modes.py"} <= set(marked_files())
    assert "tests/merge/test_splice.py" not in marked_files()


def test_results_are_counted_by_outcome() -> None:
    rows = [{"outcome": outcome} for outcome in ("passed", "failed", "passed", "error", "skipped")]
    assert count(rows) == {"num_passed": 2, "num_failed": 1, "num_errors": 1, "num_skipped": 1}


def test_arms_are_compared_without_their_first_steps_and_memory_with_them() -> None:
    def row(arm: str, *seconds: float, peak: int, failure: str | None = None) -> dict[str, Any]:
        steps = [
            {"step_s": s, "generate_s": s / 2, "backward_s": s / 4, "backward_peak_bytes": peak, "reserved_bytes": 9}
            for s in seconds
        ]
        return {"contender": arm, "steps": steps, "out_of_memory": failure, "forecast_bytes": {"a": 150, "b": 100}}

    rows = [
        row("plain TRL", 9, 2, 2, peak=100), row("full", 9, 3, 3, peak=100), row("full", 9, 5, 5, peak=120),
        row("only-late", peak=0, failure="CUDA out of memory."),
    ]  # fmt: skip
    plain, full, late = summarise(rows, 1)
    assert (plain["step_s"], full["step_s"], full["num_steps"]) == (2, 4, 4)
    assert (full["step_ratio_to_plain"], plain["step_ratio_to_full"], full["backward_ratio_to_plain"]) == (2, 0.5, 2)
    assert (full["peak_bytes"], full["forecast_to_peak"]) == (120, 1.25)
    assert (late["out_of_memory"], late["step_s"], late["peak_bytes"]) == ("CUDA out of memory.", None, None)


def test_carried_wheels_are_those_of_the_lock() -> None:
    wheels = [line.split()[0] for line in (REPOSITORY_ROOT / "benchmarks/gpu/wheels.txt").read_text().splitlines()
              if line and not line.startswith("#")]  # fmt: skip
    locked = {line.split()[0] for line in (REPOSITORY_ROOT / "requirements.lock").read_text().splitlines() if line}
    assert len(wheels) > 10 and set(wheels) <= locked
