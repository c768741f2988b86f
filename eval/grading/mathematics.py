"""Are two mathematical expressions equal? Runs math-verify in separate processes with a hard time limit.

Some expressions never finish, within a single call that no Python time limit can interrupt. A judge is therefore a
child process that the kernel ends (SIGALRM with its default action); the next question gets a new one. Threads may ask
concurrently: each has a judge to itself until it is answered, at most MAX_JUDGES per process; a forked process starts
its own. If a judge is killed from outside, it is replaced and the question is asked once more.
"""

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
from typing import Any

from eval.grading.latex import in_ascii, unwrapped
from tracking.command import REPOSITORY_ROOT

LIMIT_S = 5.0
"""Time limit of one question."""
MARGIN_S = 5.0
"""Additional time after which the parent kills a judge that the kernel did not end, such as a stopped one."""
START_LIMIT_S = 120.0
MEMORY_BYTES = 4 * 2**30
MAX_JUDGES = 4
POINT_DIGITS, POINT_TOLERANCE = 30, 1e-9
FLOAT_DECIMALS = 12
"""Places to which a decimal must equal an irrational number; math-verify's 6 accept 1.414214 for a root of 2."""
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
    """Compares two expressions as `$…$` only: bare LaTeX, or numbers within text, are not searched for."""
    from math_verify import LatexExtractionConfig, parse, verify

    def parsed(text: str) -> list[Any]:
        expressions: list[Any] = parse(
            text,
            [LatexExtractionConfig()],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
        return expressions

    ours, theirs = _prepared(answer, gold)
    right = parsed(theirs)
    if not right:
        return None
    if "answer" in ours.casefold():
        return False  # math-verify would search the text for some formula
    answers = parsed(ours)
    if "%" not in ours + theirs and len(answers) == len(right) == 1 and _differ(answers[0], right[0]):
        return False
    return bool(
        verify(right, answers, float_rounding=FLOAT_DECIMALS, allow_set_relation_comp=True, timeout_seconds=None)
    )


def _differ(answer: Any, gold: Any) -> bool:
    """True if two formulas differ in value at a point; faster than failing to simplify their difference."""
    from sympy import Expr, Rational  # type: ignore[import-untyped]

    if not all(isinstance(side, Expr) and not side.is_Symbol for side in (answer, gold)):
        return False
    symbols = sorted(answer.free_symbols | gold.free_symbols, key=str)
    point = {symbol: Rational(37 + 16 * number, 29 + 2 * number) for number, symbol in enumerate(symbols)}
    try:
        first, second = (complex(side.subs(point).evalf(POINT_DIGITS)) for side in (answer, gold))
    except (TypeError, ValueError, ArithmeticError):
        return False
    return abs(first - second) > POINT_TOLERANCE * max(1.0, abs(first), abs(second))


_COLUMN = re.compile(r"\\begin\{([pb]matrix)\}([^&]*?)\\end\{\1\}")
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ]*\})?")


def _prepared(answer: str, gold: str) -> tuple[str, str]:
    """Rewrites both sides so that math-verify reads them correctly.

    It ignores case, so `R^2 - r^2` would be 0: if a letter occurs in both cases, the upper-case one is renamed. It
    considers a column vector different from a tuple: if only one side is a column, it becomes a tuple.
    """
    sides = [_as_one_formula(answer), _as_one_formula(gold)]
    columns = [_COLUMN.fullmatch(side) for side in sides]
    if (columns[0] is None) != (columns[1] is None):
        sides = [_as_tuple(column[2]) if column else side for side, column in zip(sides, columns, strict=True)]
    letters = set(re.findall("[A-Za-z]", "".join(_COMMAND.sub(" ", side) for side in sides)))
    for letter in sorted(letters):
        if letter.isupper() and letter.lower() in letters:
            own = re.compile(rf"\\[A-Za-z]+|{letter}(?!_)")
            sides = [
                own.sub(lambda found: f"{found.group()}_{{99}}" if len(found.group()) == 1 else found.group(), side)
                for side in sides
            ]
    return f"${sides[0]}$", f"${sides[1]}$"


def _as_one_formula(text: str) -> str:
    """Returns `5, 6` for `$5$ or $6$`: one formula on one line, so that no part of the text is picked out."""
    text = _BOUNDS.sub(" ", in_ascii(unwrapped(text)))
    return _CONJUNCTION.sub(", ", text).replace("\n", " ").strip()


_BOUNDS = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]")
_CONJUNCTION = re.compile(r",?\s(?:or|and)\s")


def _as_tuple(rows: str) -> str:
    entries = (row.strip() for row in re.split(r"\\\\+", rows))
    return f"({', '.join(entry for entry in entries if entry)})"


def serve() -> None:
    """Judges one pair per line until its input closes."""
    import math_verify  # noqa: F401  (before the time limit starts)

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
