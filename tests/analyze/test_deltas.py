"""Weight deltas against NumPy in fp64, and exact zeros where nothing changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyze.deltas import main
from models.checkpoint import open_checkpoint, write_safetensors
from models.layout import Layout, layout_of

Change = Callable[[str, torch.Tensor], torch.Tensor]
SPELLED = {torch.float32: "F32", torch.bfloat16: "BF16"}


def rewrite(source: Path, target: Path, change: Change) -> Path:
    """Copies a checkpoint, each tensor as `change` returns it."""
    shutil.copytree(source, target)
    checkpoint = open_checkpoint(source)
    changed = {
        stored.name_on_disk: change(name, checkpoint.tensor(name)) for name, stored in checkpoint.tensors.items()
    }
    entries = [(name, SPELLED[tensor.dtype], tuple(tensor.shape)) for name, tensor in changed.items()]
    write_safetensors(
        target / "model.safetensors",
        entries,
        lambda name: changed[name].contiguous().view(torch.uint8).numpy().tobytes(),
    )
    return target


def measure(output_dir: Path, sft: Path, *rl: str, more: tuple[str, ...] = ()) -> dict[str, pd.DataFrame]:
    main(["--sft", str(sft), "--rl", *rl, "--output_dir", str(output_dir), *more])
    return {name: pd.read_csv(output_dir / f"{name}.csv") for name in ("matrices", "layers", "blocks")}


def fp64(directory: Path, name: str) -> np.ndarray:
    return open_checkpoint(directory).tensor(name).float().numpy().astype(np.float64)


def nudge(seed: int, *, share: float, size: float, only: str = "") -> Change:
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator) * size
        chosen = torch.rand(tensor.shape, generator=generator) < share
        if only not in name:
            return tensor
        return torch.where(chosen, tensor.float() + noise, tensor.float()).to(tensor.dtype)

    return change


def test_no_change_is_exactly_zero(pocket_checkpoint: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(pocket_checkpoint, tmp_path / "same"))
    for table in measure(tmp_path / "out", pocket_checkpoint, f"full@0={same}").values():
        assert (table[["energy", "rms", "changed_frac"]] == 0).all(axis=None)
        assert (table.loc[table["start_norm"] > 0, "relative_energy"] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_change_measures_what_numpy_measures(
    pocket_checkpoint: Path, pocket_layout: Layout, tmp_path: Path, dtype: torch.dtype
) -> None:
    sft = rewrite(pocket_checkpoint, tmp_path / "sft", lambda _, tensor: tensor.to(dtype))
    arm = rewrite(sft, tmp_path / "arm", nudge(1, share=0.4, size=0.01))
    tables = measure(tmp_path / "out", sft, f"full@3={arm}")
    matrices = tables["matrices"].set_index("tensor")
    assert list(matrices.index) == list(pocket_layout.parameters)
    for name, row in matrices.iterrows():
        before, after = fp64(sft, name), fp64(arm, name)
        energy = np.linalg.norm(after - before)
        assert row["energy"] == pytest.approx(energy, rel=1e-5)
        if before.any():
            assert row["relative_energy"] == pytest.approx(energy / np.linalg.norm(before), rel=1e-5)
        assert row["rms"] == pytest.approx(np.sqrt(np.mean((after - before) ** 2)), rel=1e-5)
        assert row["changed_frac"] == pytest.approx(np.mean(before != after), rel=1e-5)
        assert (row["phase"], row["seed"]) == ("full", 3)


def test_blocks_and_layers_sum_to_the_whole_in_squares(
    pocket_checkpoint: Path, pocket_layout: Layout, tmp_path: Path
) -> None:
    arm = rewrite(pocket_checkpoint, tmp_path / "arm", nudge(2, share=0.5, size=0.02))
    tables = measure(tmp_path / "out", pocket_checkpoint, f"full={arm}")
    whole = sum(np.sum((fp64(arm, name) - fp64(pocket_checkpoint, name)) ** 2) for name in pocket_layout.parameters)
    for table in tables.values():
        assert (table["energy"] ** 2).sum() == pytest.approx(whole, rel=1e-4)
        assert table["num_elements"].sum() == pocket_layout.num_elements
    decoder = tables["layers"][tables["layers"]["region"] == "llm"]
    assert list(decoder["layer"]) == list(range(pocket_layout.num_layers))


def test_only_the_layer_that_changed_has_energy(pocket_checkpoint: Path, pocket_layout: Layout, tmp_path: Path) -> None:
    last = pocket_layout.num_layers - 1
    arm = rewrite(
        pocket_checkpoint, tmp_path / "arm", nudge(3, share=1.0, size=0.01, only=f"language_model.layers.{last}.")
    )
    layers = measure(tmp_path / "out", pocket_checkpoint, f"freeze-mid@0={arm}")["layers"]
    moved = layers[layers["energy"] > 0]
    assert list(zip(moved["region"], moved["layer"], strict=True)) == [("llm", last)]
    assert (layers[layers["energy"] == 0]["changed_frac"] == 0).all()


@pytest.mark.parametrize(
    ("kind", "tensor", "place"),
    [
        ("qwen2", "model.layers.1.self_attn.q_proj.bias", ("mid", "llm", 1)),
        ("qwen2", "lm_head.weight", ("head", "head", None)),
        ("qwen3_vl", "model.language_model.layers.3.self_attn.k_norm.weight", ("late", "llm", 3)),
        ("qwen3_vl", "model.visual.deepstack_merger_list.1.linear_fc2.weight", ("projector", "projector", None)),
        ("qwen3_vl", "model.visual.pos_embed.weight", ("vision", "vision", None)),
    ],
)
def test_the_change_of_one_tensor_is_filed_where_its_family_has_it(
    kind: str, tensor: str, place: tuple[str, str, int | None], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    sft = request.getfixturevalue(f"{kind}_checkpoint")
    arm = rewrite(sft, tmp_path / "arm", nudge(5, share=1.0, size=0.01, only=tensor))
    tables = measure(tmp_path / "out", sft, f"full@0={arm}")
    assert list(tables["matrices"]["tensor"]) == list(layout_of(sft).parameters)
    moved = tables["layers"][tables["layers"]["energy"] > 0]
    assert len(moved) == 1
    block, region, layer = place
    assert (moved["block"].iloc[0], moved["region"].iloc[0]) == (block, region)
    assert moved["layer"].isna().all() if layer is None else moved["layer"].iloc[0] == layer
    assert moved["energy"].iloc[0] == pytest.approx(np.linalg.norm(fp64(arm, tensor) - fp64(sft, tensor)), rel=1e-5)


def test_one_last_bit_of_bf16_is_seen_and_not_rounded_away(pocket_checkpoint: Path, tmp_path: Path) -> None:
    sft = rewrite(pocket_checkpoint, tmp_path / "sft", lambda _, tensor: tensor.bfloat16())

    def one_bit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name != "model.language_model.embed_tokens.weight":
            return tensor
        tensor.view(torch.int16)[0, 0] ^= 1
        return tensor

    matrices = measure(tmp_path / "out", sft, f"full={rewrite(sft, tmp_path / 'arm', one_bit)}")["matrices"]
    moved = matrices[matrices["energy"] > 0]
    assert list(moved["tensor"]) == ["model.language_model.embed_tokens.weight"]
    name = "model.language_model.embed_tokens.weight"
    expected = abs(fp64(tmp_path / "arm", name)[0, 0] - fp64(sft, name)[0, 0])
    assert expected > 0
    assert moved["energy"].iloc[0] == pytest.approx(expected, rel=1e-5)


def test_the_sft_phase_is_measured_where_a_base_is_named(pocket_checkpoint: Path, tmp_path: Path) -> None:
    sft = rewrite(pocket_checkpoint, tmp_path / "sft", nudge(4, share=1.0, size=0.01))
    blocks = measure(tmp_path / "out", sft, f"full@0={sft}", more=("--base", str(pocket_checkpoint)))["blocks"]
    energy = blocks.groupby("phase")["energy"].sum()
    assert energy["sft"] > 0 and energy["full"] == 0


def test_a_model_named_twice_and_a_malformed_name_are_refused(pocket_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names 'full' with seed '0' twice"):
        measure(tmp_path / "out", pocket_checkpoint, *[f"full@0={pocket_checkpoint}"] * 2)
    with pytest.raises(ValueError, match="is no NAME=CHECKPOINT"):
        measure(tmp_path / "out", pocket_checkpoint, str(pocket_checkpoint))
    assert not (tmp_path / "out").exists()
