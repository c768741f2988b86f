"""The exact change of an adapter: every column against NumPy in fp64, and what merging leaves of it beside."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import subspace_angles

from models.adapters.merged import MergedCheckpoint
from models.adapters.opening import open_model
from models.checkpoint import open_checkpoint, write_like
from models.layout import layout_of
from models.loading import load_model
from models.pocket import write_pocket_checkpoint
from tests.analyze.deltas.changes import deltas, fp64
from tests.merge.donors import narrow
from tests.models.adapters.making import edit_config, write_adapter
from tracking.tables import write_table

TOLERANCE = 1e-6
EVERYTHING = "energy floor spectra null geometry"
SUBSPACE_RANK = 3
Models = dict[str, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A model in bf16 with two adapters of ranks 4 and 2 on it, and both merged in fp32, all in folders."""
    root = tmp_path_factory.mktemp("models")
    write_pocket_checkpoint(root / "fp32", shape=narrow(3), seed=0)
    model = load_model(root / "fp32", dtype=torch.bfloat16)
    shutil.copytree(root / "fp32", root / "base")
    model.save_pretrained(root / "base")
    small = {"std": 0.002, "target_modules": ["q_proj", "down_proj", "mlp.2"]}
    write_adapter(root / "base", root / "one", **small)
    write_adapter(root / "base", root / "two", seed=1, r=2, use_rslora=True, dtype=torch.bfloat16, **small)
    return {name: root / name for name in ("base", "one", "two")}


@pytest.fixture(scope="module")
def tables(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The command's tables before they are written, since the files have six digits."""
    written: dict[str, pd.DataFrame] = {}
    arms = ["--rl", f"one={models['one']}", f"two={models['two']}", "--subspace_rank", SUBSPACE_RANK]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "analyze.deltas.command.write_table",
            lambda path, table: (written.update({path.stem: table}), write_table(path, table)),
        )
        directory = tmp_path_factory.mktemp("run") / "out"
        spectra = deltas(directory, "--sft", models["base"], *arms, measures=EVERYTHING)["spectra"]
    assert len(list((directory / "figures").glob("*.png"))) == 5
    return written | {"spectra": spectra}


def product(models: Models, arm: str, name: str) -> np.ndarray:
    """s·B·A in fp64, by NumPy and the safetensors library alone; zeros where there is no update."""
    from safetensors.torch import load_file

    tensors = load_file(models[arm] / "adapter_model.safetensors")
    module = f"base_model.model.{name.removesuffix('.weight')}"
    if f"{module}.lora_A.weight" not in tensors:
        return np.zeros(open_checkpoint(models["base"]).tensors[name].shape)
    down, up = (tensors[f"{module}.lora_{part}.weight"].double().numpy() for part in "AB")
    return (8 / math.sqrt(2) if arm == "two" else 8 / 4) * up @ down


def expected_row(weight: np.ndarray, change: np.ndarray, merged: np.ndarray) -> dict[str, float]:
    """Every column of a changed matrix from its elements."""
    sigma = np.linalg.svd(change, compute_uv=False)
    sigma = sigma[sigma > 1e-12 * sigma[0]]
    share = sigma / sigma.sum()
    spacing = 2.0 ** (np.floor(np.log2(np.abs(weight))) - 7)
    moved = merged - weight
    energy = math.sqrt((change**2).sum())
    return {
        "energy": energy,
        "start_norm": np.linalg.norm(weight),
        "relative_energy": energy / np.linalg.norm(weight),
        "rms": energy / math.sqrt(change.size),
        "changed_frac": np.count_nonzero(change) / change.size,
        "rounding_energy": math.sqrt((spacing**2).sum() / 12),
        "energy_over_rounding": energy / math.sqrt((spacing**2).sum() / 12),
        "changed_rms_ulps": energy / math.sqrt((spacing[change != 0] ** 2).sum()),
        "max_change": np.abs(change).max(),
        "spectral_norm": sigma[0],
        "nuclear_norm": sigma.sum(),
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "effective_rank": math.exp(-(share * np.log(share)).sum()),
        "participation_ratio": (sigma**2).sum() ** 2 / (sigma**4).sum(),
        "log_volume": np.log(sigma).sum(),
        "num_in_log_volume": len(sigma),
        "merged_changed_frac": np.count_nonzero(moved) / change.size,
        "merged_energy": np.linalg.norm(moved),
        "merged_cosine": (moved * change).sum() / (np.linalg.norm(moved) * energy),
    }


@pytest.mark.slow
def test_every_column_is_that_of_the_whole_matrix(models: Models, tables: dict[str, pd.DataFrame]) -> None:
    matrices, spectra = tables["matrices"].set_index(["phase", "tensor"]), tables["spectra"]
    num_changed = 0
    for arm in ("one", "two"):
        merged = open_model(str(models[arm]))
        assert isinstance(merged, MergedCheckpoint)
        for name in layout_of(models["base"]).parameters:
            row, weight, change = matrices.loc[arm, name], fp64(models["base"], name), product(models, arm, name)
            if not change.any():
                assert (
                    row["verdict"] == "identical" and not row[["energy", "changed_frac", "merged_changed_frac"]].any()
                )
                continue
            num_changed += 1
            expected = expected_row(weight, change, merged.tensor(name).double().numpy())
            for column, value in expected.items():
                assert row[column] == pytest.approx(value, rel=TOLERANCE), (arm, name, column)
            assert row["spectrum_method"] == "factors" and "null_spectral_norm" not in matrices
            sigma = spectra[(spectra["phase"] == arm) & (spectra["tensor"] == name)]["sigma"].to_numpy()
            rank = 4 if arm == "one" else 2
            assert len(sigma) == min(change.shape) and (sigma[:rank] > 0).all() and not sigma[rank:].any()
            assert sigma[:rank] == pytest.approx(np.linalg.svd(change, compute_uv=False)[:rank], rel=TOLERANCE)
    assert num_changed == 2 * (3 + 3 + 2 + 1)  # the tower of two blocks has down_proj too


def test_sums_over_layers_and_blocks_are_those_of_the_matrices(models: Models, tables: dict[str, pd.DataFrame]) -> None:
    for arm in ("one", "two"):
        whole = [product(models, arm, name) for name in layout_of(models["base"]).parameters]
        for level in ("layers", "blocks", "regions"):
            own = tables[level][tables[level]["phase"] == arm]
            assert (own["energy"] ** 2).sum() == pytest.approx(sum((change**2).sum() for change in whole), rel=1e-6)
    ulps = tables["ulps"]
    names = layout_of(models["base"]).parameters
    changes = {name: product(models, "one", name) for name in names}
    steps = np.concatenate([
        (np.abs(change) / 2.0 ** (np.floor(np.log2(np.abs(fp64(models["base"], name)))) - 7)).ravel()
        for name, change in changes.items() if change.any()
    ])  # fmt: skip
    own = ulps[ulps["phase"] == "one"].groupby("ulps")["num_elements"].sum()
    assert own["1"] == ((steps > 0.5) & (steps <= 1.5)).sum()
    assert own[">1024"] == (steps > 1024.5).sum()


def test_directions_and_overlaps_of_two_adapters_are_those_of_the_matrices(
    models: Models, tables: dict[str, pd.DataFrame]
) -> None:
    rows = tables["geometry"].set_index("tensor")
    compared = 0
    for name in layout_of(models["base"]).parameters:
        one, two = (product(models, arm, name) for arm in ("one", "two"))
        if not one.any():
            continue
        compared += 1
        row = rows.loc[name]
        cosine = (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)
        assert row["cosine"] == pytest.approx(cosine, rel=TOLERANCE)
        both, either = np.count_nonzero(one * two), np.count_nonzero((one != 0) | (two != 0))
        assert row["overlap"] == pytest.approx(both / either, rel=TOLERANCE)
        assert row["subspace_rank"] == 2
        svd = [np.linalg.svd(change) for change in (one, two)]
        for side, bases in (
            ("left", (svd[0][0][:, :SUBSPACE_RANK], svd[1][0][:, :2])),
            ("right", (svd[0][2][:SUBSPACE_RANK].T, svd[1][2][:2].T)),
        ):
            angles = subspace_angles(*bases)
            assert row[f"{side}_overlap"] == pytest.approx(np.mean(np.cos(angles) ** 2), rel=TOLERANCE)
            assert row[f"{side}_largest_angle_deg"] == pytest.approx(np.degrees(angles[0]), rel=TOLERANCE)
        sigma = svd[0][1]
        assert row["gap_a"] == pytest.approx(1 - sigma[3] / sigma[2], rel=TOLERANCE)
        assert row["gap_b"] == pytest.approx(1, rel=TOLERANCE)
    assert compared == 9


def test_energy_alone_needs_no_merge_and_is_the_same(
    models: Models, tables: dict[str, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(*_: Any) -> None:
        raise AssertionError("merged")

    monkeypatch.setattr("models.adapters.merged.merge_tensor", merge)
    alone = deltas(tmp_path / "out", models["base"], models["one"])["layers"]
    own = tables["layers"][tables["layers"]["phase"] == "one"]
    assert alone["energy"].to_numpy() == pytest.approx(own["energy"].to_numpy(), rel=1e-5)  # six digits
    assert "merged_energy" not in alone


@pytest.mark.slow
def test_merging_in_bf16_loses_most_of_a_small_change_and_the_summary_says_so(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(models["base"], tmp_path / "faint", std=2e-5)
    deltas(tmp_path / "out", models["base"], tmp_path / "faint", measures="energy floor")
    blocks = pd.read_csv(tmp_path / "out" / "blocks.csv").set_index("block").loc[["early", "mid", "late"]]
    assert (blocks["merged_changed_frac"] < 0.1 * blocks["changed_frac"]).all()
    assert (blocks["merged_cosine"] < 0.7).all() and (blocks["num_at_floor"] == 2).all()
    printed = capsys.readouterr().out
    assert "adapters: changed by merging, %" in printed and "its change s·B·A is exact" in printed


@pytest.mark.slow
def test_dora_and_adapters_on_another_base_are_compared_as_merged(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dora = write_adapter(models["base"], tmp_path / "dora", use_dora=True)
    table = deltas(tmp_path / "out", models["base"], dora, measures="energy spectra")["matrices"].set_index("tensor")
    merged = open_model(str(dora))
    assert isinstance(merged, MergedCheckpoint)
    for name in merged.adapter.updates:
        change = merged.tensor(name).double().numpy() - fp64(models["base"], name)
        assert table.loc[name, "energy"] == pytest.approx(np.linalg.norm(change), rel=TOLERANCE)
        assert table.loc[name, "spectrum_method"] != "factors"
    assert "DoRA rescales the rows of 8 weights" in capsys.readouterr().out


@pytest.mark.slow
def test_an_adapter_as_the_start_is_subtracted_exactly(models: Models, tmp_path: Path) -> None:
    words = ["--base", models["base"], "--sft", models["one"], "--rl", models["two"]]
    tables = deltas(tmp_path / "out", *words, measures="energy floor")
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    one, two = (product(models, arm, name) for arm in ("one", "two"))
    energy = tables["matrices"].set_index(["phase", "tensor"])["energy"]
    assert energy["sft", name] == pytest.approx(np.linalg.norm(one), rel=1e-5)
    assert energy["rl", name] == pytest.approx(np.linalg.norm(two - one), rel=1e-5)
    merged = tables["matrices"].set_index(["phase", "tensor"])["merged_energy"]
    stored = [open_model(str(models[arm])).tensor(name).double() for arm in ("one", "two")]
    assert merged["rl", name] == pytest.approx(float((stored[1] - stored[0]).norm()), rel=1e-5)


@pytest.mark.slow
def test_the_merge_beside_the_adapter_is_what_the_merged_columns_say(models: Models, tmp_path: Path) -> None:
    merged = Path(shutil.copytree(models["base"], tmp_path / "merged"))
    write_like(merged, start=open_checkpoint(models["base"]), weights=open_model(str(models["one"])))
    words = ["--sft", models["base"], "--rl", f"exact={models['one']}", f"dense={merged}"]
    tables = deltas(tmp_path / "out", *words, measures=EVERYTHING)
    rows = tables["matrices"].set_index(["phase", "tensor"])
    pairs = tables["geometry"].set_index("tensor")
    for name in layout_of(models["base"]).parameters:
        exact, dense = rows.loc["exact", name], rows.loc["dense", name]
        assert exact["merged_energy"] == pytest.approx(dense["energy"], rel=1e-5)
        assert exact["merged_changed_frac"] == pytest.approx(dense["changed_frac"], rel=1e-5)
        if exact["energy"]:
            assert pairs.loc[name, "cosine"] == pytest.approx(exact["merged_cosine"], rel=1e-5)
            assert pairs.loc[name, "left_overlap"] > 0.9
            assert math.isnan(exact["null_spectral_norm"]) and dense["null_spectral_norm"] > 0
            assert dense["effective_rank"] > 1.2 * exact["effective_rank"]  # rounding looks like many ranks


@pytest.mark.slow
def test_another_base_than_the_one_in_its_configuration_is_noted(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pocket_checkpoint(tmp_path / "other", shape=narrow(3), seed=5)
    moved = Path(shutil.copytree(models["one"], tmp_path / "moved"))
    edit_config(moved, base_model_name_or_path=str(tmp_path / "other"))
    deltas(tmp_path / "out", models["base"], moved)
    assert "whose weights are not those of" in capsys.readouterr().out
    edit_config(moved, base_model_name_or_path="gone/at/all")
    deltas(tmp_path / "again", models["base"], moved)
