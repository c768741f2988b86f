"""How far is a command, and how long will it take? A bar on a terminal, a line every half minute elsewhere.

    for batch in progress(batches, label="answers", unit="batch"): …
    say("loading outputs/pocket/sft/final")

Everything goes to standard error, so that standard output holds results alone; of several processes only the main one
writes.
"""

import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

from tracking.command import is_main_process

PROGRESS_FILE = "progress.json"
"""`{"step": n, "num_steps": m}` in the output directory of a long command, for whoever started it."""
FIRST_LINE_S = 10.0
"""How long work goes on without a terminal before its first line: what is done sooner needs none."""
LINE_INTERVAL_S = 30.0
STAYS_S = 2.0
"""How long work takes whose bar stays on the terminal when it is done."""
BYTES = "B"
"""The unit of work that is counted in bytes."""
WEIGHT = ""
"""The unit of work whose items are weighted: only its share and its time can be told."""

Item = TypeVar("Item")


class Progress:
    """How far one loop is.

    Without a terminal a thread writes the lines, so that an item of minutes leaves no silence:

        answers: 12 of 47 batches, 2.1 s per batch, 1m 14s left
    """

    def __init__(self, *, label: str, total: float | None = None, unit: str = "item", done: float = 0) -> None:
        """Starts.

        Args:
            label: what is being done.
            total: how many units there are; None where that is not known.
            unit: what is counted, in the singular, or `BYTES` or `WEIGHT`.
            done: how much an earlier attempt did.
        """
        self.total = total
        self._label, self._unit = label, unit
        self._first, self._done = done, done
        self._begin = time.monotonic()
        self._ended = threading.Event()
        self._bar: tqdm[Any] | None = None
        self._writer: threading.Thread | None = None
        if not is_main_process() or total == 0:
            return
        if sys.stderr.isatty():
            style = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}" if unit == WEIGHT else None
            self._bar = tqdm(
                total=total, initial=done, desc=label, unit=unit, unit_scale=unit == BYTES, dynamic_ncols=True,
                bar_format=style,
            )  # fmt: skip
        else:
            self._writer = threading.Thread(target=self._write_lines, name=f"progress of {label}", daemon=True)
            self._writer.start()

    def advance(self, amount: float = 1) -> None:
        """Counts what has been done since the last call."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)

    def reach(self, done: float) -> None:
        """Counts so much in all; less than before changes nothing."""
        if done > self._done:
            self.advance(done - self._done)

    def close(self) -> None:
        """Writes no more; where lines were written, a last one says how long all of it took."""
        was_open = not self._ended.is_set()
        self._ended.set()
        elapsed_s = time.monotonic() - self._begin
        if self._bar is not None:
            self._bar.leave = elapsed_s > STAYS_S
            self._bar.close()
        whole = self.total is None or self._done >= self.total
        if self._writer is not None and was_open and whole and elapsed_s > FIRST_LINE_S:
            _write(f"{self._label}: {self._amount()} in {format_duration(elapsed_s)}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def line(self) -> str:
        """Returns what is done, the rate and the remaining time."""
        elapsed_s = time.monotonic() - self._begin
        fresh = self._done - self._first
        if not fresh:
            return f"{self._label}: {self._amount()} after {format_duration(elapsed_s)}"
        parts = [self._amount()]
        if self._unit != WEIGHT:
            parts.append(self._rate(fresh / elapsed_s))
        if self.total:
            parts.append(f"{format_duration(max(0.0, self.total - self._done) * elapsed_s / fresh)} left")
        return f"{self._label}: {', '.join(parts)}"

    def _amount(self) -> str:
        if self._unit == WEIGHT:
            return f"{self._done / self.total:.0%}" if self.total else "100%"
        if self._unit == BYTES:
            sizes = [f"{tqdm.format_sizeof(size)}B" for size in (self._done, self.total) if size is not None]
            return " of ".join(sizes)
        counts = " of ".join(f"{count:,.0f}" for count in (self._done, self.total) if count is not None)
        return f"{counts} {plural(self._unit)}"

    def _rate(self, per_second: float) -> str:
        if self._unit == BYTES:
            return f"{tqdm.format_sizeof(per_second)}B/s"
        if per_second >= 1:
            return f"{per_second:.1f} {plural(self._unit)}/s"
        return f"{1 / per_second:.1f} s per {self._unit}"

    def _write_lines(self) -> None:
        wait_s = FIRST_LINE_S
        while not self._ended.wait(wait_s):
            _write(self.line())
            wait_s = LINE_INTERVAL_S


def progress(items: Iterable[Item], *, label: str, total: int | None = None, unit: str = "item") -> Iterator[Item]:
    """Passes items on and shows how many are done; their number is taken from them where they have one."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with Progress(label=label, total=total, unit=unit) as shown:
        for item in items:
            yield item
            shown.advance()


def weighted_progress(items: Iterable[Item], weights: Sequence[float], *, label: str) -> Iterator[Item]:
    """Passes items of unequal cost on and shows the share that is done, each counted by its weight."""
    with Progress(label=label, total=sum(weights), unit=WEIGHT) as shown:
        for item, weight in zip(items, weights, strict=True):
            yield item
            shown.advance(weight)


def say(text: str) -> None:
    """Writes a line of its own, such as `loading MODEL`, from the main process."""
    if is_main_process():
        _write(text)


def _write(line: str) -> None:
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stderr)  # above a bar, where one is shown
    else:
        print(line, file=sys.stderr, flush=True)


def plural(unit: str) -> str:
    """Returns `batches` for `batch`, `replies` for `reply`, `pairs` for `pair`."""
    if unit.endswith("y"):
        return f"{unit[:-1]}ies"
    return f"{unit}es" if unit.endswith(("ch", "s", "x")) else f"{unit}s"


def format_duration(seconds: float) -> str:
    """Returns `1h 02m`, `3m 05s` or `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole}s"


class StatusLine:
    """One line that says where a long command stands: rewritten on a terminal, printed every 20 s elsewhere."""

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
