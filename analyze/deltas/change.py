"""How much do checkpoints differ, element by element? One streamed pass over the tensors of several checkpoints.

For every tensor and phase (end - start): Σ Δ², Σ w² of the start and the number of changed elements; with the noise
floor (`floor.py`) also the largest change, Σ ulp²/12 and a histogram of changes in ulps. For two phases: the dot
product of their deltas and the number of elements that both changed. A change by an adapter is taken from its factors;
what is left of it in the merged and rounded weights is measured beside it.

Stored values are exact in fp64, in which they are subtracted and summed, in chunks that fit into the CPU cache; a chunk
is read and converted once for all phases. The chunks' sums are added by `math.fsum`, which is exact, so results do not
depend on the number of threads. Pieces with equal stored bits are not subtracted; their change is exactly zero.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from analyze.deltas.elements import Array, Buffer, Workspace, as_array, bits, count, differ, dot, same
from analyze.deltas.factors import squared_norm
from analyze.deltas.floor import ULP_BOUNDS, coarser, histogram, steps_apart, ulp, ulps_counts
from analyze.deltas.sums import Change, PairChange, TensorChange
from models.adapters.changes import LowRankChange, is_adapted, low_rank_change
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


class Opened:
    """A tensor that is being measured: its values in each checkpoint, and each phase's change if it is exact."""

    def __init__(self, comparison: Comparison, name: str) -> None:
        self.comparison, self.name = comparison, name
        self.views: dict[int, torch.Tensor] = {}
        self.exact: list[LowRankChange | None] = []

    def open(self) -> "Opened":
        """Reads the factors, and the values that are needed: without counts no adapter has to be merged."""
        if not self.exact:
            checkpoints, phases = self.comparison.checkpoints, self.comparison.phases
            self.exact = [low_rank_change(checkpoints[start], checkpoints[end], self.name) for start, end in phases]
            needed = {start for start, _ in phases} | {
                end for (_, end), exact in zip(phases, self.exact, strict=True) if exact is None
            }
            for number, checkpoint in enumerate(checkpoints):
                if number in needed or self.comparison.counted:
                    self.views[number] = checkpoint.view(self.name)
        return self

    def close(self) -> None:
        """Frees what was read."""
        self.views, self.exact = {}, []


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
    tensors = [Opened(comparison, name) for name in names]
    pieces = ((tensor.open(), first) for tensor in tensors for first in _pieces(comparison, tensor.name))
    previous = torch.get_num_threads()
    torch.set_num_threads(1)  # torch's own threads would compete with these
    pool = ThreadPoolExecutor(num_threads)
    running = deque(
        pool.submit(_measure_piece, tensor, first, workspace)
        for tensor, first in islice(pieces, num_threads * PIECES_AHEAD)
    )
    try:
        for tensor in tensors:
            total: Sums = defaultdict(list)
            for _ in _pieces(comparison, tensor.name):
                for key, values in running.popleft().result().items():
                    total[key] += values
                for piece in islice(pieces, 1):
                    running.append(pool.submit(_measure_piece, *piece, workspace))
            yield _combine(tensor.open(), total)
            tensor.close()
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


def _measure_piece(tensor: Opened, first: int, workspace: Workspace) -> Sums:
    """Returns one piece's sums: one value per chunk."""
    comparison, name = tensor.comparison, tensor.name
    on_cpu = comparison.device == "cpu"
    step = CHUNK_ELEMENTS if on_cpu else DEVICE_CHUNK_ELEMENTS
    parts = {number: view[first : first + PIECE_ELEMENTS] for number, view in tensor.views.items()}
    num_elements = next(iter(parts.values())).numel()
    if not comparison.counted and on_cpu:
        energies = _measure_energies(tensor, parts, workspace)
        _release(comparison, name, first, num_elements)
        return energies
    pieces = {}
    for number, part in parts.items():
        values = part if on_cpu else part.to(comparison.device)
        pieces[number] = Stored(comparison.checkpoints[number].tensors[name].dtype, values, bits(values))
    identical = {
        phase
        for phase, ((start, end), exact) in enumerate(zip(comparison.phases, tensor.exact, strict=True))
        if (not exact.rank if exact is not None else _same(pieces[start], pieces[end]))
    }
    sums: Sums = defaultdict(list)
    for low in range(0, num_elements, step):
        high = min(low + step, num_elements)
        chunks = {number: piece.part(low, high) for number, piece in pieces.items()}
        _measure_chunk(tensor, first + low, chunks, identical, workspace, sums)
    _release(comparison, name, first, num_elements)
    return sums


def _release(comparison: Comparison, name: str, first: int, num_elements: int) -> None:
    """Releases the piece's memory, but not other threads'."""
    for checkpoint in comparison.checkpoints:
        size = DTYPES[checkpoint.tensors[name].dtype][1]
        checkpoint.release(name, first * size, (first + num_elements) * size)


def _measure_energies(tensor: Opened, pieces: "Mapping[int, torch.Tensor]", workspace: Workspace) -> Sums:
    """Returns only the sums of squares, with minimal Python overhead between operations.

    Python holds the GIL and blocks the other threads: the general path costs a fifth more.
    """
    sums: Sums = defaultdict(list)
    phases = tensor.comparison.phases
    starts = list(dict.fromkeys(start for start, _ in phases))
    for parts in zip(*(piece.split(CHUNK_ELEMENTS) for piece in pieces.values()), strict=True):
        chunks = dict(zip(pieces, parts, strict=True))
        num_elements = parts[0].numel()
        delta = workspace.buffer("delta", num_elements, "cpu")
        for start in starts:
            values = workspace.buffer(("start", start), num_elements, "cpu")
            values.values.copy_(chunks[start])
            sums["start_squares", start].append(dot(values, values))
            for phase, (own, end) in enumerate(phases):
                if own == start and tensor.exact[phase] is None:
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
    tensor: Opened,
    first: int,
    chunks: Mapping[int, Stored],
    identical: set[int],
    workspace: Workspace,
    sums: Sums,
) -> None:
    """Adds one chunk's sums: of each start, then of each phase, then of each pair."""
    import torch

    comparison = tensor.comparison
    num_elements, device = next(iter(chunks.values())).values.numel(), comparison.device
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
        exact = tensor.exact[phase]
        # Without pairs, the next phase may overwrite this one's buffers.
        delta = workspace.buffer(("delta", phase if comparison.pairs else None), num_elements, device)
        if exact is not None:
            delta.values.copy_(exact.elements(first, first + num_elements))
        elif end in starts:
            torch.sub(starts[end].padded, starts[start].padded, out=delta.padded)
        else:
            delta.values.copy_(chunks[end].values)
            delta.padded.sub_(starts[start].padded)
        sums["delta_squares", phase].append(dot(delta, delta))
        if comparison.counted:
            sums["num_changed", phase].append(
                _count_changed(chunks[start], chunks[end], delta, exact=exact is not None)
            )
            deltas[phase] = delta
        if comparison.floor:
            whole = exact is None and chunks[start].dtype == chunks[end].dtype
            _measure_steps(phase, chunks[start], chunks[end], delta, spacing, sums, in_bits=whole)
        if exact is not None:
            merged = workspace.buffer("merged", num_elements, device)
            merged.values.copy_(chunks[end].values)
            merged.padded.sub_(starts[start].padded)
            sums["merged_delta_squares", phase].append(dot(merged, merged))
            sums["merged_dot_product", phase].append(dot(merged, delta))
            sums["merged_num_changed", phase].append(_count_changed(chunks[start], chunks[end], merged))
    for pair, (one, other) in enumerate(comparison.pairs):
        if one in deltas and other in deltas:
            sums["dot_product", pair].append(dot(deltas[one], deltas[other]))
            sums["num_both_changed", pair].append(count(deltas[one].mask & deltas[other].mask))


def _count_changed(start: Stored, end: Stored, delta: Buffer, *, exact: bool = False) -> int:
    """Marks the changed elements in the delta's mask and counts them: by stored bits, else by value."""
    if not exact and start.dtype == end.dtype:
        return differ(start.bits, end.bits, delta.mask)
    return differ(as_array(delta.values), 0, delta.mask)


def _measure_steps(
    phase: int, start: Stored, end: Stored, delta: Buffer, spacing: Buffer, sums: Sums, *, in_bits: bool
) -> None:
    """Adds the noise floor's sums over changed elements; overwrites the spacing."""
    import torch

    low, high = torch.aminmax(delta.values)
    sums["max_change", phase].append(max(-low.item(), high.item()))
    if in_bits and start.values.element_size() == 2:
        counts = ulps_counts(steps_apart(start.bits, end.bits), whole=True)
    else:
        counts = ulps_counts(as_array((delta.values / spacing.values).abs_()), whole=False)
    for bound, number in zip(ULP_BOUNDS, counts, strict=True):
        sums[f"ulps_above_{bound}", phase].append(number)
    spacing.values.mul_(torch.as_tensor(delta.mask))
    sums["changed_ulp_squares", phase].append(dot(spacing, spacing))


def _combine(tensor: Opened, sums: Sums) -> TensorChange:
    """Sums over chunks; the squares of an exact change come from its factors."""
    comparison, name = tensor.comparison, tensor.name
    num_elements = math.prod(comparison.checkpoints[0].tensors[name].shape)

    def total(what: str, number: int) -> float:
        return math.fsum(sums[what, number])

    phases = []
    for phase, (start, _) in enumerate(comparison.phases):
        exact = tensor.exact[phase]
        change = Change(
            num_elements=num_elements,
            delta_squares=total("delta_squares", phase) if exact is None else squared_norm(exact),
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
        start_end = (comparison.checkpoints[number] for number in comparison.phases[phase])
        if comparison.counted and is_adapted(*start_end):
            change = replace(change, **_merged(change, total, phase, exact=exact is not None))
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


def _merged(change: Change, total: Callable[[str, int], float], phase: int, *, exact: bool) -> dict[str, Any]:
    """Returns the sums about merging; a tensor that was trained in full is stored as it is."""
    if not exact:
        squares = change.delta_squares
        return {
            "merged_delta_squares": squares,
            "merged_num_changed": change.num_changed,
            "merged_dot_product": squares,
        }
    return {
        "merged_delta_squares": total("merged_delta_squares", phase),
        "merged_num_changed": int(total("merged_num_changed", phase)),
        "merged_dot_product": total("merged_dot_product", phase),
    }


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
