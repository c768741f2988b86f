"""How are many questions asked at once? Each once, in threads that nobody waits for when the command is stopped.

    calls = Calls(8)
    for key in keys:
        calls.start(key, lambda key=key: ask(key))
    answers = [calls.result(key) for key in keys]      # in any order that the caller likes

The threads are daemons: an interrupted command ends at once, whatever a server still holds back.
"""

import queue
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")

MAX_AT_ONCE = 8
"""Requests to an endpoint: servers answer several as quickly as one."""


class Calls(Generic[Result]):
    """Calls under way or done, by a key each."""

    def __init__(self, num_at_once: int = MAX_AT_ONCE) -> None:
        self._num_at_once = num_at_once
        self._waiting: queue.SimpleQueue[tuple[Future[Result], Callable[[], Result]]] = queue.SimpleQueue()
        self._futures: dict[str, Future[Result]] = {}
        self._threads: list[threading.Thread] = []

    @property
    def keys(self) -> list[str]:
        """Of all calls that were started, in their order."""
        return list(self._futures)

    def start(self, key: str, call: Callable[[], Result]) -> None:
        """Lets a thread make a call; a key that was started before is not started again."""
        if key in self._futures:
            return
        self._futures[key] = Future()
        self._waiting.put((self._futures[key], call))
        if len(self._threads) < self._num_at_once:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def result(self, key: str) -> Result:
        """Waits for a call that was started and returns its result, or raises what it raised."""
        return self._futures[key].result()

    def _work(self) -> None:
        while True:
            future, call = self._waiting.get()
            try:
                result = call()
            except BaseException as error:  # it is raised again in the thread that asks for the result
                future.set_exception(error)
            else:
                future.set_result(result)


def count_reasons(counts: Counter[str]) -> str:
    """Returns reasons in words, the most frequent first, each with its number where there are several."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{reason} ({number})" for reason, number in counts.most_common())
