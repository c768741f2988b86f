"""Distributes a list of work over several processes, with results in order and bounded memory.

The work function is created once per process (loading what it needs) and then called for one item after another. No
process is more than `PREFETCH` chunks ahead of the next result. Workers end with their parent process, however it ends.
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
"""Chunks that each process may be ahead of the next result."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def work_through(
    open_work: Callable[..., Callable[[Item], Result]],
    arguments: tuple[Any, ...],
    items: Iterable[Item],
    *,
    num_workers: int,
    chunk_size: int = 1,
) -> Iterator[Result]:
    """Yields the result of every item, in order.

    Args:
        open_work: returns the work function; a module-level function, called once per process.
        arguments: arguments of `open_work`.
        items: arguments of the work function; consumed lazily.
        num_workers: number of processes; 1 runs everything in this process.
        chunk_size: items sent to a process together; above 1 if each takes only milliseconds.

    Raises:
        ValueError: a user error found by a worker, with its message.
        RuntimeError: if a process was killed.
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
            "a worker process was killed, possibly for lack of memory; start again with fewer processes (--num-workers)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Blocks SIGINT while processes start, so that they inherit this; afterwards the parent handles it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: dict[str, Callable[[Any], Any]] = {}
"""The work function of a worker process, set when it starts."""


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
    """Ends this process when its parent is killed; otherwise it would wait for work forever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


class _Mistake(NamedTuple):
    """A user error found by a worker; passed as a value, since an exception would show the pool's traceback."""

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
