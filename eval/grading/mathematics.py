"""Are two mathematical expressions equal? Runs `symbolic.py` in separate processes with a hard time limit.

Some expressions never finish, within a single call that no Python time limit can interrupt. A judge is therefore a
child process that the kernel ends (SIGALRM with its default action); the next question gets a new one. Threads may ask
concurrently: each has a judge to itself until it is answered, at most MAX_JUDGES per process; a forked process starts
its own. If a judge is killed from outside, it is replaced and the question is asked once more.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading

from tracking.command import REPOSITORY_ROOT

LIMIT_S = 5.0
"""Time limit of one question."""
MARGIN_S = 5.0
"""Additional time after which the parent kills a judge that the kernel did not end, such as a stopped one."""
START_LIMIT_S = 120.0
MEMORY_BYTES = 4 * 2**30
MAX_JUDGES = 4
READY = b"ready\n"
JUDGE = (sys.executable, "-m", "eval.grading.worker")


class _Judge:
    """One child process, used by one thread at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            JUDGE,
            cwd=REPOSITORY_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # no buffered data that a fork would copy
        )
        _started.append(self)
        if self._read(START_LIMIT_S) != READY:
            self.end()
            raise RuntimeError(
                f"the judge of mathematics did not start (exit status {self.process.returncode}); "
                f"see why with: {sys.executable} -m eval.grading.worker"
            )

    def ask(self, answer: str, gold: str) -> bool | None:
        """Returns the verdict, or None if there is none in time.

        Raises:
            ChildProcessError: if the process ended for a reason other than its time limit.
        """
        assert self.process.stdin is not None
        message = json.dumps([answer, gold]).encode() + b"\n"
        try:
            while message:
                message = message[self.process.stdin.write(message) :]
            line = self._read(LIMIT_S + MARGIN_S)
        except BrokenPipeError:
            line = b""
        if line:
            verdict: bool | None = json.loads(line)
            return verdict
        self.end()
        if line is None or self.process.returncode == -signal.SIGALRM:
            return None
        raise ChildProcessError(f"the judge of mathematics ended with status {self.process.returncode}")

    def end(self) -> None:
        """Kills the process if it still runs, and waits for it."""
        self.process.kill()
        self.process.wait()
        self.close()
        _started.remove(self)

    def close(self) -> None:
        """Closes the parent's ends of the pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, limit_s: float) -> bytes | None:
        """Returns the next line; an empty one if the process has ended, None on timeout."""
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        if not poll.poll(limit_s * 1000):
            return None
        line: bytes = self.process.stdout.readline()
        return line


_started: list[_Judge] = []
_idle: list[_Judge] = []
_places = threading.BoundedSemaphore(MAX_JUDGES)


def equal_expressions(answer: str, gold: str) -> bool | None:
    """Returns whether two expressions are equal; None if the gold does not parse or time runs out.

    Safe to call from several threads and processes. Once a judge is free, the verdict takes at most LIMIT_S, or twice
    LIMIT_S + MARGIN_S if judges are stopped or killed.
    """
    with _places:
        for is_repeated in (False, True):
            judge = _Judge() if is_repeated else _free_judge()
            try:
                verdict = judge.ask(answer, gold)
            except ChildProcessError:
                continue
            if judge in _started:
                _idle.append(judge)
            return verdict
    return None


def _free_judge() -> _Judge:
    try:
        return _idle.pop()
    except IndexError:
        return _Judge()


def _forget_judges() -> None:
    """Forgets the parent's judges after a fork, so that they still end with the parent."""
    global _places
    for judge in _started:
        judge.close()
    _started.clear()
    _idle.clear()
    _places = threading.BoundedSemaphore(MAX_JUDGES)


os.register_at_fork(after_in_child=_forget_judges)


def _judge(answer: str, gold: str) -> bool | None:
    from eval.grading.symbolic import judge

    return judge(answer, gold)


def serve() -> None:
    """Judges one pair per line until its input closes."""
    from eval.grading import symbolic  # noqa: F401  (before the time limit starts)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for inherited in (signal.SIGALRM, signal.SIGINT):  # a parent that ignores them (a shell's `&`) passes that on
        signal.signal(inherited, signal.SIG_DFL)
    print(READY.decode(), end="", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            verdict = _judge(*json.loads(line))
        except (MemoryError, RecursionError):
            verdict = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), flush=True)
