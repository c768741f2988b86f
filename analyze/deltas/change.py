"""How much do checkpoints differ, element by element? One streamed pass over the tensors of several checkpoints.

For every tensor and phase (end - start): Σ Δ², Σ w² of the start and the number of changed elements; with the noise
floor (`floor.py`) also the largest change, Σ ulp²/12 and a histogram of changes in ulps. For two phases: the dot
product of their deltas and the number of elements that both changed.

Stored values are exact in fp64, in which they are subtracted and summed, in chunks that fit into the CPU cache; a chunk
is read and converted once for all phases. The chunks' sums are added by `math.fsum`, which is exact, so results do not
depend on the number of threads. Pieces with equal stored bits are not subtracted; their change is exactly zero.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from analyze.deltas.elements import Array, Buffer, Workspace, as_array, bits, count, differ, dot, same
from analyze.deltas.floor import ULP_BOUNDS, coarser, histogram, steps_apart, ulp, ulps_counts
from models.checkpoint import Checkpoint
from models.shards import DTYPES, FLOATING

if TYPE_CHECKING:
    import torch

CHUNK_ELEMENTS = 2**18
"""Chunk size on the CPU: buffers fit into the cache, with a tenth less Python overhead than for half the size."""
DEVICE_CHUNK_ELEMENTS = 2**22
PIECE_ELEMENTS = 2**23
"""A thread's unit of work; a multiple of either chunk."""
PROBE_ELEMENTS = 2**10
"""Elements compared before the whole piece."""
PIECES_AHEAD = 4
"""Pieces queued per thread before results are collected."""

Sums = defaultdict[tuple[str, int], list[float]]
"""(quantity, index of the phase, pair or checkpoint) -> one value per chunk."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One tensor's change in one phase; all fields except `max_change` are additive over tensors."""

    num_elements: int
    delta_squares: float
    start_squares: float
    num_changed: int | None = None
    """Elements whose stored bits differ (values, if the dtypes differ)."""
    max_change: float | None = None
    """The largest |Δ|; this and the rest only with the noise floor."""
    rounding_squares: float | None = None
    """Σ ulp(w)²/12 of the start, in the coarser of the two stored dtypes: the effect of rounding one end."""
    changed_ulp_squares: float | None = None
    """Σ ulp(w)² over the elements that changed."""
    ulps_histogram: tuple[int, ...] | None = None
    """Histogram of changes in ulps, with the bins of `ULP_LABELS`."""


@dataclass(frozen=True, kw_only=True)
class PairChange:
    """The overlap of two phases' changes of one tensor; the fields are additive over tensors."""

    num_elements: int
    num_first_changed: int
    num_second_changed: int
    num_both_changed: int
    first_squares: float
    second_squares: float
    dot_product: float

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two deltas; None if one of them is zero."""
        norms = math.sqrt(self.first_squares) * math.sqrt(self.second_squares)
        return self.dot_product / norms if norms else None

    @property
    def jaccard(self) -> float | None:
        """Elements that both changed, as a share of those that either changed; None if there are none."""
        return self._share(self.num_both_changed)

    @property
    def independent_jaccard(self) -> float | None:
        """Expected value if each phase had changed random elements."""
        if not self.num_elements:
            return None
        return self._share(self.num_first_changed * self.num_second_changed / self.num_elements)

    def _share(self, num_both: float) -> float | None:
        either = self.num_first_changed + self.num_second_changed - num_both
        return num_both / either if either else None


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """One tensor's changes, in the order of the requested phases and pairs."""

    name: str
    phases: tuple[Change, ...]
    pairs: tuple[PairChange, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparisons to make."""

    checkpoints: Sequence[Checkpoint]
    phases: Sequence[tuple[int, int]]
    """(start, end), numbers of checkpoints."""
    pairs: Sequence[tuple[int, int]] = ()
    """(first, second), numbers of phases that are compared with each other."""
    floor: bool = True
    """Whether to measure the noise floor, which takes several times as long."""
    counts: bool = True
    """Whether to count changed elements, which takes a quarter longer; required by the floor and pairs."""
    device: str = "cpu"

    @property
    def counted(self) -> bool:
        """True if changed elements are counted, because requested or required."""
        return self.counts or self.floor or bool(self.pairs)


class Stored(NamedTuple):
    """A piece or chunk of one checkpoint's tensor, as stored."""

    dtype: str
    values: "torch.Tensor"
    bits: Array

    def part(self, first: int, last: int) -> "Stored":
        return Stored(self.dtype, self.values[first:last], self.bits[first:last])


def measure_change(comparison: Comparison, name: str) -> TensorChange:
    """Measures one tensor, by its canonical name.

    Raises:
        ValueError: naming file and tensor, if values are not finite or not floating-point.
    """
    return next(measure_many(comparison, [name]))


def measure_many(comparison: Comparison, names: Sequence[str], *, num_threads: int = 1) -> Iterator[TensorChange]:
    """Measures tensors on several threads and yields them one by one, in the order of their names.

    The threads share each tensor, so a large one keeps all of them busy. Until the iterator is exhausted or closed,
    torch runs every operation on one thread.

    Raises:
        ValueError: as for `measure_change`.
    """
    import torch

    for name in names:
        _check_stored(comparison, name)
    workspace = Workspace()
    pieces = ((name, first) for name in names for first in _pieces(comparison, name))
    previous = torch.get_num_threads()
    torch.set_num_threads(1)  # torch's own threads would compete with these
    pool = ThreadPoolExecutor(num_threads)
    running = deque(
        pool.submit(_measure_piece, comparison, name, first, workspace)
        for name, first in islice(pieces, num_threads * PIECES_AHEAD)
    )
    try:
        for name in names:
            total: Sums = defaultdict(list)
            for _ in _pieces(comparison, name):
                for key, values in running.popleft().result().items():
                    total[key] += values
                for piece in islice(pieces, 1):
                    running.append(pool.submit(_measure_piece, comparison, *piece, workspace))
            yield _combine(comparison, name, total)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(previous)


def _pieces(comparison: Comparison, name: str) -> range:
    return range(0, math.prod(comparison.checkpoints[0].tensors[name].shape), PIECE_ELEMENTS)


def _check_stored(comparison: Comparison, name: str) -> None:
    for checkpoint in comparison.checkpoints:
        stored = checkpoint.tensors[name]
        if stored.dtype not in FLOATING:
            raise ValueError(
                f"{stored.file}: tensor {stored.name_on_disk!r} is {stored.dtype}; "
                f"expected one of {', '.join(FLOATING)}"
            )
        assert stored.shape == comparison.checkpoints[0].tensors[name].shape, (name, stored)


def _measure_piece(comparison: Comparison, name: str, first: int, workspace: Workspace) -> Sums:
    """Returns one piece's sums: one value per chunk."""
    on_cpu = comparison.device == "cpu"
    step = CHUNK_ELEMENTS if on_cpu else DEVICE_CHUNK_ELEMENTS
    pieces = []
    for checkpoint in comparison.checkpoints:
        values = checkpoint.view(name)[first : first + PIECE_ELEMENTS]
        values = values if on_cpu else values.to(comparison.device)
        pieces.append(Stored(checkpoint.tensors[name].dtype, values, bits(values)))
    num_elements = pieces[0].values.numel()
    if not comparison.counted and on_cpu:
        energies = _measure_energies(comparison, [piece.values for piece in pieces], workspace)
        _release(comparison, name, first, num_elements)
        return energies
    identical = {phase for phase, (start, end) in enumerate(comparison.phases) if _same(pieces[start], pieces[end])}
    sums: Sums = defaultdict(list)
    for low in range(0, num_elements, step):
        chunks = [piece.part(low, min(low + step, num_elements)) for piece in pieces]
        _measure_chunk(comparison, chunks, identical, workspace, sums)
    _release(comparison, name, first, num_elements)
    return sums


def _release(comparison: Comparison, name: str, first: int, num_elements: int) -> None:
    """Releases the piece's memory, but not other threads'."""
    for checkpoint in comparison.checkpoints:
        size = DTYPES[checkpoint.tensors[name].dtype][1]
        checkpoint.release(name, first * size, (first + num_elements) * size)


def _measure_energies(comparison: Comparison, pieces: "Sequence[torch.Tensor]", workspace: Workspace) -> Sums:
    """Returns only the sums of squares, with minimal Python overhead between operations.

    Python holds the GIL and blocks the other threads: the general path costs a fifth more.
    """
    sums: Sums = defaultdict(list)
    starts = list(dict.fromkeys(start for start, _ in comparison.phases))
    for chunks in zip(*(piece.split(CHUNK_ELEMENTS) for piece in pieces), strict=True):
        num_elements = chunks[0].numel()
        delta = workspace.buffer("delta", num_elements, "cpu")
        for start in starts:
            values = workspace.buffer(("start", start), num_elements, "cpu")
            values.values.copy_(chunks[start])
            sums["start_squares", start].append(dot(values, values))
            for phase, (own, end) in enumerate(comparison.phases):
                if own == start:
                    delta.values.copy_(chunks[end])
                    delta.padded.sub_(values.padded)
                    sums["delta_squares", phase].append(dot(delta, delta))
    return sums


def _same(start: Stored, end: Stored) -> bool:
    """True for equal bits; differing pieces usually differ in their first elements."""
    if start.dtype != end.dtype:
        return False
    return same(start.bits[:PROBE_ELEMENTS], end.bits[:PROBE_ELEMENTS]) and same(start.bits, end.bits)


def _measure_chunk(
    comparison: Comparison, chunks: Sequence[Stored], identical: set[int], workspace: Workspace, sums: Sums
) -> None:
    """Adds one chunk's sums: of each start, then of each phase, then of each pair."""
    import torch

    num_elements, device = chunks[0].values.numel(), comparison.device
    starts: dict[int, Buffer] = {}
    for start, _ in comparison.phases:
        if start not in starts:
            starts[start] = workspace.buffer(("start", start), num_elements, device)
            starts[start].values.copy_(chunks[start].values)
            sums["start_squares", start].append(dot(starts[start], starts[start]))
    deltas: dict[int, Buffer] = {}
    for phase, (start, end) in enumerate(comparison.phases):
        if comparison.floor:
            spacing = workspace.buffer("spacing", num_elements, device)
            ulp(starts[start].values, coarser(chunks[start].dtype, chunks[end].dtype), out=spacing.values)
            sums["ulp_squares", phase].append(dot(spacing, spacing))
        if phase in identical:
            continue
        # Without pairs, the next phase may overwrite this one's buffers.
        delta = workspace.buffer(("delta", phase if comparison.pairs else None), num_elements, device)
        if end in starts:
            torch.sub(starts[end].padded, starts[start].padded, out=delta.padded)
        else:
            delta.values.copy_(chunks[end].values)
            delta.padded.sub_(starts[start].padded)
        sums["delta_squares", phase].append(dot(delta, delta))
        if comparison.counted:
            if chunks[start].dtype == chunks[end].dtype:
                num_changed = differ(chunks[start].bits, chunks[end].bits, delta.mask)
            else:
                num_changed = differ(as_array(delta.values), 0, delta.mask)
            sums["num_changed", phase].append(num_changed)
            deltas[phase] = delta
        if comparison.floor:
            _measure_steps(phase, chunks[start], chunks[end], delta, spacing, sums)
    for pair, (first, second) in enumerate(comparison.pairs):
        if first in deltas and second in deltas:
            sums["dot_product", pair].append(dot(deltas[first], deltas[second]))
            sums["num_both_changed", pair].append(count(deltas[first].mask & deltas[second].mask))


def _measure_steps(phase: int, start: Stored, end: Stored, delta: Buffer, spacing: Buffer, sums: Sums) -> None:
    """Adds the noise floor's sums over changed elements; overwrites the spacing."""
    import torch

    low, high = torch.aminmax(delta.values)
    sums["max_change", phase].append(max(-low.item(), high.item()))
    if start.dtype == end.dtype and start.values.element_size() == 2:
        counts = ulps_counts(steps_apart(start.bits, end.bits), whole=True)
    else:
        counts = ulps_counts(as_array((delta.values / spacing.values).abs_()), whole=False)
    for bound, number in zip(ULP_BOUNDS, counts, strict=True):
        sums[f"ulps_above_{bound}", phase].append(number)
    spacing.values.mul_(torch.as_tensor(delta.mask))
    sums["changed_ulp_squares", phase].append(dot(spacing, spacing))


def _combine(comparison: Comparison, name: str, sums: Sums) -> TensorChange:
    """Sums over chunks."""
    num_elements = math.prod(comparison.checkpoints[0].tensors[name].shape)

    def total(what: str, number: int) -> float:
        return math.fsum(sums[what, number])

    phases = []
    for phase, (start, _) in enumerate(comparison.phases):
        change = Change(
            num_elements=num_elements,
            delta_squares=total("delta_squares", phase),
            start_squares=total("start_squares", start),
            num_changed=int(total("num_changed", phase)) if comparison.counted else None,
        )
        if not math.isfinite(change.delta_squares + change.start_squares):
            _refuse_non_finite(comparison, name)
        if comparison.floor:
            change = replace(
                change,
                max_change=max(sums["max_change", phase], default=0.0),
                rounding_squares=total("ulp_squares", phase) / 12,
                changed_ulp_squares=total("changed_ulp_squares", phase),
                ulps_histogram=histogram([int(total(f"ulps_above_{n}", phase)) for n in ULP_BOUNDS], num_elements),
            )
        phases.append(change)
    pairs = [
        PairChange(
            num_elements=num_elements,
            num_first_changed=int(total("num_changed", first)),
            num_second_changed=int(total("num_changed", second)),
            num_both_changed=int(total("num_both_changed", pair)),
            first_squares=phases[first].delta_squares,
            second_squares=phases[second].delta_squares,
            dot_product=total("dot_product", pair),
        )
        for pair, (first, second) in enumerate(comparison.pairs)
    ]
    return TensorChange(name=name, phases=tuple(phases), pairs=tuple(pairs))


def _refuse_non_finite(comparison: Comparison, name: str) -> None:
    """Raises for the first checkpoint whose tensor is not finite; overflowing squares are allowed."""
    import torch

    for checkpoint in comparison.checkpoints:
        view, stored = checkpoint.view(name), checkpoint.tensors[name]
        number = sum(int((~torch.isfinite(chunk)).sum()) for chunk in view.split(PIECE_ELEMENTS))
        checkpoint.release(name)
        if number:
            raise ValueError(
                f"{stored.file}: tensor {stored.name_on_disk!r} holds {number} values of {len(view)} that are NaN or "
                "infinite; expected finite weights: the run that saved it had diverged, take an earlier checkpoint"
            )
