"""The command: what it compares, what it refuses, how it continues, and that results depend on nothing else."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analyze.deltas.command import main
from analyze.deltas.figures import DeltaTables, draw_ranks
from models.pocket import write_pocket_checkpoint
from tests.analyze.deltas.changes import deltas, difference, fp64, nudge, rewrite
from tests.merge.donors import narrow, respell
from tests.models.damage import DAMAGES, MISFITS
from tracking.command import REPOSITORY_ROOT

EVERYTHING = "energy floor spectra null geometry"
FIGURES = {"energy", "changed", "ranks", "decay", "geometry"}
EMBED = "model.language_model.embed_tokens.weight"
KILLED = """
import os, signal, sys
from analyze.deltas.figures import DeltaTables, draw_ranks
from analyze.deltas.command import main
from tracking.records import RecordLog

def append(log, *records, append=RecordLog.append):
    append(log, *records)
    if len(log) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

RecordLog.append = append
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A narrow pocket model as base, after SFT, and two arms of RL: `full`, and `frozen` without decoder layer 1."""
    root = tmp_path_factory.mktemp("models")
    write_pocket_checkpoint(root / "base", shape=narrow(4), seed=0)
    sft = rewrite(root / "base", root / "sft", nudge(1))
    rewrite(sft, root / "full", nudge(2, share=0.5, size=0.003))
    rewrite(sft, root / "frozen", nudge(3, share=0.5, size=0.003, spare=".layers.1."))
    return {name: root / name for name in ("base", "sft", "full", "frozen")}


def command(models: dict[str, Path], output_dir: Path, *more: str, measures: str = EVERYTHING) -> list[str]:
    """The whole analysis: SFT's phase and two arms."""
    arms = [f"{name}@0={models[name]}" for name in ("full", "frozen")]
    paths = ["--base", str(models["base"]), "--sft", str(models["sft"]), "--output_dir", str(output_dir)]
    return [*paths, "--rl", *arms, "--measures", *measures.split(), "--num_threads", "1", *more]


@pytest.fixture(scope="module")
def undisturbed(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    main(command(models, output_dir))
    return output_dir


def products(output_dir: Path) -> dict[str, bytes]:
    """What the command is for: its tables and figures."""
    return {
        str(path.relative_to(output_dir)): path.read_bytes()
        for path in sorted(output_dir.rglob("*"))
        if path.suffix in (".csv", ".parquet", ".png")
    }


def assert_refused(message: str, output_dir: Path, *words: object, measures: str = "energy") -> None:
    """One line, and nothing written."""
    with pytest.raises(ValueError, match=message) as caught:
        deltas(output_dir, *words, measures=measures)
    assert "\n" not in str(caught.value)
    assert not output_dir.exists()


def test_three_checkpoints_make_two_phases_and_any_two_make_one(models: dict[str, Path], tmp_path: Path) -> None:
    base, sft, rl = models["base"], models["sft"], models["full"]
    both = deltas(tmp_path / "both", "--base", base, "--sft", sft, "--rl", rl)["layers"]
    assert list(dict.fromkeys(both["phase"])) == ["sft", "rl"]
    for words, phase in ((("--base", base), "sft"), (("--rl", rl), "rl")):
        alone = deltas(tmp_path / phase, "--sft", sft, *words)["layers"]
        expected = both[both["phase"] == phase].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, expected, check_dtype=False)


@pytest.mark.slow
def test_start_and_end_are_short_for_sft_and_rl(models: dict[str, Path], tmp_path: Path) -> None:
    start, end = str(models["sft"]), str(models["full"])
    more = ["--measures", "energy", "--num-threads", "1", "--output-dir"]
    main([start, end, *more, str(tmp_path / "short")])
    main(["--sft", start, "--rl", end, *more, str(tmp_path / "long")])
    assert products(tmp_path / "short") == products(tmp_path / "long")
    main(["--sft", start, "--rl", end, *more, str(tmp_path / "short")])  # the same run, which is finished
    for words, message in (
        ([start], "1 checkpoints without a name: .*; expected two, START END"),
        ([start, end, end], "3 checkpoints without a name"),
        ([start, end, "--base", start], "START END is short for --sft START --rl END"),
        ([], "no checkpoint is given; expected START END, or --sft"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*words, *more, str(tmp_path / "refused")])
    assert not (tmp_path / "refused").exists()


def test_arms_have_a_line_each_with_frozen_blocks_exactly_zero(models: dict[str, Path], tmp_path: Path) -> None:
    full, frozen = models["full"], models["frozen"]
    arms = [f"full@0={full}", f"full@1={frozen}", f"freeze-mid@0={frozen}"]
    words = ("--sft", models["sft"], "--rl", arms[0], "--rl", *arms[1:])
    tables = deltas(tmp_path / "out", *words, measures="energy floor")
    table = tables["arms"].set_index(["phase", "seed"])
    assert list(table.index) == [("full", 0), ("full", 1), ("freeze-mid", 0)]
    zero = table["mid_relative_energy"] == 0
    assert list(zero) == [False, True, True] == list(table["mid_changed_frac"] == 0)
    assert (table.drop(columns=["mid_relative_energy", "mid_changed_frac"]) > 0).all(axis=None)
    blocks = tables["blocks"].set_index(["phase", "seed", "block"])["relative_energy"]
    assert table.loc[("full", 0), "late_relative_energy"] == blocks["full", 0, "late"]


def test_cuts_place_the_layers(models: dict[str, Path], tmp_path: Path) -> None:
    words = ("--sft", models["sft"], "--rl", models["full"], "--cuts", 2, 3)
    layers = deltas(tmp_path / "out", *words)["layers"]
    assert list(layers.loc[layers["region"] == "llm", "block"]) == ["early", "early", "mid", "late"]


MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown measure": ("measure 'energi' is unknown; did you mean 'energy'", ("--rl", "FULL", "--measures", "energi")),
    "null alone": ("expected 'spectra' beside it", ("--rl", "FULL", "--measures", "energy", "null")),
    "nothing to compare": ("only --sft is given; expected --rl, --base or both", ()),
    "arm named twice": ("'a@0' is named twice", ("--rl", "a@0=FULL", "a@0=FROZEN")),
    "arm named like the phase": ("'sft' is named twice", ("--base", "BASE", "--rl", "sft=FULL")),
    "several without names": ("is no NAME=CHECKPOINT", ("--rl", "FULL", "FROZEN")),
    "name without checkpoint": ("is no NAME=CHECKPOINT", ("--rl", "a@0=")),
    "checkpoint without name": ("is no NAME=CHECKPOINT", ("--rl", "=FULL")),
    "missing checkpoint": ("checkpoint nowhere/at/all does not exist", ("--rl", "nowhere/at/all")),
    "another depth": ("lacks 'model.language_model.layers.3", ("--rl", "SHALLOW")),
    "another family": ("lacks 'model.language_model.embed_tokens.weight', which", ("--rl", "QWEN2")),
    "unknown partition": ("'halves' is unknown; expected one of thirds", ("--rl", "FULL", "--partition", "halves")),
    "cuts beyond the layers": ("cuts", ("--rl", "FULL", "--cuts", "2", "9")),
    "no values": ("top_k is 0; it must be at least 1", ("--rl", "FULL", "--top_k", "0")),
    "unknown argument": (
        "unknown argument '--measure'; did you mean '--measures'",
        ("--rl", "FULL", "--measure", "energy"),
    ),
    "no such device": ("device 'tpu' is not available; expected cpu", ("--rl", "FULL", "--device", "tpu")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    mistake: str, models: dict[str, Path], qwen2_checkpoint: Path, pocket_checkpoint: Path, tmp_path: Path
) -> None:
    message, words = MISTAKES[mistake]
    if mistake == "another depth":
        write_pocket_checkpoint(tmp_path / "shallow", shape=narrow(3), seed=0)
    paths = {name.upper(): path for name, path in models.items()}
    paths |= {"QWEN2": qwen2_checkpoint, "SHALLOW": tmp_path / "shallow"}
    for name, path in paths.items():
        words = tuple(word.replace(name, str(path)) for word in words)
    with pytest.raises(ValueError, match=message) as caught:
        main(["--sft", str(models["sft"]), "--output_dir", str(tmp_path / "out"), *words])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_null_without_quotes_is_told_from_the_measure(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "deltas.yaml").write_text("measures: [spectra, null]\n")
    words = ["--config", tmp_path / "deltas.yaml", "--sft", models["sft"], "--rl", models["full"]]
    with pytest.raises(ValueError, match="in YAML the measure is written in quotes"):
        main([*map(str, words), "--output_dir", str(tmp_path / "out")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_said_before_anything_is_written(models: dict[str, Path], tmp_path: Path) -> None:
    words = ("--sft", models["sft"], "--rl", models["full"], "--device", "cuda")
    assert_refused("device 'cuda' is not available; expected cpu", tmp_path / "out", *words)


@pytest.mark.parametrize("damage", [*DAMAGES, *MISFITS])
def test_a_damaged_checkpoint_is_one_line_and_writes_nothing(
    damage: str, models: dict[str, Path], tmp_path: Path
) -> None:
    apply, message = {**DAMAGES, **MISFITS}[damage]
    broken = Path(shutil.copytree(models["full"], tmp_path / "broken"))
    apply(broken)
    assert_refused(message, tmp_path / "out", "--sft", models["sft"], "--rl", broken)
    if damage in ("missing_folder", "truncated_shard", "added_layer", "mixed_dtypes"):
        assert_refused(message, tmp_path / "out", "--sft", broken, "--rl", models["full"])
        assert_refused(message, tmp_path / "out", "--sft", models["sft"], "--base", broken)


def test_weights_that_are_not_finite_are_refused_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    def diverged(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_fill(0, torch.tensor([0]), float("nan")) if name == EMBED else tensor

    broken = rewrite(models["full"], tmp_path / "broken", diverged)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight' holds 32 values of \d+ that are NaN or infinite"):
        deltas(tmp_path / "out", "--sft", models["sft"], "--rl", broken)
    assert not products(tmp_path / "out")


@pytest.mark.cases_slow
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16),
    ],
)
def test_stored_dtypes_may_differ_and_are_subtracted_as_they_are(
    start: torch.dtype, end: torch.dtype, models: dict[str, Path], tmp_path: Path
) -> None:
    sft = rewrite(models["sft"], tmp_path / "sft", lambda _, tensor: tensor.to(start))
    rl = rewrite(models["full"], tmp_path / "rl", lambda _, tensor: tensor.to(end))
    table = deltas(tmp_path / "out", "--sft", sft, "--rl", rl, measures="energy floor")["matrices"].set_index("tensor")
    for name, delta in difference(sft, rl).items():
        assert table.loc[name, "energy"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert table.loc[name, "changed_frac"] == pytest.approx(np.mean(delta != 0), rel=1e-5)


def test_one_last_bit_of_bf16_is_seen(models: dict[str, Path], tmp_path: Path) -> None:
    sft = rewrite(models["sft"], tmp_path / "sft", lambda _, tensor: tensor.bfloat16())

    def one_bit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == EMBED:
            tensor.view(torch.int16)[0, 0] ^= 1
        return tensor

    rl = rewrite(sft, tmp_path / "rl", one_bit)
    tables = deltas(tmp_path / "out", "--sft", sft, "--rl", rl, measures="energy floor")
    moved = tables["matrices"][tables["matrices"]["energy"] > 0]
    assert list(moved["tensor"]) == [EMBED]
    expected = abs(fp64(rl, EMBED)[0, 0] - fp64(sft, EMBED)[0, 0])
    assert expected > 0 and moved["energy"].iloc[0] == pytest.approx(expected, rel=1e-5)
    assert moved["verdict"].iloc[0] == "at floor"
    ulps = tables["ulps"]
    assert ulps.loc[ulps["ulps"] == "1", "num_elements"].sum() == 1


@pytest.mark.slow
def test_spelling_and_shards_make_no_difference(models: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    respelt = {name: respell(path, tmp_path / name, num_shards=4) for name, path in models.items()}
    main(command(respelt, tmp_path / "out", measures="energy floor"))
    for name in ("layers", "matrices", "arms", "ulps"):
        found, expected = (pd.read_csv(out / f"{name}.csv") for out in (tmp_path / "out", undisturbed))
        pd.testing.assert_frame_equal(found, expected[list(found)])


@pytest.mark.slow
def test_the_number_of_threads_makes_no_difference(models: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    main([*command(models, tmp_path / "out"), "--num_threads", "3"])
    found, expected = products(tmp_path / "out"), products(undisturbed)
    assert list(found) == list(expected)
    assert [name for name in found if found[name] != expected[name] and not name.endswith(".parquet")] == []
    one, other = (pd.read_parquet(out / "spectra.parquet") for out in (tmp_path / "out", undisturbed))
    for sigma in ("sigma", "null_sigma"):  # the last digit of a value that is mostly rounding may differ
        np.testing.assert_allclose(one[sigma], other[sigma], rtol=1e-6, atol=1e-6 * one["sigma"].max())


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["energy", "spectra"])
def test_a_killed_command_ends_as_if_it_had_not_been(
    moment: str, models: dict[str, Path], undisturbed: Path, warm_python: Path, tmp_path: Path
) -> None:
    records = (undisturbed / "records.jsonl").read_text().splitlines()
    num_tensors = sum(line.startswith('{"key": "change/') for line in records)
    last = num_tensors // 2 if moment == "energy" else (num_tensors + len(records)) // 2
    words = command(models, tmp_path / "out")
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}
    killed = subprocess.run([warm_python, program, str(last), *words], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not products(tmp_path / "out")
    path = tmp_path / "out" / "records.jsonl"
    assert len(path.read_text().splitlines()) == last
    with path.open("a") as file:
        file.write(records[last][:40])
    kept = path.stat().st_ino
    main(words)
    assert products(tmp_path / "out") == products(undisturbed)
    assert path.stat().st_ino == kept and path.read_text().splitlines()[:last] == records[:last]


def test_a_finished_run_does_nothing_and_another_one_is_refused(
    models: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    (out / "layers.csv").unlink()
    before = products(out)
    main(command(models, out))
    assert products(out) == before
    for more, setting in (
        (("--seed", "1"), "seed"),
        (("--top_k", "3"), "top_k"),
        (("--cuts", "2", "3"), "cuts"),
    ):
        with pytest.raises(ValueError, match=rf"was made with {setting}"):
            main([*command(models, out), *more])
    with pytest.raises(ValueError, match="was made with measures"):
        main(command(models, out, measures="energy floor"))
    other = models | {"full": rewrite(models["full"], tmp_path / "full", nudge(9))}
    with pytest.raises(ValueError, match=r"was made with checkpoints\.full@0"):
        main(command(other, out))
    main(command(other, out, "--overwrite", measures="energy"))
    assert set(products(out)) == {
        *(f"{name}.csv" for name in ("arms", "blocks", "layers", "matrices", "regions")),
        "figures/energy.png",
    }  # fmt: skip


@pytest.mark.slow
def test_the_leading_values_alone_leave_what_needs_all_of_them_empty(models: dict[str, Path], tmp_path: Path) -> None:
    words = ("--sft", models["sft"], "--rl", models["full"], "--top_k", 4)
    tables = deltas(tmp_path / "out", *words, measures="energy spectra null")
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == FIGURES - {"changed", "geometry"}
    matrices = tables["matrices"].dropna(subset=["num_rows"]).set_index("tensor")
    part = matrices[matrices["spectrum_method"] == "randomised"]
    assert len(part) > len(matrices) / 2
    for prefix in ("", "null_"):
        empty = [f"{prefix}{name}" for name in ("nuclear_norm", "effective_rank", "participation_ratio")]
        assert part[empty].isna().all(axis=None)
        assert part[[f"{prefix}spectral_norm", f"{prefix}stable_rank"]].notna().all(axis=None)
    for name, own in tables["spectra"].groupby("tensor", observed=True):
        delta = difference(models["sft"], models["full"])[str(name)] if name == part.index[0] else None
        assert len(own) == min(4, int(matrices.loc[name, ["num_rows", "num_columns"]].min()))
        assert (own["sigma_error"] > 0).all()
        if delta is not None:
            exact = np.linalg.svd(delta.reshape(len(delta), -1), compute_uv=False)[:4]
            assert (np.abs(own["sigma"] - exact) <= own["sigma_error"]).all()


@pytest.mark.cases_slow
@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        ("energy", {"energy"}),
        ("floor", {"energy", "changed"}),
        ("spectra", {"energy", "ranks", "decay"}),
        ("geometry", FIGURES),
    ],
)
@pytest.mark.filterwarnings("error")
def test_every_set_of_measures_draws_what_it_can(
    measures: str, expected: set[str], models: dict[str, Path], tmp_path: Path
) -> None:
    words = ("--base", models["base"], "--sft", models["sft"], "--rl", models["frozen"])
    deltas(tmp_path / "out", *words, measures=measures)
    drawn = {path.stem: Image.open(path) for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert set(drawn) == expected
    assert all(image.width > 1000 and np.unique(image).size > 10 for image in drawn.values())


def test_the_ranks_of_what_did_not_change_are_not_drawn(undisturbed: Path) -> None:
    tables = DeltaTables(**{name: pd.read_csv(undisturbed / f"{name}.csv") for name in ("matrices", "layers")})
    figure = draw_ranks(tables)
    assert figure is not None
    place = tables.places.index(("llm", 1))  # frozen in one arm of two
    own = tables.matrices[(tables.matrices["region"] == "llm") & (tables.matrices["layer"] == 1)]
    assert (own["null_effective_rank"] == 0).any()
    moved = own[own["energy"] > 0]
    shares = moved["null_effective_rank"] / moved[["num_rows", "num_columns"]].min(axis=1)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "same changes, shuffled")
    drawn = dict(zip(*line.get_data(), strict=True))
    assert drawn[place] == pytest.approx(shares.median())


@pytest.mark.slow
def test_geometry_of_one_phase_is_said_to_be_left_out(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--sft", models["sft"], "--rl", models["full"])
    tables = deltas(tmp_path / "out", *words, measures="energy geometry")
    assert not {"geometry", "spectra"} & set(tables)
    assert "geometry compares two phases" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
@pytest.mark.slow
def test_no_change_at_all_is_zero_in_all_tables_and_draws_without_a_warning(
    models: dict[str, Path], tmp_path: Path
) -> None:
    words = ("--base", models["sft"], "--sft", models["sft"], "--rl", models["sft"])
    tables = deltas(tmp_path / "out", *words, measures=EVERYTHING)
    for name in ("matrices", "layers", "blocks", "regions"):
        assert (tables[name][["energy", "rms", "changed_frac"]] == 0).all(axis=None)
    assert set(tables["matrices"]["verdict"]) == {"identical"}
    assert (tables["spectra"]["sigma"] == 0).all()


@pytest.mark.gpu
def test_a_gpu_measures_what_the_cpu_measures(models: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    main(command(models, tmp_path / "out", "--device", "cuda"))
    for path in sorted(undisturbed.glob("*.csv")):
        found, expected = pd.read_csv(tmp_path / "out" / path.name), pd.read_csv(path)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)
