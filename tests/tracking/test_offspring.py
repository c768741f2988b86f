"""All descendants of a process are ended, also after they were re-parented."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracking.offspring import MARK, Offspring

CHILD = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True); time.sleep(60)"  # noqa: E501


def start_family() -> tuple["subprocess.Popen[str]", int]:
    """Starts a process that starts another one; returns it and the other's number."""
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def runs(number: int) -> bool:
    """True where a process is there and has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("parent_is_gone", [False, True])
def test_children_and_grandchildren_are_ended_and_none_else(parent_is_gone: bool) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    offspring = Offspring()
    with offspring.watching():
        child, grandchild = start_family()
    later = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert MARK not in os.environ
        if parent_is_gone:
            child.kill()
            child.wait()
            assert offspring.alive() == [grandchild]
        else:
            assert sorted(offspring.alive()) == sorted([child.pid, grandchild])
        offspring.end()
        assert not runs(child.pid) and not runs(grandchild)
        assert bystander.poll() is None and later.poll() is None
    finally:
        for process in (bystander, later, child):
            process.kill()
            process.wait()


def test_a_start_that_is_cut_short_leaves_nothing() -> None:
    family: list[int] = []
    with pytest.raises(KeyboardInterrupt), Offspring().watching():
        child, grandchild = start_family()
        family += [child.pid, grandchild]
        raise KeyboardInterrupt
    child.wait()
    deadline = time.monotonic() + 5
    while any(map(runs, family)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(runs, family))
