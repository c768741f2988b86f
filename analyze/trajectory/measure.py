"""How does one tensor move along training? The sums from which every figure of a trajectory is computed.

Per tensor and run, with the changes Δ_t = W_t − W_start of the kept steps:

- the Gram matrix ⟨Δ_s, Δ_t⟩ in fp64: norms, cosines, the leading direction and its line (`merge/trajectories/line.py`);
- the number of elements whose bits differ from the start's;
- of a matrix, σ_1² of every Δ_t, and how much of Δ_t lies in the leading singular directions of W_start: ‖Uᵀ Δ_t‖² and
  ‖Δ_t V‖², U and V the `rank` leading left and right singular vectors (arXiv 2511.08567). A random change has the
  shares rank / rows and rank / columns;
- with the change of SFT: elements that both changed, and those of them that it moved in the other direction
  (arXiv 2605.00610), and the dot product.

All are additive over tensors. σ_1 is exact up to `EXACT_ROWS` rows on the shorter side, else from the randomised method
of `analyze/deltas/spectra.py`, a lower bound.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.deltas.geometry import Subspace, top_subspace
from analyze.deltas.spectra import as_matrix, singular_values
from analyze.trajectory.plan import Series
from merge.trajectories.stack import Stack, open_stack
from models.checkpoint import Checkpoint
from models.layout import Parameter
from tracking.records import Record

if TYPE_CHECKING:
    import torch

EXACT_ROWS = 768
ROWS = 1024
"""Rows of a change converted to fp64 at a time."""


def measure_tensor(series: Series, base: Checkpoint | None, parameter: Parameter, *, rank: int) -> Record:
    """Returns the sums of one tensor.

    Args:
        series: a run's kept steps.
        base: the start of SFT, if its change is compared.
        parameter: the tensor.
        rank: number of leading singular directions of the start's weights; 0 measures none.
    """
    name = parameter.name
    with open_stack(series.start, series.ends, name) as stack:
        num_changed = [_count_changed(stack, number) for number in range(1, len(series.steps) + 1)]
        record: Record = {
            "key": f"{series.label}/{name}",
            "series": series.label,
            "tensor": name,
            "num_elements": parameter.num_elements,
            "start_squares": stack.start_squares(),
            "num_changed": num_changed,
        }
        if base is not None:
            record |= _against_sft(stack, base, name)
        if any(num_changed):
            record["gram"] = stack.gram().tolist()
            if is_wide(parameter):
                record |= _directions(stack, rank)
    return record


def is_wide(parameter: Parameter) -> bool:
    """True for a matrix or kernel that has directions: at least two rows and two columns."""
    return len(parameter.shape) > 1 and parameter.shape[0] > 1 and parameter.num_elements > parameter.shape[0]


def _count_changed(stack: Stack, number: int) -> int:
    """Returns the number of elements that differ from the start, by stored bits if the dtypes agree."""
    import torch

    before, after = stack.values(0), stack.values(number)
    if before.dtype != after.dtype:
        return int(torch.count_nonzero(before.double() != after.double()))
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[before.element_size()]
    return int(torch.count_nonzero(before.view(width) != after.view(width)))


def _directions(stack: Stack, rank: int) -> dict[str, Any]:
    """Returns σ_1² of every change, and its squares within the start's leading directions."""
    start = as_matrix(stack.values(0).reshape(stack.shape).float())
    rows, columns = start.shape
    own = top_subspace(start, min(rank, rows, columns)) if rank else None
    top, left, right = [], [], []
    for number in range(1, len(stack.contents)):
        change = as_matrix(stack.change(number))
        values = singular_values(change, top_k=None if min(change.shape) <= EXACT_ROWS else 1).values
        top.append(float(values[0]) ** 2 if len(values) else 0.0)
        if own is not None:
            squares = _squares_within(change, own)
            left.append(squares[0])
            right.append(squares[1])
    found: dict[str, Any] = {"top_squares": top}
    if own is not None:
        found |= {
            "left_squares": left,
            "right_squares": right,
            "left_random": own.k / rows,
            "right_random": own.k / columns,
        }
    return found


def _squares_within(change: "torch.Tensor", own: Subspace) -> tuple[float, float]:
    """Returns ‖Uᵀ Δ‖² and ‖Δ V‖² in fp64."""
    import torch

    left, right = (torch.from_numpy(np.ascontiguousarray(basis)) for basis in (own.left, own.right))
    inside_left, inside_right = torch.zeros(own.k, change.shape[1], dtype=torch.float64), 0.0
    for first in range(0, len(change), ROWS):
        part = change[first : first + ROWS].double()
        inside_left += left[first : first + ROWS].T @ part
        inside_right += float((part @ right).square().sum())
    return float(inside_left.square().sum()), inside_right


def _against_sft(stack: Stack, base: Checkpoint, name: str) -> dict[str, Any]:
    """Returns the comparison of every change with that of SFT, start - base."""
    earlier = base.view(name)
    num_steps = len(stack.contents) - 1
    both, opposite, dots, squares = np.zeros(num_steps, int), np.zeros(num_steps, int), np.zeros(num_steps), 0.0
    for first, before, changes in stack.chunks():
        sft = before - earlier[first : first + len(before)].double().numpy()
        signs = np.sign(changes) * np.sign(sft)
        both += np.count_nonzero(signs, axis=1)
        opposite += np.count_nonzero(signs < 0, axis=1)
        dots += changes @ sft
        squares += float(sft @ sft)
    base.release(name)
    return {
        "sft_both": both.tolist(),
        "sft_opposite": opposite.tolist(),
        "sft_dots": dots.tolist(),
        "sft_squares": squares,
    }
