"""The judge of mathematics: asked from threads and forks, killed, stopped and left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

import eval.grading.mathematics
from eval.grading.mathematics import LIMIT_S, MARGIN_S, MAX_JUDGES, equal_expressions
from tracking.command import REPOSITORY_ROOT

ENDLESS = "x+60"
"""A question on which the stand-in sleeps, instead of one from which math-verify would never return."""
SLEEPING_JUDGE = (
    "import time\n"
    "from eval.grading import mathematics\n"
    "judge = mathematics._judge\n"
    f"mathematics._judge = lambda answer, gold: time.sleep(60) if answer == {ENDLESS!r} else judge(answer, gold)\n"
    "mathematics.serve()\n"
)
"""The judge itself, but for one question. A sleep ends as a call does that no Python signal handler could interrupt:
the kernel ends the process."""


def judges() -> list[psutil.Process]:
    """The judge processes that this process has started and that still run."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "eval.grading.worker" in child.cmdline()
    ]


@pytest.fixture
def judge() -> Iterator[psutil.Process]:
    """A judge that has answered and waits for the next question, the only one."""
    for started in list(eval.grading.mathematics._started):
        started.end()
    eval.grading.mathematics._idle.clear()
    assert equal_expressions("1+x", "x+1") is True
    (process,) = judges()
    yield process


def test_threads_get_the_verdicts_on_their_own_questions() -> None:
    questions = [(rf"\frac{{{number}}}{{2}}", str(number // 2)) for number in range(60)]  # right where even
    with ThreadPoolExecutor(12) as pool:
        verdicts = list(pool.map(equal_expressions, *zip(*questions, strict=True)))
    assert verdicts == [number % 2 == 0 for number in range(60)]
    assert 1 < len(judges()) <= MAX_JUDGES


@pytest.mark.slow
def test_a_question_without_end_holds_up_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for started in list(eval.grading.mathematics._started):
        started.end()
    eval.grading.mathematics._idle.clear()
    monkeypatch.setattr(eval.grading.mathematics, "JUDGE", (sys.executable, "-c", SLEEPING_JUDGE))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(equal_expressions, ["1+x"] * 30, ["x+1"] * 30))  # the judges have started
        begin = time.monotonic()
        endless = pool.submit(equal_expressions, ENDLESS, "5")
        others = [pool.submit(equal_expressions, str(number), "5") for number in range(40)]
        assert [other.result() for other in others] == [number == 5 for number in range(40)]
        assert not endless.done()
        assert endless.result() is None
    assert LIMIT_S <= time.monotonic() - begin < LIMIT_S + MARGIN_S
    assert equal_expressions("5", "5") is True
    monkeypatch.undo()
    for started in list(eval.grading.mathematics._started):
        started.end()
    eval.grading.mathematics._idle.clear()


@pytest.mark.cases_slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_judge_that_someone_kills_is_replaced(judge: psutil.Process, kill: signal.Signals) -> None:
    judge.send_signal(kill)
    judge.wait()
    assert equal_expressions("2+2", "4") is True
    (successor,) = judges()
    assert successor.pid != judge.pid


def test_all_judges_killed_at_once_are_replaced() -> None:
    with ThreadPoolExecutor(MAX_JUDGES) as pool:
        list(pool.map(equal_expressions, ["1"] * 40, ["1"] * 40))
    for process in judges():
        process.kill()
    assert [equal_expressions("1/2", "0.5") for _ in range(2 * MAX_JUDGES)] == [True] * 2 * MAX_JUDGES


@pytest.mark.slow
def test_a_judge_that_does_not_answer_in_time_gives_no_verdict(
    judge: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval.grading.mathematics, "LIMIT_S", 0.2)
    monkeypatch.setattr(eval.grading.mathematics, "MARGIN_S", 0.2)
    judge.suspend()
    assert equal_expressions("2+2", "4") is None
    assert not judge.is_running() or judge.status() == psutil.STATUS_ZOMBIE
    monkeypatch.undo()
    assert equal_expressions("2+2", "4") is True


def test_a_fork_does_not_ask_the_judge_of_its_parent(judge: psutil.Process) -> None:
    child = os.fork()
    if child == 0:  # a process of its own from here on: nothing of pytest may run in it
        status = 1
        try:
            right = [equal_expressions(str(number), "3") for number in range(6)]
            status = int(right != [number == 3 for number in range(6)] or judge.pid in {own.pid for own in judges()})
        finally:
            os._exit(status)
    verdicts = [equal_expressions(str(number), "7") for number in range(100)]
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert verdicts == [number == 7 for number in range(100)]
    assert [process.pid for process in judges()] == [judge.pid]


def test_a_spawned_process_asks_a_judge_of_its_own(judge: psutil.Process) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(equal_expressions, [(r"\sqrt{4}", "2"), ("3", "2")]) == [True, False]
    assert judge.is_running()


def test_a_judge_ends_with_its_asker_even_where_a_fork_lives_on() -> None:
    program = (
        "import os, signal, time\n"
        "from eval.grading import mathematics\n"
        "mathematics.equal_expressions('1', '1')\n"
        "fork = os.fork()\n"
        "if fork == 0:\n"
        "    os.close(1)\n"
        "    time.sleep(60)\n"
        "print(mathematics._started[0].process.pid, fork, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    asker = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=60
    )
    judge_pid, fork_pid = map(int, asker.stdout.split())
    try:
        deadline = time.monotonic() + 5
        while psutil.pid_exists(judge_pid) and psutil.Process(judge_pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the judge outlives the process that asked it"
            time.sleep(0.05)
    finally:
        os.kill(fork_pid, signal.SIGKILL)
