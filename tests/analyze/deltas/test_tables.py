"""The tables of the command, of every family, against NumPy in fp64 and closed forms."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyze.deltas.floor import ULP_LABELS
from models.layout import Layout, layout_of
from tests.analyze.deltas.changes import add, deltas, difference, fp64, nudge, rewrite

EVERYTHING = "energy floor spectra null geometry"
FROZEN = ".layers.1."
RANKS = ("stable_rank", "effective_rank", "participation_ratio")


@dataclass(frozen=True)
class Study:
    """Three checkpoints, their differences and the tables of one run over them."""

    sft: Path
    layout: Layout
    starts: dict[str, Path]
    deltas: dict[str, dict[str, np.ndarray]]
    tables: dict[str, pd.DataFrame]

    def matrices(self, phase: str) -> pd.DataFrame:
        table = self.tables["matrices"]
        return table[table["phase"] == phase].set_index("tensor")


FAMILIES = ["shallow", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "qwen2_vl", "qwen3_vl"))]


@pytest.fixture(scope="module", params=FAMILIES)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """SFT changes everything a little; RL a third of the elements, and nothing of one decoder layer."""
    root = tmp_path_factory.mktemp(request.param)
    base: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    sft = rewrite(base, root / "sft", nudge(1))
    rl = rewrite(sft, root / "rl", nudge(2, share=0.35, size=0.003, spare=FROZEN))
    tables = deltas(root / "out", "--base", base, "--sft", sft, "--rl", rl, measures=EVERYTHING)
    return Study(
        sft=sft,
        layout=layout_of(sft),
        starts={"sft": base, "rl": sft},
        deltas={"sft": difference(base, sft), "rl": difference(sft, rl)},
        tables=tables,
    )


def exact_ranks(values: np.ndarray) -> dict[str, float]:
    shares = values[values > 0] / values.sum()
    return {
        "stable_rank": (values**2).sum() / values[0] ** 2,
        "effective_rank": math.exp(-(shares * np.log(shares)).sum()),
        "participation_ratio": (values**2).sum() ** 2 / (values**4).sum(),
    }


@pytest.mark.cases_slow
@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_every_parameter_measures_what_numpy_measures(study: Study, phase: str) -> None:
    table = study.matrices(phase)
    assert list(table.index) == list(study.layout.parameters)
    assert table["num_elements"].sum() == study.layout.num_elements
    for name, row in table.iterrows():
        delta, before = study.deltas[phase][name], fp64(study.starts[phase], name)
        energy = np.linalg.norm(delta)
        assert row["energy"] == pytest.approx(energy, rel=1e-5)
        assert row["rms"] == pytest.approx(np.sqrt(np.mean(delta**2)), rel=1e-5)
        assert row["changed_frac"] == pytest.approx(np.mean(delta != 0), rel=1e-5)
        assert row["max_change"] == pytest.approx(np.abs(delta).max(), rel=1e-5)
        relative = energy / np.linalg.norm(before) if before.any() else math.nan
        assert row["relative_energy"] == pytest.approx(relative, rel=1e-5, nan_ok=True)
        ulps = np.spacing(np.abs(before.astype(np.float32))).astype(np.float64)
        assert row["rounding_energy"] == pytest.approx(np.sqrt(np.sum(ulps**2) / 12), rel=1e-5)
        assert row["verdict"] == ("identical" if not delta.any() else "above floor")


@pytest.mark.parametrize("level", ["layers", "blocks", "regions"])
def test_groups_are_what_their_tensors_add_up_to(study: Study, level: str) -> None:
    keys = {"layers": ["region", "layer"], "blocks": ["block"], "regions": ["region"]}[level]
    groups = study.tables[level]
    for phase, own in study.deltas.items():
        table, block = groups[groups["phase"] == phase], study.matrices(phase)["block"].to_dict()
        whole = sum(np.sum(delta**2) for delta in own.values())
        assert np.sum(table["energy"] ** 2) == pytest.approx(whole, rel=1e-4)
        assert table["num_elements"].sum() == study.layout.num_elements
        assert not table.duplicated(keys).any()
        for row in table.to_dict("records"):
            members = [
                own[parameter.name]
                for parameter in study.layout
                if ("block" in keys or parameter.region == row["region"])
                and ("layer" not in keys or parameter.index == (None if math.isnan(row["layer"]) else row["layer"]))
                and ("block" not in keys or block[parameter.name] == row["block"])
            ]
            energies = [np.linalg.norm(delta) for delta in members if delta.ndim > 1]
            assert row["energy"] == pytest.approx(math.sqrt(sum(np.sum(delta**2) for delta in members)), rel=1e-5)
            assert row["energy_sum"] == pytest.approx(sum(energies), rel=1e-5)
            mean = np.mean(energies) if energies else math.nan
            assert row["energy_mean"] == pytest.approx(mean, rel=1e-5, nan_ok=True)
            changed = sum(np.count_nonzero(delta) for delta in members) / sum(delta.size for delta in members)
            assert row["changed_frac"] == pytest.approx(changed, rel=1e-5)


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_every_singular_value_is_numpys(study: Study, phase: str) -> None:
    spectra = study.tables["spectra"]
    found = dict(list(spectra[spectra["phase"] == phase].groupby("tensor", observed=True)))
    matrices = [parameter for parameter in study.layout if len(parameter.shape) > 1]
    assert set(found) == {parameter.name for parameter in matrices}
    assert any(len(parameter.shape) > 2 for parameter in matrices) != study.layout.family.text_only
    table = study.matrices(phase)
    for parameter in matrices:
        delta = study.deltas[phase][parameter.name]
        values = np.linalg.svd(delta.reshape(len(delta), -1), compute_uv=False)
        own = found[parameter.name]
        assert list(own["rank"]) == list(range(1, len(values) + 1))
        large = values > 1e-4 * values[0]
        np.testing.assert_allclose(own["sigma"][large], values[large], rtol=1e-4)
        row = table.loc[parameter.name]
        assert (row["num_rows"], row["num_columns"]) == (len(delta), delta.size // len(delta))
        if not delta.any():
            assert (own["sigma"] == 0).all() and (row[[*RANKS, "spectral_norm", "nuclear_norm"]] == 0).all()
            assert math.isnan(row["log_volume"])
            continue
        assert row["spectral_norm"] == pytest.approx(values[0], rel=1e-5)
        assert row["nuclear_norm"] == pytest.approx(values.sum(), rel=1e-5)
        for name, rank in exact_ranks(values).items():
            assert row[name] == pytest.approx(rank, rel=1e-4)
        leading = values[: int(row["num_in_log_volume"])]
        assert len(leading) == min(50, len(values))
        assert row["log_volume"] == pytest.approx(np.log(leading).sum(), rel=1e-5)
    assert table.loc[[name for name in table.index if name not in found], "spectral_norm"].isna().all()


def test_the_null_has_the_same_size_and_no_fewer_directions(study: Study) -> None:
    spectra = study.tables["spectra"]
    norms = spectra.groupby(["phase", "tensor"], observed=True)[["sigma", "null_sigma"]].agg(lambda own: np.sum(own**2))
    np.testing.assert_allclose(norms["null_sigma"], norms["sigma"], rtol=1e-6)
    decay = study.tables["decay"]
    assert set(decay["block"]) >= {"early", "late"} and set(decay["phase"]) == {"sft", "rl"}
    assert (decay.loc[decay["rank"] == 1, ["median", "null_median"]] == 0).all(axis=None)
    assert (decay["low"] <= decay["median"]).all() and (decay["median"] <= decay["high"]).all()


def test_two_phases_have_the_geometry_that_numpy_finds(study: Study) -> None:
    table = study.tables["geometry"].set_index("tensor")
    assert list(table.index) == list(study.layout.parameters)
    for name, row in table.iterrows():
        one, other = study.deltas["sft"][name], study.deltas["rl"][name]
        if not other.any():
            assert row[["cosine", "left_overlap", "right_smallest_angle_deg"]].isna().all() and row["overlap"] == 0
            continue
        cosine = np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other)
        assert row["cosine"] == pytest.approx(cosine, rel=1e-4, abs=1e-6)
        both, either = np.sum((one != 0) & (other != 0)), np.sum((one != 0) | (other != 0))
        assert row["overlap"] == pytest.approx(both / either, rel=1e-5)
        if one.ndim == 1:
            assert math.isnan(row["left_overlap"])
            continue
        k = int(row["subspace_rank"])
        assert k == min(16, *one.reshape(len(one), -1).shape)
        bases = [np.linalg.svd(delta.reshape(len(delta), -1), full_matrices=False) for delta in (one, other)]
        for side, spans in (("left", [b[0][:, :k] for b in bases]), ("right", [b[2][:k].T for b in bases])):
            cosines = np.linalg.svd(spans[0].T @ spans[1], compute_uv=False).clip(0, 1)
            assert row[f"{side}_overlap"] == pytest.approx(np.mean(cosines**2), abs=1e-4)
            assert row[f"{side}_smallest_angle_deg"] == pytest.approx(np.degrees(np.arccos(cosines[0])), abs=0.1)
            assert row[f"{side}_chance"] == pytest.approx(k / len(spans[0]), rel=1e-5)


def test_an_untouched_layer_is_exactly_zero_in_every_table(study: Study) -> None:
    for name in ("matrices", "layers"):
        table = study.tables[name]
        frozen = table[(table["phase"] == "rl") & (table["region"] == "llm") & (table["layer"] == 1)]
        assert len(frozen) and (frozen[["energy", "relative_energy", "rms", "changed_frac"]] == 0).all(axis=None)
        others = table[(table["phase"] == "rl") & ~table.index.isin(frozen.index)]
        assert (others["energy"] > 0).all()


def test_every_element_is_counted_once_among_the_ulps(study: Study) -> None:
    table = study.tables["ulps"]
    for phase, own in study.deltas.items():
        ulps = table[table["phase"] == phase]
        assert ulps["num_elements"].sum() == study.layout.num_elements
        assert set(ulps["ulps"]) == set(ULP_LABELS)
        unmoved = ulps.loc[ulps["ulps"] == "0", "num_elements"].sum()
        assert unmoved >= sum(delta.size - np.count_nonzero(delta) for delta in own.values())
        np.testing.assert_allclose(ulps.groupby("block")["frac"].sum(), 1, rtol=1e-4)


@pytest.fixture(scope="module")
def known(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Changes of known rank, planted in tensors that were zero, so that fp32 stores them exactly."""
    root = tmp_path_factory.mktemp("known")
    blank = rewrite(pocket_checkpoint, root / "blank", lambda _, tensor: torch.zeros_like(tensor))

    def of_rank(rank: int, rows: int, columns: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(rank)
        left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (rows, columns))
        return 0.01 * torch.linalg.qr(left)[0] @ torch.linalg.qr(right)[0].T

    planted = {
        "layers.0.mlp.up_proj.weight": of_rank(1, 320, 128),
        "layers.1.mlp.up_proj.weight": of_rank(8, 320, 128),
        "layers.2.mlp.down_proj.weight": of_rank(64, 128, 320),
        "layers.3.self_attn.q_proj.weight": of_rank(128, 128, 128),
        "layers.4.self_attn.q_proj.weight": torch.diag(torch.arange(1, 129) / 128),
    }
    end = rewrite(blank, root / "end", add(planted))
    table = deltas(root / "out", "--sft", blank, "--rl", end, measures="energy spectra null")["matrices"]
    return table.set_index(table["tensor"].str.removeprefix("model.language_model."))


@pytest.mark.parametrize(
    ("tensor", "rank"),
    [("0.mlp.up_proj", 1), ("1.mlp.up_proj", 8), ("2.mlp.down_proj", 64), ("3.self_attn.q_proj", 128)],
)
def test_equal_singular_values_measure_their_number(known: pd.DataFrame, tensor: str, rank: int) -> None:
    row = known.loc[f"layers.{tensor}.weight"]
    assert row["energy"] == pytest.approx(0.01 * math.sqrt(rank), rel=1e-5)
    assert row["spectral_norm"] == pytest.approx(0.01, rel=1e-5)
    for name in RANKS:
        assert row[name] == pytest.approx(rank, rel=1e-3)
    assert row["null_effective_rank"] > (1.2 * rank if rank < 64 else 64)


def test_a_diagonal_change_has_its_entries_as_singular_values(known: pd.DataFrame) -> None:
    row = known.loc["layers.4.self_attn.q_proj.weight"]
    values = np.arange(128, 0, -1) / 128
    assert row["nuclear_norm"] == pytest.approx(values.sum(), rel=1e-5)
    for name, rank in exact_ranks(values).items():
        assert row[name] == pytest.approx(rank, rel=1e-5)


@pytest.fixture(scope="module")
def rounded(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """True updates of fp32 masters of std 0.02, as bf16 stores them."""
    root = tmp_path_factory.mktemp("rounded")

    def master(name: str, tensor: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(name))
        return torch.randn(tensor.shape, generator=generator) * 0.02

    def moved(ulps: float) -> Path:
        def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
            exact = master(name, tensor)
            step = torch.exp2(torch.floor(torch.log2(exact.abs())) - 7)
            return (exact + ulps * step * torch.randn(tensor.shape)).bfloat16()

        torch.manual_seed(0)
        return rewrite(pocket_checkpoint, root / f"{ulps:g}", change)

    def rank_one(name: str, tensor: torch.Tensor) -> torch.Tensor:
        exact = master(name, tensor)
        if not name.endswith("up_proj.weight"):
            return exact.bfloat16()
        update = torch.randn(len(exact), 1) @ torch.randn(1, exact.shape[1])
        return (exact + update * 1e-6 / update.square().mean().sqrt()).bfloat16()

    start, below, above = moved(0), moved(0.05), moved(3)
    one = rewrite(pocket_checkpoint, root / "one", rank_one)
    arms = [f"same={start}", f"below={below}", f"above={above}"]
    tables = deltas(root / "out", "--sft", start, "--rl", *arms, measures="energy floor")
    tables["one"] = deltas(root / "one-out", "--sft", start, "--rl", one, measures="energy floor spectra null")[
        "matrices"
    ]
    return tables


def test_the_verdict_tells_rounding_from_change(rounded: dict[str, pd.DataFrame]) -> None:
    table = rounded["matrices"].set_index("phase")
    assert set(table.loc["same", "verdict"]) == {"identical"}
    large = table["num_elements"] > 1000
    assert set(table[large].loc["below", "verdict"]) == {"at floor"}
    assert set(table.loc["below", "verdict"]) <= {"at floor", "identical"}
    assert set(table.loc["above", "verdict"]) == {"above floor"}
    assert (table[large].loc["below", "energy_over_rounding"] < 2).all()
    assert (table[large].loc["above", "energy_over_rounding"] > 5).all()
    blocks = rounded["blocks"].set_index("phase")
    count = table[table["block"] == "mid"].loc["below", "verdict"].value_counts()
    mid = blocks[blocks["block"] == "mid"].loc["below"]
    assert (mid["num_at_floor"], mid["num_identical"]) == (count["at floor"], count.get("identical", 0))


def test_a_rank_one_update_below_one_ulp_looks_like_many_directions_and_is_flagged(
    rounded: dict[str, pd.DataFrame],
) -> None:
    table = rounded["one"]
    updated = table[table["tensor"].str.endswith("language_model.layers.0.mlp.up_proj.weight")].iloc[0]
    assert updated["verdict"] == "at floor"
    assert updated["effective_rank"] > 60
    assert updated["effective_rank"] == pytest.approx(updated["null_effective_rank"], rel=0.2)
    assert updated["rms"] > 5e-6


@pytest.mark.slow
def test_equal_opposite_and_orthogonal_changes_have_the_geometry_they_must(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    tensor = "model.language_model.layers.0.mlp.up_proj.weight"
    blank = rewrite(pocket_checkpoint, tmp_path / "blank", lambda _, whole: torch.zeros_like(whole))
    rows, columns = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    noise = torch.randn(320, 128, generator=rows)
    left, right = (
        torch.linalg.qr(torch.randn(size, 2, generator=own))[0] for size, own in ((320, rows), (128, columns))
    )
    upper = (torch.arange(320) < 160)[:, None]
    arms = {
        "noise": noise, "same": noise, "opposite": -noise, "still": 0 * noise,
        "first": torch.outer(left[:, 0], right[:, 0]),
        "second": torch.outer(left[:, 1], right[:, 1]),
        "upper": noise * upper,
        "lower": noise * ~upper,
    }  # fmt: skip

    def compared(*names: str) -> pd.DataFrame:
        words = [f"{name}={rewrite(blank, tmp_path / name, add({tensor: arms[name]}))}" for name in names]
        out = tmp_path / "-".join(names)
        table = deltas(out, "--sft", blank, "--rl", *words, measures="energy geometry")["geometry"]
        return table[table["tensor"] == tensor].set_index("phase_b")

    table = compared("noise", "same", "opposite", "still")
    angles = [f"{side}_{which}_angle_deg" for side in ("left", "right") for which in ("smallest", "largest")]
    overlaps = ["left_overlap", "right_overlap"]
    for name, cosine in (("same", 1), ("opposite", -1)):
        assert table.loc[name, "cosine"] == pytest.approx(cosine, abs=1e-6)
        np.testing.assert_allclose(table.loc[name, [*overlaps, "overlap"]].astype(float), 1, atol=1e-6)
        np.testing.assert_allclose(table.loc[name, angles].astype(float), 0, atol=1e-4)
    assert table.loc["still", ["cosine", *overlaps, *angles]].isna().all() and table.loc["still", "overlap"] == 0
    row = compared("first", "second").loc["second"]
    assert row["cosine"] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(row[overlaps].astype(float), 0, atol=1e-6)
    row = compared("upper", "lower").loc["lower"]
    assert (row["overlap"], row["cosine"], row["num_both_changed"]) == (0, 0, 0)
