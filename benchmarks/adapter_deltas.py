"""How much cheaper is an adapter's exact change than that of its merged weights, and is it the same? Side by side.

    python -m benchmarks.adapter_deltas --output benchmarks/results/adapter_deltas.json

The decoder layers of Qwen2.5-VL-3B (hidden 2048, MLP 11008, 16 heads, 2 groups) with random bf16 weights, and a LoRA
adapter of rank 16 on all seven linear maps of each. By default 2 of the 36 layers: the time of every part is
proportional to the number of layers, and the dense spectra of all would take half an hour a round on two busy cores.
Embeddings and tower are left out; an adapter on the decoder leaves them alone, so they cost no more than reading them.

Contenders, with the same threads, alternating; ratios are taken within a round and given with a 95 % interval:

    dense     `analyze.deltas` on the merged checkpoint: energy, floor, every singular value
    factors   the same on the adapter: exact, and with what merging leaves (so the merge is computed too)

`energy` alone is timed as well; there, both read the base once. The null, which doubles the dense time and is left out
for adapters, is not counted. `columns` compares the exact columns of one matrix with NumPy's from all elements in fp64.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.freeze_cost import ratio
from tracking.command import REPOSITORY_ROOT, quiet_libraries
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "adapter_deltas.json"
HIDDEN, MLP, GROUP_WIDTH = 2048, 11008, 256
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (GROUP_WIDTH, HIDDEN),
    "self_attn.v_proj": (GROUP_WIDTH, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}
RANK, ALPHA = 16, 32
WEIGHT_STD, DOWN_STD, UP_STD = 0.02, 0.02, 0.001
"""Of W, A and B: an update of a hundredth of the weights, as after some hundred steps of LoRA."""
COMPARED = "model.layers.0.self_attn.q_proj.weight"


def prepare(directory: Path, num_layers: int) -> None:
    """Writes the base and the adapter."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, std: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * std

    base: dict[str, torch.Tensor] = {}
    adapter: dict[str, torch.Tensor] = {}
    for layer in range(num_layers):
        for module, (rows, columns) in SHAPES.items():
            name = f"model.layers.{layer}.{module}"
            base[f"{name}.weight"] = draw(rows, columns, std=WEIGHT_STD).bfloat16()
            adapter[f"base_model.model.{name}.lora_A.weight"] = draw(RANK, columns, std=DOWN_STD)
            adapter[f"base_model.model.{name}.lora_B.weight"] = draw(rows, RANK, std=UP_STD)
    for folder, tensors, file in (
        (directory / "base", base, "model"),
        (directory / "adapter", adapter, "adapter_model"),
    ):
        folder.mkdir()
        save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})
    config = {"model_type": "qwen2", "tie_word_embeddings": True}
    (directory / "base" / "config.json").write_text(json.dumps(config))
    lora = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": sorted({*SHAPES})}
    lora["base_model_name_or_path"] = str(directory / "base")
    (directory / "adapter" / "adapter_config.json").write_text(json.dumps(lora))


def measure(directory: Path, num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Returns seconds and ratios of each part, and the largest differences between columns."""
    import torch

    from analyze.deltas.change import Comparison, measure_many
    from analyze.deltas.records import SpectralOptions, measure_spectra
    from models.adapters.opening import open_model
    from models.checkpoint import open_checkpoint, stored_layout, write_like

    base, adapter = open_checkpoint(directory / "base"), open_model(str(directory / "adapter"))
    (directory / "merged").mkdir()
    write_like(directory / "merged", start=base, weights=adapter)
    ends = {"dense": open_checkpoint(directory / "merged"), "factors": adapter}
    parameters = list(stored_layout(base))
    names = [parameter.name for parameter in parameters]
    options = SpectralOptions(top_k=None, with_null=False, subspace_rank=None, seed=0, device="cpu")
    found: dict[str, Any] = {}

    def elements(contender: str, *, floor: bool) -> None:
        comparison = Comparison(checkpoints=[base, ends[contender]], phases=[(0, 1)], floor=floor, counts=floor)
        changes = list(measure_many(comparison, names, num_threads=num_threads))
        if floor:
            found[contender] = {change.name: change.phases[0] for change in changes}

    def spectra(contender: str) -> None:
        torch.set_num_threads(num_threads)
        for parameter in parameters:
            record = measure_spectra([parameter], [(base, ends[contender])], [], options)[0]
            found[f"{contender}/{parameter.name}"] = record["phases"][0]

    def timed(work: Any, *words: Any, **options: Any) -> float:
        begin = time.perf_counter()
        work(*words, **options)
        return time.perf_counter() - begin

    parts = ("energy alone", "energy and floor", "spectra", "all")
    seconds: dict[str, dict[str, list[float]]] = {part: {name: [] for name in ends} for part in parts}
    for round_number in range(num_rounds):
        for contender in list(ends)[:: -1 if round_number % 2 else 1]:
            taken = {
                "energy alone": timed(elements, contender, floor=False),
                "energy and floor": timed(elements, contender, floor=True),
                "spectra": timed(spectra, contender),
            }
            taken["all"] = taken["energy and floor"] + taken["spectra"]
            print(f"round {round_number + 1}: {contender}: {taken['all']:.1f} s", flush=True)
            for part, value in taken.items():
                seconds[part][contender].append(value)
    return {
        "seconds": seconds,
        "factors_over_dense": {part: ratio(own["factors"], own["dense"]) for part, own in seconds.items()},
        "columns": compare_columns(directory, found["factors"][COMPARED], found[f"factors/{COMPARED}"]),
        "merged_changed_frac": sum(change.merged_num_changed for change in found["factors"].values())
        / sum(change.num_elements for change in found["factors"].values()),
    }


def compare_columns(directory: Path, change: Any, spectrum: dict[str, Any]) -> dict[str, float]:
    """Returns the relative difference of every exact column of one matrix from NumPy's, from all elements in fp64."""
    from safetensors.torch import load_file

    tensors = load_file(directory / "adapter" / "adapter_model.safetensors")
    module = f"base_model.model.{COMPARED.removesuffix('.weight')}"
    down, up = (tensors[f"{module}.lora_{part}.weight"].double().numpy() for part in "AB")
    weight = load_file(directory / "base" / "model.safetensors")[COMPARED].double().numpy()
    delta = ALPHA / RANK * up @ down
    spacing = np.exp2(np.maximum(np.floor(np.log2(np.abs(weight))), -126) - 7)
    sigma = np.linalg.svd(delta, compute_uv=False)
    leading, share = sigma[:RANK], sigma[:RANK] / sigma[:RANK].sum()
    expected = {
        "energy": (math.sqrt(change.delta_squares), np.linalg.norm(delta)),
        "start_norm": (math.sqrt(change.start_squares), np.linalg.norm(weight)),
        "max_change": (change.max_change, np.abs(delta).max()),
        "num_changed": (change.num_changed, np.count_nonzero(delta)),
        "rounding_energy": (math.sqrt(change.rounding_squares), math.sqrt((spacing**2).sum() / 12)),
        "changed_ulp_squares": (change.changed_ulp_squares, (spacing[delta != 0] ** 2).sum()),
        "spectral_norm": (spectrum["summary"]["spectral_norm"], leading[0]),
        "nuclear_norm": (spectrum["summary"]["nuclear_norm"], leading.sum()),
        "stable_rank": (spectrum["summary"]["stable_rank"], (leading**2).sum() / leading[0] ** 2),
        "effective_rank": (spectrum["summary"]["effective_rank"], math.exp(-(share * np.log(share)).sum())),
        "participation_ratio": (
            spectrum["summary"]["participation_ratio"], (leading**2).sum() ** 2 / (leading**4).sum(),
        ),
        "log_volume": (spectrum["summary"]["log_volume"], np.log(leading).sum()),
        "smallest_singular_value": (spectrum["sigma"][RANK - 1], leading[-1]),
    }  # fmt: skip
    assert not any(spectrum["sigma"][RANK:])
    return {name: float(abs(ours - theirs) / abs(theirs)) for name, (ours, theirs) in expected.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=2, help="number of runs of each contender")
    parser.add_argument("--layers", type=int, default=2, help="number of decoder layers, of the 3B model's 36")
    parser.add_argument(
        "--num-threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of both contenders"
    )
    parser.add_argument("--work-dir", type=Path, help="a folder on the disk to read from; emptied at the end")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 2 or arguments.layers < 1:
        parser.error("expected --rounds of at least 2, for an interval, and --layers of at least 1")
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="adapter-deltas-", dir=arguments.work_dir) as folder:
        prepare(Path(folder), arguments.layers)
        measured = measure(Path(folder), arguments.rounds, arguments.num_threads)
    result = {
        "command": f"python -m benchmarks.adapter_deltas --rounds {arguments.rounds} --layers {arguments.layers}",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "num_layers": arguments.layers,
        "rank": RANK,
        "num_threads": arguments.num_threads,
        **measured,
    }
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    for part, own in measured["factors_over_dense"].items():
        print(f"{part}: factors take {own['median']:.3f} [{own['low']:.3f}, {own['high']:.3f}] of the dense time")
    print(f"largest relative difference of a column: {max(measured['columns'].values()):.1e}")
    print(f"result: {arguments.output}")


if __name__ == "__main__":
    main()
