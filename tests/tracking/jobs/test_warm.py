"""Forks of the warm process: they run, end, fail and are signalled as ordinary children of the scheduler."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import flags
from tracking.command import EXIT_PREEMPTED, REPOSITORY_ROOT
from tracking.jobs.starting import WARM_LOG, ForkedProcess, WarmProcess, has_gpu
from tracking.run import is_finished

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
MODULES = {
    "succeeds": "print('said')",
    "shows": """
import os, sys, threading
import torch
import tracking.command
print(sys.argv[1:], os.getcwd(), __name__, __spec__.name, sys.argv[0] == __file__)
print(os.environ["HELD"], torch.get_num_threads(), threading.active_count(), len(os.listdir("/proc/self/task")))
print("said to stderr", file=sys.stderr)
""",
    "draws": "import random, torch\nimport numpy as np\nprint(torch.rand(1).item(), random.random(), np.random.rand())",
    "preempted": "raise SystemExit(75)",
    "mistaken": "raise SystemExit('a mistake')",
    "broken": "raise KeyError('lost')",
    "crashes": "import os; os.kill(os.getpid(), 11)",
    "threaded": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.3), print('thread ended'))).start()",
    "registered": "import atexit\natexit.register(print, 'at exit')",
    "sleeps": "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)",
    "saves": "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    "print('ready', flush=True)\ntime.sleep(600)",
    "interrupted": "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(600)\n"
    "except KeyboardInterrupt:\n    raise SystemExit(130)",
}
"""Module -> its text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def start_warm(folder: Path) -> WarmProcess:
    path = os.pathsep.join((str(folder), str(REPOSITORY_ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "HELD": "a b", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children ignore SIGINT
    warm = WarmProcess(environment, folder / "warm.log")
    signal.signal(signal.SIGINT, previous)
    wait_for(lambda: warm.is_ready() or warm.has_ended)
    assert not warm.has_ended, (folder / "warm.log").read_text()
    return warm


@pytest.fixture(scope="module")
def warm(folder: Path) -> Iterator[WarmProcess]:
    process = start_warm(folder)
    yield process
    process.end()


def begin(warm: WarmProcess, log: Path, *words: str) -> ForkedProcess:
    with log.open("ab") as file:
        process = warm.fork(list(words), file)
    assert process is not None
    return process


def status_of(process: ForkedProcess) -> int | None:
    wait_for(lambda: process.poll() is not None)
    return process.returncode


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def parent_of(pid: int) -> int:
    return int(re.findall(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("module", "status", "printed"),
    [
        ("succeeds", 0, "said\n"),
        ("preempted", EXIT_PREEMPTED, ""),
        ("mistaken", 1, "a mistake\n"),
        ("broken", 1, "KeyError: 'lost'\n"),
        ("crashes", -signal.SIGSEGV, ""),
        ("threaded", 0, "thread ended\n"),
        ("registered", 0, "at exit\n"),
    ],
)
def test_a_fork_ends_as_a_new_process_does(
    module: str, status: int, printed: str, warm: WarmProcess, folder: Path, tmp_path: Path
) -> None:
    new = subprocess.run(
        [sys.executable, "-m", module], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    forked = status_of(begin(warm, tmp_path / "log", module))
    assert forked == new.returncode == status
    for output in ((tmp_path / "log").read_text(), new.stdout):
        assert output.endswith(printed) and bool(output) == bool(printed)


def test_a_fork_has_its_arguments_directory_environment_and_log_and_one_thread(
    warm: WarmProcess, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text("earlier\n")
    assert status_of(begin(warm, tmp_path / "log", "shows", "--x", "ü ' \"")) == 0
    lines = (tmp_path / "log").read_text().splitlines()
    words = ["--x", "ü ' \""]
    assert sorted(lines) == sorted(
        ["earlier", f"{words} {Path.cwd()} __main__ shows True", "a b 1 1 1", "said to stderr"]
    )


def test_forks_without_a_seed_draw_different_numbers(warm: WarmProcess, tmp_path: Path) -> None:
    for _ in range(2):
        assert status_of(begin(warm, tmp_path / "log", "draws")) == 0
    assert len({float(number) for number in (tmp_path / "log").read_text().split()}) == 6


def test_a_fork_is_a_child_of_its_starter_and_in_its_process_group(warm: WarmProcess, tmp_path: Path) -> None:
    process = begin(warm, tmp_path / "log", "sleeps")
    wait_for((tmp_path / "log").read_text)
    assert int((tmp_path / "log").read_text()) == process.pid
    assert parent_of(process.pid) == os.getpid() and os.getpgid(process.pid) == os.getpgid(0)
    process.terminate()
    assert status_of(process) == -signal.SIGTERM
    process.terminate()  # has no effect


@pytest.mark.parametrize(
    ("module", "number", "status"),
    [
        ("saves", signal.SIGTERM, EXIT_PREEMPTED),
        ("interrupted", signal.SIGINT, 130),
        ("sleeps", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_fork_gets_signals_itself(
    module: str, number: signal.Signals, status: int, warm: WarmProcess, tmp_path: Path
) -> None:
    process = begin(warm, tmp_path / "log", module)
    wait_for((tmp_path / "log").read_text)
    os.kill(process.pid, number)
    assert status_of(process) == status


def test_what_is_longer_than_a_message_is_not_forked(warm: WarmProcess, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        assert warm.fork(["succeeds", "x" * 200_000], file) is None
        assert warm.fork(["succeeds", "x" * 100_000], file) is not None


SCHEDULER = """
import sys
from pathlib import Path
from tracking.jobs.job import Job
from tracking.jobs.schedule import Schedule
out = Path({out!r})
jobs = [
    Job(name=name, kind=name, command=(sys.executable, "-m", *words), output_dir=out / name, needs=needs)
    for (name, *words), needs in {jobs!r}
]
Schedule(jobs, num_parallel=2, log_dir=out / "logs", expected_s={{}}, warm_start={warm_start!r}).run()
"""


@pytest.mark.skipif(has_gpu(), reason="on a machine with a GPU jobs start cold")
def test_an_arm_and_its_evaluation_are_the_same_bytes_warm_killed_and_cold(pocket_study: Path, tmp_path: Path) -> None:
    """Warm, the arm is stopped with SIGTERM, and the scheduler is killed during the evaluation; both are continued."""
    settings = pocket_study.parent / "settings"

    def jobs(out: Path) -> list[tuple[list[str], tuple[str, ...]]]:
        shared = {"prompts": pocket_study / "data" / "data", "model_name_or_path": pocket_study / "sft" / "final"}
        arm = ["arm", "train.grpo", *flags(config=settings / "grpo.yaml", **shared, seed=0, freeze="mid")]
        scored = {"model": out / "arm" / "final", "tasks": f"{shared['prompts']}:test"}
        evaluation = ["eval", "eval.run", *flags(config=settings / "eval.yaml", **scored)]
        ends = [[*words, *flags(output_dir=out / words[0])] for words in (arm, evaluation)]
        return [(ends[0], ()), (ends[1], ("arm",))]

    def start(out: Path, *, warm_start: bool) -> "subprocess.Popen[str]":
        program = SCHEDULER.format(out=str(out), jobs=jobs(out), warm_start=warm_start)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", program], cwd=REPOSITORY_ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )

    def run(out: Path, *, warm_start: bool) -> None:
        process = start(out, warm_start=warm_start)
        said = process.communicate()[1]
        assert process.returncode == 0, said

    cold, warm = tmp_path / "cold", tmp_path / "warm"
    for name, file, number, status in (
        ("arm", "proofs.jsonl", signal.SIGTERM, EXIT_PREEMPTED),
        ("eval", "records.jsonl", signal.SIGKILL, -signal.SIGKILL),
    ):
        process = start(warm, warm_start=True)
        wait_for(lambda path=warm / name / file: path.is_file() and path.stat().st_size > 0)
        pid = int(re.findall(r'"pid": (\d+)', (warm / name / "run.json").read_text())[-1])
        assert parent_of(pid) == process.pid
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == status
        wait_for(lambda pid=pid: not is_alive(pid))
        assert not is_finished(warm / name)
    run(warm, warm_start=True)
    run(cold, warm_start=False)
    assert not (cold / "logs" / WARM_LOG).exists() and (warm / "logs" / WARM_LOG).exists()
    for name in (
        "arm/final/model.safetensors", "arm/checkpoints/checkpoint-4/optimizer.pt", "arm/freeze_table.csv",
        "eval/records.jsonl", "eval/scores.csv",
    ):  # fmt: skip
        assert (warm / name).read_bytes() == (cold / name).read_bytes(), name


def test_forks_outlive_the_warm_process_which_then_takes_no_more(warm: WarmProcess, tmp_path: Path) -> None:
    """The last test here: it ends the warm process of the others, since another one would import for seconds."""
    process = begin(warm, tmp_path / "log", "sleeps")
    wait_for((tmp_path / "log").read_text)
    os.kill(warm._process.pid, signal.SIGKILL)
    with (tmp_path / "log").open("ab") as file:
        assert warm.fork(["succeeds"], file) is None
    assert warm.has_ended and process.poll() is None
    process.terminate()
    assert status_of(process) == -signal.SIGTERM
