"""Does the delta command find planted changes? Changes of known energy, rank and verdict, in one block at a time.

All decoder matrices of the start, in bf16, have entries between 2^-4 and 2^-3 in size, where numbers are 2^-11 apart
(one ulp). Every planted change is a whole number of ulps, so it is stored exactly. In the first layer of a block each
matrix changes by a matrix of rank r, in which row i is ± `RANK_STEPS` ulps along one of r orthogonal sign vectors:

    energy = s ulp sqrt(rows · columns),   r equal singular values s ulp sqrt(rows · columns / r)

In the second layer a share f of the elements of each matrix moves by s ulps, in random directions:

    energy = s ulp sqrt(f · rows · columns),   at the floor exactly if f s² <= 1/3 and s < 2

since rounding both ends gives ulp²/6 per element, and the rule (`analyze/deltas/floor.py`) allows twice that and steps
below 2 ulps. Nothing else changes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.known_answers.answers import BLOCK_LAYERS, Answer
from benchmarks.known_answers.reader import SHAPE
from benchmarks.known_answers.workplace import Workplace
from models.pocket import write_pocket_checkpoint
from tracking.product import partial_directory
from tracking.tables import read_table

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NAME = "deltas"
EXPONENT, MANTISSA_BITS = -4, 7
ULP = 2.0 ** (EXPONENT - MANTISSA_BITS)
RANK_STEPS = 8
RANKS = {"q": 1, "k": 2, "v": 4, "o": 8, "gate": 16, "up": 32, "down": 64}
"""Matrix -> rank of its change; each divides the number of rows."""
TOLERANCE = 1e-5
"""Relative; tables round to six digits."""
WORDS = {"changed_frac": "share of elements changed", "changed_rms_ulps": "rms step in ulps"}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A share of a matrix's elements that moves by a number of ulps."""

    sixteenths: float
    """Of all elements."""
    ulps: int

    @property
    def frac(self) -> float:
        return self.sixteenths / 16

    @property
    def above(self) -> bool:
        """True if the change is above the floor, by the rule in the module's docstring."""
        return self.frac * self.ulps**2 > 1 / 3 or self.ulps >= 2


STEPS = {
    "q": Steps(sixteenths=4, ulps=1),
    "k": Steps(sixteenths=8, ulps=1),
    "v": Steps(sixteenths=1 / 64, ulps=4),
    "o": Steps(sixteenths=1, ulps=1),
    "gate": Steps(sixteenths=1, ulps=2),
    "up": Steps(sixteenths=5, ulps=1),
    "down": Steps(sixteenths=6, ulps=1),
}
"""Matrix -> what moves: on both sides of the limit of energy (5/16 and 6/16) and of that of steps (1 and 2 ulps)."""


def measure(work: Workplace) -> list[Answer]:
    """Builds a start and an end per block, compares them, and returns energies, ranks and verdicts."""
    start = work.checkpoint("deltas-start")
    write_start(start, work.seed)
    ends = {block: work.checkpoint(f"deltas-{block}") for block in BLOCK_LAYERS}
    for block, directory in ends.items():
        write_end(directory, start, BLOCK_LAYERS[block], work.seed)
    named = [f"{block}={directory}" for block, directory in ends.items()]
    output_dir = work.directory / NAME
    work.run("analyze.deltas", "--sft", start, "--rl", *named, "--output-dir", output_dir, config="all_deltas")
    return [*read_matrices(output_dir), *read_blocks(output_dir)]


def matrices_of(layer: Any) -> "dict[str, Tensor]":
    """Returns the matrices of a decoder layer by their short names."""
    attention, mlp = layer.self_attn, layer.mlp
    return {name: getattr(attention, f"{name}_proj").weight for name in "qkvo"} | {
        name: getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down")
    }


def write_start(directory: Path, seed: int) -> None:
    """Writes a pocket checkpoint in bf16 whose decoder matrices leave room for exact changes, unless it is there."""
    import numpy as np

    rng = np.random.default_rng(seed)
    room = max(RANK_STEPS, *(steps.ulps for steps in STEPS.values()))

    def draw(name: str, number: int, old: "Tensor") -> "np.ndarray[Any, Any]":
        mantissas = rng.integers(room, 2**MANTISSA_BITS - room, old.shape)
        signs = rng.choice([-1.0, 1.0], old.shape)
        return np.asarray(signs * (2.0**EXPONENT + ULP * mantissas))

    if not directory.exists():
        with partial_directory(directory) as partial:
            write_pocket_checkpoint(partial / "untrained", shape=SHAPE, seed=seed)
            _rewrite(partial / "untrained", partial, range(SHAPE.num_layers), draw)
            for file in (partial / "untrained").iterdir():
                file.unlink()
            (partial / "untrained").rmdir()


def write_end(directory: Path, start: Path, layers: tuple[int, int], seed: int) -> None:
    """Writes the start with the planted changes in two layers, unless it is there."""
    import numpy as np

    rng = np.random.default_rng(seed + 1)

    def change(name: str, number: int, old: "Tensor") -> "np.ndarray[Any, Any]":
        rows, columns = old.shape
        steps = (
            rank_change(rows, columns, RANKS[name]) if number == layers[0] else step_change(rows, columns, name, rng)
        )
        return old.double().numpy() + ULP * steps

    if not directory.exists():
        with partial_directory(directory) as partial:
            _rewrite(start, partial, layers, change)


def _rewrite(
    source: Path, target: Path, layers: "range | tuple[int, int]", new: "Callable[[str, int, Tensor], Any]"
) -> None:
    """Writes a checkpoint in bf16 with new values in the matrices of some layers; each must be stored exactly."""
    import torch

    from models.loading import load_model, load_processor

    model: Any = load_model(source, dtype=torch.bfloat16)
    with torch.no_grad():
        for number in layers:
            for name, matrix in matrices_of(model.base_model.language_model.layers[number]).items():
                values = torch.from_numpy(new(name, number, matrix))
                matrix.copy_(values)
                assert torch.equal(matrix.double(), values), f"{name} of layer {number} is not stored exactly"
    model.save_pretrained(target)
    load_processor(source).save_pretrained(target)


def rank_change(rows: int, columns: int, rank: int) -> "np.ndarray[Any, Any]":
    """Returns ± `RANK_STEPS` as a [rows, columns] matrix of this rank whose singular values are equal."""
    import numpy as np
    from scipy.linalg import hadamard

    size = columns & -columns  # the largest power of two that divides it
    assert rows % rank == 0 and rank <= size, (rows, columns, rank)
    directions = np.tile(hadamard(size)[:rank], (1, columns // size))  # [rank, columns], orthogonal
    return RANK_STEPS * np.repeat(directions, rows // rank, axis=0)


def step_change(rows: int, columns: int, name: str, rng: "np.random.Generator") -> "np.ndarray[Any, Any]":
    """Returns a [rows, columns] matrix of the steps of `STEPS`, at random places with random signs."""
    import numpy as np

    flat = np.zeros(rows * columns)
    moved = rng.permutation(len(flat))[: round(STEPS[name].frac * len(flat))]
    flat[moved] = STEPS[name].ulps * rng.choice([-1, 1], len(moved))
    return flat.reshape(rows, columns)


def read_matrices(output_dir: Path) -> list[Answer]:
    """Returns what `matrices.csv` says of the changed matrices."""
    table = read_table(output_dir / "matrices.csv")
    answers = []
    for row in table[table["num_rows"].notna() & (table["region"] == "llm")].to_dict("records"):
        layers = BLOCK_LAYERS[row["phase"]]
        name = str(row["tensor"]).rpartition("_proj")[0].rpartition(".")[2]
        if int(row["layer"]) not in layers:
            continue
        size = row["num_rows"] * row["num_columns"]
        is_ranked = int(row["layer"]) == layers[0]
        steps = STEPS[name]
        energy = ULP * math.sqrt(size) * (RANK_STEPS if is_ranked else steps.ulps * math.sqrt(steps.frac))
        truths: dict[str, float] = {"energy": energy}
        if is_ranked:
            rank = RANKS[name]
            ranks = dict.fromkeys(("stable_rank", "effective_rank", "participation_ratio"), float(rank))
            truths |= {"spectral_norm": energy / math.sqrt(rank), **ranks}
        else:
            truths |= {"changed_frac": steps.frac, "changed_rms_ulps": float(steps.ulps)}
        found = {column: float(row[column]) for column in truths}
        truths["judged_above_floor"] = float(is_ranked or steps.above)
        found["judged_above_floor"] = {"above floor": 1.0, "at floor": 0.0}.get(str(row["verdict"]), math.nan)
        answers += [
            Answer(
                instrument=NAME,
                case=f"changes in {row['phase']}, {'of known rank' if is_ranked else 'near the floor'}",
                quantity=WORDS.get(column, column.replace("_", " ")),
                place=f"layer {int(row['layer'])}, {name}",
                truth=truth,
                estimate=found[column],
                tolerance=TOLERANCE * truth,
            )
            for column, truth in truths.items()
        ]
    return answers


def read_blocks(output_dir: Path) -> list[Answer]:
    """Returns what `blocks.csv` says of every block and region: nothing of those without a change."""
    table = read_table(output_dir / "blocks.csv")
    squares = {name: rows * columns for name, (rows, columns) in matrix_shapes().items()}
    planted = sum(size * (RANK_STEPS**2 + STEPS[name].frac * STEPS[name].ulps ** 2) for name, size in squares.items())
    num_above = sum(steps.above for steps in STEPS.values())
    num_by_verdict = {"above floor": len(RANKS) + num_above, "at floor": len(STEPS) - num_above}
    answers = []
    for row in table.to_dict("records"):
        block, is_planted = str(row["block"]), row["block"] == row["phase"]
        case = f"changes in {row['phase']}, whole blocks"
        truth = ULP * math.sqrt(planted) if is_planted else 0.0
        answers.append(
            Answer(
                instrument=NAME,
                case=case,
                quantity="energy",
                place=block,
                truth=truth,
                estimate=float(row["energy"]),
                tolerance=TOLERANCE * truth,
            )
        )
        answers += [
            Answer(
                instrument=NAME,
                case=case,
                quantity="tensors with a verdict",
                place=f"{block}, {verdict}",
                truth=float(number if is_planted else 0),
                estimate=float(row[f"num_{verdict.replace(' ', '_')}"]),
            )
            for verdict, number in num_by_verdict.items()
        ]
    return answers


def matrix_shapes() -> dict[str, tuple[int, int]]:
    """Returns rows and columns of a decoder layer's matrices."""
    hidden, mlp = SHAPE.hidden_size, SHAPE.mlp_size
    keys = hidden // SHAPE.num_heads * SHAPE.num_kv_heads
    return {
        "q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, hidden),
        "gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp),
    }  # fmt: skip
