"""A signal while vLLM's real engine starts: the command ends, and with it every process that it started."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_builders.prompt_sets.prompts import Prompt, write_prompts
from tracking.command import EXIT_PREEMPTED, REPOSITORY_ROOT
from tracking.offspring import MARK

pytestmark = pytest.mark.vllm

START_LIMIT_S = 400.0


def descendants(root: int) -> dict[int, str]:
    """Returns the processes below one, with their command lines."""
    parents, words = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:  # A process may end between the two reads: it is then in neither table.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)], words[int(entry.name)] = parent, command
    found: dict[int, str] = {}
    layer = {root}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer}
        found |= {child: words[child] for child in layer}
    return found


def mark_of(process: int) -> bytes:
    """Returns what tells the offspring of one command from another's."""
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    (mark,) = [variable for variable in variables if variable.startswith(f"{MARK}=".encode())]
    return mark


def marked(mark: bytes) -> list[int]:
    """Returns every process that bears a mark, whoever its parent is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    ("number", "awaited", "status", "said"),
    [
        (signal.SIGINT, "spawn_main", 130, "interrupted; the same command continues where it stopped"),
        (signal.SIGTERM, "Worker", EXIT_PREEMPTED, "stopped by SIGTERM; the same command continues from there"),
    ],
    ids=["Ctrl-C, at the engine's first process", "SIGTERM, at its last"],
)
def test_a_signal_while_the_engine_starts_leaves_no_process(
    number: signal.Signals,
    awaited: str,
    status: int,
    said: str,
    wide_headed_pocket: Path,
    pocket_training: object,
    tmp_path: Path,
) -> None:
    """On one core; on the other, the model of the next tests is taught meanwhile."""
    write_prompts(
        tmp_path, "test",
        [Prompt(id="a", ability="reasoning", question="What is 1 + 1 ?", answer="2", answer_kind="number")],
    )  # fmt: skip
    words = ["eval.run", "--engine", "vllm", "--model", str(wide_headed_pocket), "--tasks", f"{tmp_path}:test",
             "--output-dir", str(tmp_path / "out"), "--max-new-tokens", "4", "--dtype", "float32"]  # fmt: skip
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, as do theirs
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=REPOSITORY_ROOT, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ours)
    deadline = time.monotonic() + START_LIMIT_S
    family: dict[int, str] = {}
    while not any(awaited in words for words in family.values()):
        assert process.poll() is None and time.monotonic() < deadline, f"the engine has no {awaited}"
        time.sleep(0.05)
        family = descendants(process.pid)
    mark = mark_of(next(child for child, words in family.items() if awaited in words))
    assert marked(mark)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status, printed
    assert said in printed
    assert marked(mark) == []
    deadline = time.monotonic() + 10  # multiprocessing's own tracker tidies up once its parent has ended
    while (left := {n: words for n, words in family.items() if Path(f"/proc/{n}").exists()}) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert left == {}
    assert '"status": "interrupted"' in (tmp_path / "out" / "run.json").read_text()
