"""A command that fails or is interrupted ends, whatever a library's threads and objects still do."""

import atexit
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tracking.command
from tracking.command import REPOSITORY_ROOT, Preempted, run_command
from tracking.run import open_run


def raise_error(error: BaseException) -> None:
    raise error


ENDS: dict[str, tuple[int, str, Callable[[], object]]] = {
    "interrupted": (130, "interrupted; the same command continues", lambda: raise_error(KeyboardInterrupt())),
    "stopped": (75, "a signal; the same command continues", lambda: raise_error(Preempted("a signal"))),
    "mistaken": (2, "error: a mistake", lambda: raise_error(ValueError("a mistake"))),
    "failed": (1, "error: a failure", lambda: raise_error(RuntimeError("a failure"))),
    "broken": (1, "json.decoder.JSONDecodeError", lambda: json.loads("{")),
}
"""How a command ends -> exit status, what it says, and the cause."""


class Slow:
    """An object that takes long to be freed, as a socket that still has something to send."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __del__(self) -> None:
        time.sleep(self._seconds)


def start(directory: Path, end: str, *, thread_s: float = 0, free_s: float = 0) -> "subprocess.Popen[str]":
    """Starts this file as a command with a thread, as vLLM has one while its engine starts, and an object to free."""
    words = ["-m", "tests.tracking.test_command_end", str(directory / end), end, str(thread_s), str(free_s)]
    return subprocess.Popen(
        [sys.executable, *words], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def check_end(process: "subprocess.Popen[str]", directory: Path, end: str, printed: str) -> None:
    output, errors = process.communicate(timeout=60)
    status, said, _ = ENDS[end]
    assert (process.returncode, output) == (status, printed), errors
    assert said in errors
    state = json.loads((directory / end / "run.json").read_text())
    assert state["status"] == ("interrupted" if end in ("interrupted", "stopped") else "failed")
    assert state["attempts"][0]["end"] is not None


def test_it_ends_whatever_a_thread_does(tmp_path: Path) -> None:
    processes = {end: start(tmp_path, end, thread_s=300) for end in ENDS}
    try:
        for end, process in processes.items():
            check_end(process, tmp_path, end, "said before\n")
    finally:
        for process in processes.values():
            process.kill()


def test_it_ends_although_an_object_takes_long_to_be_freed(tmp_path: Path) -> None:
    with start(tmp_path, "interrupted", free_s=300) as process:
        check_end(process, tmp_path, "interrupted", "said before\ntidied up\n")


def test_a_thread_that_ends_in_time_is_waited_for_and_what_was_registered_is_called(tmp_path: Path) -> None:
    with start(tmp_path, "interrupted", thread_s=0.2) as process:
        check_end(process, tmp_path, "interrupted", "said before\ntidied up\n")


def test_the_program_that_calls_a_command_goes_on() -> None:
    words = (
        "from tests.tracking.test_command_end import make_a_mistake\n"
        "try: make_a_mistake()\n"
        "except SystemExit: print('goes on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr


def make_a_mistake() -> None:
    run_command(lambda: raise_error(ValueError("a mistake")))


def main() -> None:
    directory, end, thread_s, free_s = sys.argv[1:]
    with open_run(Path(directory), command="test", settings={}):
        atexit.register(print, "tidied up")
        ThreadPoolExecutor().submit(time.sleep, float(thread_s))
        print("said before")
        held = Slow(float(free_s))  # as long as the exception's traceback
        ENDS[end][2]()
        del held


if __name__ == "__main__":
    tracking.command.THREADS_S = 1.0
    run_command(main)
