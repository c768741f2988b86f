"""Asks many questions concurrently, each once, in daemon threads.

    calls = Calls(8)
    for key in keys:
        calls.start(key, lambda key=key: ask(key))
    answers = [calls.result(key) for key in keys]      # in any order

The threads are daemons: an interrupted command ends at once, even while a server has not answered.
"""

import queue
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from eval.judge.reply import CUT, CUT_IN_THOUGHTS

Result = TypeVar("Result")

MAX_AT_ONCE = 8
"""Concurrent requests to an endpoint: servers answer several about as quickly as one."""
MAX_REASONS = 5
"""Reasons named in one line: servers put numbers into theirs."""


class Calls(Generic[Result]):
    """Calls in progress or finished, each with a key."""

    def __init__(self, num_at_once: int = MAX_AT_ONCE) -> None:
        self._num_at_once = num_at_once
        self._waiting: queue.SimpleQueue[tuple[Future[Result], Callable[[], Result]]] = queue.SimpleQueue()
        self._futures: dict[str, Future[Result]] = {}
        self._threads: list[threading.Thread] = []

    @property
    def keys(self) -> list[str]:
        """Keys of all started calls, in order."""
        return list(self._futures)

    def start(self, key: str, call: Callable[[], Result]) -> None:
        """Starts a call in a thread; a key that was already started is ignored."""
        if key in self._futures:
            return
        self._futures[key] = Future()
        self._waiting.put((self._futures[key], call))
        if len(self._threads) < self._num_at_once:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def result(self, key: str) -> Result:
        """Waits for a started call and returns its result or raises its exception."""
        return self._futures[key].result()

    def _work(self) -> None:
        while True:
            future, call = self._waiting.get()
            try:
                result = call()
            except BaseException as error:  # raised again in the thread that requests the result
                future.set_exception(error)
            else:
                future.set_result(result)


def count_reasons(counts: Counter[str], *, hint: str) -> str:
    """Formats reasons, most frequent first, with counts if there are several.

    Args:
        hint: what follows if a reply was cut: the option that raises the limit.
    """
    shown = [f"{reason} ({number})" for reason, number in counts.most_common(MAX_REASONS)]
    if len(counts) > len(shown):
        shown.append(f"{len(counts) - len(shown)} other reasons")
    is_cut = not counts.keys().isdisjoint((CUT, CUT_IN_THOUGHTS))
    return (next(iter(counts)) if len(counts) == 1 else ", ".join(shown)) + (hint if is_cut else "")
