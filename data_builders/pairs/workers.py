"""How do several processes share a long list of work? Results come in order, and memory does not grow.

Work is opened once in every process (what it needs is loaded there) and then called for one item after another. No
process is further ahead than `PREFETCH` of the result that is wanted next. Workers end with the process that started
them, however that ends.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import Any, NamedTuple, TypeVar

from tracking.command import raised_by_us

PREFETCH = 4
"""Chunks of items that each process may be ahead of the one whose results are wanted next."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def work_through(
    open_work: Callable[..., Callable[[Item], Result]],
    arguments: tuple[Any, ...],
    items: Iterable[Item],
    *,
    num_workers: int,
    chunk_size: int = 1,
) -> Iterator[Result]:
    """Yields the result of every item, in their order.

    Args:
        open_work: returns the work; a function of a module, called once in every process.
        arguments: what it is called with.
        items: what the work is called with, one by one; taken as they are needed.
        num_workers: 1: everything happens in this process.
        chunk_size: items that go to a process together; more than one where each takes but milliseconds.

    Raises:
        ValueError: a person's mistake that a process found, with its text.
        RuntimeError: where a process was killed.
    """
    if num_workers < 2:
        yield from map(open_work(*arguments), items)
        return
    pool = ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_open_worker, initargs=(open_work, arguments)
    )
    waiting: deque[Future[list[Any]]] = deque()
    try:
        remaining = iter(items)
        while chunk := list(islice(remaining, chunk_size)):
            with _deaf_to_interrupts():
                waiting.append(pool.submit(_work_in_worker, chunk))
            if len(waiting) >= PREFETCH * num_workers:
                yield from _results(waiting.popleft())
        while waiting:
            yield from _results(waiting.popleft())
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, as happens where memory runs out; start again with fewer processes "
            "(--num-workers)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started meanwhile inherit that SIGINT is blocked; the parent hears it afterwards and ends the pool."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: dict[str, Callable[[Any], Any]] = {}
"""A worker process's work, set when it starts."""


def _open_worker(open_work: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _worker["work"] = open_work(*arguments)
    except ValueError as error:
        if not raised_by_us(error):
            raise
        mistake = _Mistake(str(error))
        _worker["work"] = lambda item: mistake


def _end_with_parent() -> None:
    """Ends this process when the one that started it is killed; it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


class _Mistake(NamedTuple):
    """A person's mistake that a worker found; as an exception it would be told with the pool's own frames."""

    text: str


def _work_in_worker(chunk: list[Any]) -> list[Any]:
    results: list[Any] = []
    try:
        results += map(_worker["work"], chunk)
    except ValueError as error:
        if not raised_by_us(error):
            raise
        results.append(_Mistake(str(error)))
    return results


def _results(future: Future[list[Any]]) -> Iterator[Any]:
    for result in future.result():
        if isinstance(result, _Mistake):
            raise ValueError(result.text)
        yield result
