"""Where would a trajectory lead? A checkpoint whose changes follow the line through the kept steps.

    Ŵ(step) = W_start + ĉ(step) v,    per tensor, v and ĉ from `line.py`

This is RELEX (arXiv 2605.21468): every tensor, a matrix or not, has one direction and one line. Dot products and sums
are computed in fp64, and the result is rounded to the start's dtype (through fp32 for narrower ones). Tensors that no
kept step changed stay the start's bytes.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from merge.trajectories.line import Line, fit_line
from merge.trajectories.restored import RestoredCheckpoint
from merge.trajectories.stack import open_stack
from models.checkpoint import Checkpoint
from models.shards import DTYPES


@dataclass(frozen=True, kw_only=True)
class ExtrapolatedCheckpoint(Checkpoint):
    """A run's start with the change that the observed steps predict for another step.

    `directory`, `config` and `tensors` are the start's.
    """

    observed: tuple[RestoredCheckpoint, ...]
    """In ascending order of steps."""
    step: int
    lines: dict[str, Line] = field(default_factory=dict, repr=False)
    """Per changed tensor that was read so far."""
    _latest: dict[str, memoryview] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def data(self, name: str) -> memoryview:
        """Returns a tensor's bytes.

        Raises:
            ValueError: if a step's file is damaged, or the result is not finite.
        """
        if not any(name in each.record.tensors for each in self.observed):
            return super().data(name)
        with self._lock:
            if name not in self._latest:
                self._latest.clear()
                self._latest[name] = self._extrapolate(name)
            return self._latest[name]

    def _extrapolate(self, name: str) -> memoryview:
        import torch

        dtype = getattr(torch, DTYPES[self.tensors[name].dtype][0])
        result = torch.empty(self.tensors[name].num_bytes // dtype.itemsize, dtype=dtype)
        with open_stack(self._start, self.observed, name) as stack:
            line = fit_line(stack.gram(), [each.record.step for each in self.observed])
            weights = line.weights(self.step)
            for first, before, changes in stack.chunks():
                predicted = torch.from_numpy(before + weights @ changes)
                wide = predicted.to(torch.promote_types(dtype, torch.float32))
                result[first : first + len(before)] = wide.to(dtype)
        if not bool(result.isfinite().all()):
            raise ValueError(f"{name!r} extrapolated to step {self.step} is not finite; choose a nearer step")
        self.lines[name] = line
        return result.view(torch.uint8).numpy().data

    @property
    def _start(self) -> Checkpoint:
        return Checkpoint(**{one.name: getattr(self, one.name) for one in fields(Checkpoint)})

    def release(self, name: str, first_byte: int = 0, last_byte: int | None = None) -> None:
        """Releases a start's tensor; extrapolated ones replace one another."""
        if name not in self._latest:
            super().release(name, first_byte, last_byte)

    def fingerprint(self) -> str:
        """Returns a fingerprint of the observed steps and of the step that is predicted."""
        parts = [str(self.step), *(each.fingerprint() for each in self.observed)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def extrapolate(start: Checkpoint, observed: Sequence[RestoredCheckpoint], step: int) -> ExtrapolatedCheckpoint:
    """Returns the checkpoint that a line through the observed steps predicts, computed lazily.

    Raises:
        ValueError: for fewer than two observed steps, or a step before the first.
    """
    if len(observed) < 2:
        raise ValueError(f"{len(observed)} observed steps; a line needs at least two")
    if step < 1:
        raise ValueError(f"--to-step {step}; expected an optimizer step, 1 or more")
    own: dict[str, Any] = {one.name: getattr(start, one.name) for one in fields(Checkpoint)}
    return ExtrapolatedCheckpoint(**own, observed=tuple(observed), step=step)


@dataclass(frozen=True, kw_only=True)
class Miss:
    """How far a predicted change is from the real one."""

    error: float
    """‖Ŵ − W‖ / ‖W − W_start‖; NaN if nothing changed."""
    last_error: float
    """The same for the last observed step in place of the predicted one."""
    cosine: float
    """Of the predicted and the real change."""


def misses(predicted: ExtrapolatedCheckpoint, real: RestoredCheckpoint) -> Iterator[tuple[str, Miss]]:
    """Yields, per tensor that changed, how far the prediction is from the step that training kept.

    The last name is `all`, for all tensors together.
    """
    total = np.zeros(5)
    for name in predicted.tensors:
        if not any(name in each.record.tensors for each in (*predicted.observed, real)):
            continue
        with open_stack(predicted._start, [predicted, predicted.observed[-1], real], name) as stack:
            gram = stack.gram()
        sums = np.array([gram[0, 0], gram[1, 1], gram[2, 2], gram[0, 2], gram[1, 2]])
        total += sums
        yield name, _miss(sums)
    yield "all", _miss(total)


def _miss(sums: np.ndarray) -> Miss:
    predicted, last, real, dot, last_dot = (float(value) for value in sums)
    if not real > 0:
        return Miss(error=float("nan"), last_error=float("nan"), cosine=float("nan"))
    return Miss(
        error=(max(0.0, predicted - 2 * dot + real) / real) ** 0.5,
        last_error=(max(0.0, last - 2 * last_dot + real) / real) ** 0.5,
        cosine=dot / (predicted * real) ** 0.5 if predicted > 0 else float("nan"),
    )
