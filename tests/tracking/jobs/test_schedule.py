"""Parallel jobs: dependency order, threads, failures, and no processes left running."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tracking.command import EXIT_PREEMPTED, Preempted
from tracking.jobs.job import Job
from tracking.jobs.schedule import Schedule
from tracking.jobs.starting import WARM_LOG, Starter, has_gpu
from tracking.run import is_finished

REPOSITORY_ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from tracking.run import open_run
with open_run(Path({directory!r}), command="test", settings={{}}) as run:
    with open({journal!r}, "a") as journal:
        print({name!r}, "begins", time.time(), file=journal, flush=True)
        time.sleep({seconds})
        {action}
        print({name!r}, "ends", time.time(), file=journal, flush=True)
"""
FAIL = 'raise SystemExit("the disk is made of cheese")'


def job(folder: Path, name: str, *, needs: tuple[str, ...] = (), seconds: float = 0, action: str = "") -> Job:
    directory = folder / "out" / name
    program = PROGRAM.format(
        root=str(REPOSITORY_ROOT), directory=str(directory), journal=str(folder / "journal"), name=name,
        seconds=seconds,
        action=action or "pass",
    )  # fmt: skip
    return Job(
        name=name,
        kind="test",
        command=(sys.executable, "-c", program),
        output_dir=directory,
        needs=needs,
    )


def schedule(folder: Path, *jobs: Job, num_parallel: int = 2) -> Schedule:
    (folder / "out").mkdir(exist_ok=True)
    return Schedule(jobs, num_parallel=num_parallel, log_dir=folder / "logs", expected_s={})


def times(folder: Path) -> dict[str, dict[str, float]]:
    """Returns when each job began and ended."""
    found: dict[str, dict[str, float]] = {}
    for line in (folder / "journal").read_text().splitlines():
        name, what, when = line.split()
        found.setdefault(name, {})[what] = float(when)
    return found


def most_at_once(folder: Path) -> int:
    spans = times(folder).values()
    return max(sum(span["begins"] <= moment["begins"] < span["ends"] for span in spans) for moment in spans)


def test_a_job_begins_after_those_it_needs(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "c", needs=("a", "b")),
        job(tmp_path, "b", needs=("a",), seconds=0.2),
        job(tmp_path, "a", seconds=0.2),
    ]
    seconds = schedule(tmp_path, *jobs).run()
    spans = times(tmp_path)
    assert spans["a"]["ends"] <= spans["b"]["begins"]
    assert spans["b"]["ends"] <= spans["c"]["begins"]
    assert set(seconds) == {"a", "b", "c"}
    assert all(is_finished(entry.output_dir) for entry in jobs)


def test_as_many_jobs_run_side_by_side_as_asked_for(tmp_path: Path) -> None:
    schedule(tmp_path, *[job(tmp_path, name, seconds=0.3) for name in "abcde"], num_parallel=2).run()
    assert set(times(tmp_path)) == set("abcde")
    assert most_at_once(tmp_path) == 2


def test_the_cores_are_shared_out_to_the_jobs_up_to_the_limit_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = "import os; print('threads', os.environ['OMP_NUM_THREADS'], flush=True)"
    for name, limit, expected in (("a", "", None), ("b", "1", 1), ("c", "4,2", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
        schedule(tmp_path, job(tmp_path, name, action=tell), num_parallel=1).run()
        told = f"threads {expected or len(os.sched_getaffinity(0))}\n"
        assert told in (tmp_path / "logs" / f"{name}.log").read_text()


def test_a_failure_is_reported_with_its_log_and_the_running_ones_end(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "bad", seconds=0.2, action=FAIL),
        job(tmp_path, "slow", seconds=1.5),
        job(tmp_path, "after", needs=("bad",)),
        job(tmp_path, "never-begun"),
    ]
    with pytest.raises(RuntimeError, match=r"bad failed; the end of .*bad\.log:(\n.*)*the disk is made of cheese"):
        schedule(tmp_path, *jobs).run()
    assert "ends" in times(tmp_path)["slow"]
    assert is_finished(jobs[1].output_dir)
    assert set(times(tmp_path)) == {"bad", "slow"}


def test_finished_jobs_are_not_run_again_and_failed_ones_are(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    fail_once = f"Path({str(mended)!r}).exists() or sys.exit('not yet')"
    jobs = [job(tmp_path, "a"), job(tmp_path, "b", needs=("a",), action=fail_once)]
    with pytest.raises(RuntimeError, match="b failed"):
        schedule(tmp_path, *jobs).run()
    mended.touch()
    assert set(schedule(tmp_path, *jobs).run()) == {"b"}
    assert schedule(tmp_path, *jobs).run() == {}
    begun = re.findall(r"^(\w) begins", (tmp_path / "journal").read_text(), re.MULTILINE)
    assert begun == ["a", "b", "b"]


def test_jobs_end_with_a_scheduler_that_is_killed(tmp_path: Path) -> None:
    child = job(tmp_path, "child", seconds=60)
    program = f"""
import sys
sys.path.insert(0, {str(REPOSITORY_ROOT)!r})
from pathlib import Path
from tracking.jobs.job import Job
from tracking.jobs.schedule import Schedule
job = Job(name="child", kind="test", command={child.command!r}, output_dir=Path({str(child.output_dir)!r}))
Schedule([job], num_parallel=1, log_dir=Path({str(tmp_path / "logs")!r}), expected_s={{}}).run()
"""
    (tmp_path / "out").mkdir()
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "journal").exists)
    pid = int(re.findall(r'"pid": (\d+)', (child.output_dir / "run.json").read_text())[-1])
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_alive(pid))
    assert "ends" not in times(tmp_path)["child"]


def test_sigterm_is_passed_on_and_waited_for_and_nothing_further_begins(tmp_path: Path) -> None:
    saves = f"""
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(0.5)
    Path({str(tmp_path / "saved")!r}).touch()
    sys.exit({EXIT_PREEMPTED})
signal.signal(signal.SIGTERM, save)
Path({str(tmp_path / "begun")!r}).touch()
time.sleep(60)
"""
    later = job(tmp_path, "later", needs=("saving",))
    program = f"""
import sys
sys.path.insert(0, {str(REPOSITORY_ROOT)!r})
from pathlib import Path
from tracking.jobs.job import Job
from tracking.jobs.schedule import Schedule
out = Path({str(tmp_path)!r})
jobs = [
    Job(name="saving", kind="a", command=(sys.executable, "-c", {saves!r}), output_dir=out / "a"),
    Job(name="later", kind="b", command={later.command!r}, output_dir=out / "b", needs=("saving",)),
]
Schedule(jobs, num_parallel=2, log_dir=Path({str(tmp_path / "logs")!r}), expected_s={{}}).run()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "begun").exists)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=15) == EXIT_PREEMPTED
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "journal").exists()


def test_a_job_that_was_told_to_stop_has_not_failed(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", action=f"raise SystemExit({EXIT_PREEMPTED})"), job(tmp_path, "b", needs=("a",))]
    with pytest.raises(Preempted, match="0 of 2 steps done"):
        schedule(tmp_path, *jobs).run()


def wait_for(condition: Callable[[], bool], *, patience_s: float = 15.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """True for a running process, but not for a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_shell_line_can_be_typed(tmp_path: Path) -> None:
    entry = Job(name="a", kind="a", command=(sys.executable, "-m", "x.y", "--name", "a b"), output_dir=tmp_path)
    assert entry.shell == "python -m x.y --name 'a b'"
    assert Job(name="a", kind="a", command=("accelerate", "launch"), output_dir=tmp_path).shell == "accelerate launch"


def test_the_job_at_the_head_of_the_longest_chain_begins_first(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "alone"),
        job(tmp_path, "head"),
        job(tmp_path, "middle", needs=("head",)),
        job(tmp_path, "end", needs=("middle", "alone")),
    ]
    (tmp_path / "out").mkdir()
    Schedule(jobs, num_parallel=1, log_dir=tmp_path / "logs", expected_s={"test": 1.0}).run()
    begun = re.findall(r"^(\w+) begins", (tmp_path / "journal").read_text(), re.MULTILINE)
    assert begun == ["head", "alone", "middle", "end"]


@pytest.fixture
def without_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Two jobs that would be forks of a warm process, which fails to import its first library."""
    (tmp_path / "accelerate.py").write_text("raise ImportError('damaged')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY_ROOT}")
    command = (sys.executable, "-m", "train.verify", "--help")
    return [Job(name=name, kind="a", command=command, output_dir=tmp_path / name) for name in ("a", "b")]


@pytest.mark.skipif(has_gpu(), reason="on a machine with a GPU jobs start cold")
def test_the_end_of_the_imports_is_waited_for_only_once(tmp_path: Path, without_libraries: list[Job]) -> None:
    with closing(
        Starter(without_libraries, environment=os.environ, log_dir=tmp_path, warm_start=True, say=print)
    ) as starter:
        assert select.select(starter.pending(), [], [], 60)[0]  # readable until it is read
        assert starter.pending() == []


@pytest.mark.skipif(has_gpu(), reason="on a machine with a GPU jobs start cold")
def test_without_a_warm_process_jobs_start_cold(
    tmp_path: Path, without_libraries: list[Job], capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = without_libraries
    assert set(Schedule(jobs, num_parallel=2, log_dir=tmp_path / "logs", expected_s={}).run()) == {"a", "b"}
    assert capfd.readouterr().err.count("the warm process ended; every job imports its libraries itself") == 1
    assert "damaged" in (tmp_path / "logs" / WARM_LOG).read_text()
    assert "usage" in (tmp_path / "logs" / "a.log").read_text().lower()
