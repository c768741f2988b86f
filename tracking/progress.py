"""How far is it, and how long will it take? A bar on a terminal, a sparse line elsewhere."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

PROGRESS_FILE = "progress.json"
"""`{"step": n, "num_steps": m}` in the output directory of a long command, for whoever started it."""

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, label: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Passes items on, with a rate and a remaining time on a terminal and nothing elsewhere."""
    yield from tqdm(items, desc=label, total=total, unit=unit, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def weighted_progress(items: Iterable[Item], weights: Sequence[float], *, label: str) -> Iterator[Item]:
    """Passes items of unequal cost on, with a remaining time that counts each by its weight."""
    style = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(
        total=sum(weights), desc=label, bar_format=style, disable=not sys.stderr.isatty(), dynamic_ncols=True
    ) as bar:
        for item, weight in zip(items, weights, strict=True):
            yield item
            bar.update(weight)


def format_duration(seconds: float) -> str:
    """Returns `1h 02m`, `3m 05s` or `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole}s"


class StatusLine:
    """One line that says where a long command stands: rewritten on a terminal, printed now and then elsewhere."""

    def __init__(self, *, interval_s: float = 20.0) -> None:
        self._interval_s = interval_s
        self._printed_at = -interval_s
        self._terminal = sys.stderr.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._terminal:
            text = text[: shutil.get_terminal_size().columns - 1]  # a line that wraps cannot be rewritten
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(text)
        elif now - self._printed_at >= self._interval_s:
            print(text, file=sys.stderr, flush=True)
            self._printed_at = now

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self._terminal and self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr)
            self._width = 0
        print(text, file=sys.stderr, flush=True)
