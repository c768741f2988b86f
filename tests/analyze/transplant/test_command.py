"""Transplants from command line to page: replies of written checkpoints, tables, controls, continuing, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analyze.layers.plan import NECESSITY, SUFFICIENCY
from analyze.transplant.command import TransplantArguments, main, transplant
from analyze.transplant.controls import check_controls
from analyze.transplant.plan import START, Variant, expand_units
from benchmarks.transplants.recipe import recipe_of
from eval.compare.command import write_comparison
from eval.run import EvaluationArguments, evaluate
from eval.statistics.pairing import Entry
from merge.recipes.plan import make_plan
from merge.splice import write_splice
from models.blocks import make_partition
from models.layout import layout_of
from models.loading import load_model
from tests.eval.test_run import write_prompt_set
from tracking.tables import read_table

pytestmark = pytest.mark.slow
UNITS = ["each:3", "late.attn", "vision", "norm"]
ALPHAS = [0.5, 1.0]
FROZEN = "llm:3-5"
TABLES = ("transplants.csv", "scores.csv", "controls.csv", "records.jsonl")


def moved(checkpoint: Path, directory: Path, *, seed: int, frozen: tuple[str, ...] = ()) -> Path:
    """Writes a checkpoint like another with every weight moved at random, except in some decoder layers."""
    model: Any = load_model(checkpoint)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if not any(f".layers.{layer}." in name for layer in frozen):
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(directory)
    for path in checkpoint.iterdir():
        if path.suffix in (".json", ".jinja") and not (directory / path.name).exists():
            (directory / path.name).write_bytes(path.read_bytes())
    return directory


@pytest.fixture(scope="module")
def inputs(
    made_once: Callable[[str, Callable[[Path], object]], Path], pocket_checkpoint: Path
) -> tuple[Path, dict[str, Path], Path]:
    """START, two runs of one END, of which the second left three layers as they were, and six prompts."""

    def build(folder: Path) -> None:
        write_prompt_set(folder / "prompts")
        moved(pocket_checkpoint, folder / "full0", seed=0)
        moved(pocket_checkpoint, folder / "full1", seed=1, frozen=("3", "4", "5"))

    folder = made_once("transplants", build)
    return pocket_checkpoint, {f"full@{seed}": folder / f"full{seed}" for seed in (0, 1)}, folder / "prompts"


def arguments(inputs: tuple[Path, dict[str, Path], Path], output_dir: Path, **changes: Any) -> TransplantArguments:
    start, ends, prompts = inputs
    values: dict[str, Any] = {
        "start": str(start), "ends": [f"{label}={path}" for label, path in ends.items()], "units": UNITS,
        "alphas": ALPHAS, "tasks": [f"{prompts}:test"], "max_new_tokens": 8, "batch_size": 4, "dtype": "float32",
        **changes,
    }  # fmt: skip
    return TransplantArguments(output_dir=str(output_dir), **values)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "records.jsonl").read_text().split("\n")[:-1]]


@pytest.fixture(scope="module")
def swept(inputs: tuple[Path, dict[str, Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transplant(arguments(inputs, tmp_path_factory.mktemp("swept") / "out"))


def replies_of(directory: Path, prefix: str) -> dict[str, tuple[Any, ...]]:
    """Returns id -> what is compared of a reply; of one variant, or of an evaluation if the prefix is empty."""
    names = ("response", "num_tokens", "finish_reason", "extracted", "status", "well_formed")
    rows = [row for row in records(directory) if row["key"].startswith(prefix)]
    return {row["id"]: tuple(row[name] for name in names) for row in rows}


def evaluated(model: Path, inputs: tuple[Path, dict[str, Path], Path], output_dir: Path) -> Path:
    return evaluate(
        EvaluationArguments(
            model=str(model), tasks=[f"{inputs[2]}:test"], output_dir=str(output_dir), max_new_tokens=8, batch_size=4,
            dtype="float32",
        )
    )  # fmt: skip


def test_start_and_end_have_the_replies_of_eval_run(
    swept: Path, inputs: tuple[Path, dict[str, Path], Path], tmp_path: Path
) -> None:
    start, ends, _ = inputs
    for label, model in {START: start, **ends}.items():
        own = evaluated(model, inputs, tmp_path / label)
        assert replies_of(swept, f"{label}/test/") == replies_of(own, "test/")
        scores, expected = read_table(swept / "scores.csv"), read_table(own / "scores.csv")
        kept = scores[scores["model"] == label].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, expected[kept.columns])


@pytest.mark.parametrize(
    ("unit", "direction", "alpha"),
    [
        pytest.param("llm:3-5", SUFFICIENCY, 0.5),
        pytest.param("late.attn", NECESSITY, 1.0),
        pytest.param("vision", NECESSITY, 0.5),
        pytest.param("norm", SUFFICIENCY, 1.0),
        pytest.param("llm:0-2", NECESSITY, 0.5),
    ],
)
def test_a_transplant_has_the_replies_of_the_written_checkpoint(
    swept: Path, inputs: tuple[Path, dict[str, Path], Path], tmp_path: Path, unit: str, direction: str, alpha: float
) -> None:
    start, ends, _ = inputs
    layout = layout_of(start)
    (place,) = expand_units([unit], layout, make_partition(layout.num_layers))
    variant = Variant(end="full@0", direction=direction, unit=place, alpha=alpha)
    recipe = recipe_of(variant, layout, str(start), str(ends["full@0"]))
    written = write_splice(make_plan(recipe), tmp_path / "splice", max_shard_bytes=None)
    own = evaluated(written, inputs, tmp_path / "eval")
    assert replies_of(swept, f"{variant.prefix}/") == replies_of(own, "test/")
    assert replies_of(swept, f"{variant.prefix}/") != replies_of(swept, f"{variant.base}/test/")


def test_a_unit_that_end_left_alone_has_the_replies_of_its_base(swept: Path) -> None:
    rows = [row for row in records(swept) if row["end"] == "full@1" and row["unit"] == FROZEN]
    assert len(rows) == 2 * len(ALPHAS) * 6 and not any(row["changed"] for row in rows)
    for direction, base in ((SUFFICIENCY, START), (NECESSITY, "full@1")):
        found = replies_of(swept, f"full@1/{direction}/{FROZEN}/1/")
        assert found == replies_of(swept, f"{base}/test/")
    assert all(row["changed"] for row in records(swept) if row["end"] == "full@0" and row["unit"] == FROZEN)


def test_controls_cover_weights_and_every_unit(swept: Path) -> None:
    controls = read_table(swept / "controls.csv")
    assert controls["holds"].all() and (controls["n"] == controls["num_equal"]).all()
    about = controls.groupby("control")["what"].count()
    # START and two ENDs; in both directions five units of full@0, and of full@1 those that changed
    assert about.to_dict() == {"replies": 3 + 2 * (5 + 3), "weights": 1 + 3 * 2}
    assert (controls["n"][controls["control"] == "weights"] > 50).all()
    broken = controls.assign(holds=False)
    with pytest.raises(RuntimeError, match="control failed: the model after the sweep is START"):
        check_controls(broken, swept)


def test_the_table_has_a_row_per_ability_direction_unit_and_factor(swept: Path) -> None:
    table = read_table(swept / "transplants.csv")
    units = ["llm:0-2", "llm:3-5", "late.attn", "vision", "norm"]
    assert len(table) == 2 * 2 * len(units) * len(ALPHAS)
    assert list(dict.fromkeys(table["unit"])) == units
    places = table.drop_duplicates("unit").set_index("unit")
    assert places["part"].to_dict() == {
        "llm:0-2": "layer", "llm:3-5": "layer", "late.attn": "block", "vision": "region", "norm": "region",
    }  # fmt: skip
    assert (places.loc["llm:3-5", "first"], places.loc["llm:3-5", "last"]) == (3, 5)
    accuracy = pd.DataFrame(records(swept))
    accuracy["right"] = accuracy["status"] == "correct"
    for _, row in table.iterrows():
        own = accuracy[(accuracy["unit"] == row["unit"]) & (accuracy["alpha"] == row["alpha"])]
        own = own[(own["direction"] == row["direction"]) & (own["ability"] == row["ability"])]
        base = accuracy[accuracy["unit"].isna() & (accuracy["ability"] == row["ability"])]
        base = base[base["end"].isna() if row["direction"] == SUFFICIENCY else base["end"].notna()]
        assert row["accuracy"] == pytest.approx(own["right"].mean(), rel=1e-4)
        assert row["difference"] == pytest.approx(own["right"].mean() - base["right"].mean(), abs=1e-5)
        assert row["low"] <= row["difference"] <= row["high"]
        assert (row["num_seeds"], row["n"], row["scope"]) == (2, 3, "training")
    for _, own in table.groupby("against"):
        assert set(own["num_tests"]) == {len(own)}


def test_a_killed_sweep_goes_on_and_writes_the_same(
    swept: Path, inputs: tuple[Path, dict[str, Path], Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    state = json.loads((swept / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(state | {"status": "running"}))
    lines = (swept / "records.jsonl").read_text().splitlines(keepends=True)
    (output / "records-0.jsonl").write_text("".join(lines[:29]) + lines[29][:40])
    transplant(arguments(inputs, output))
    for name in TABLES:
        assert (output / name).read_bytes() == (swept / name).read_bytes(), name


def test_trained_arms_are_compared_afterwards(
    swept: Path, inputs: tuple[Path, dict[str, Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, ends, prompts = inputs
    entries = [
        Entry(name, None, evaluated(model, inputs, tmp_path / name))
        for name, model in (("sft", start), ("full", ends["full@0"]), ("freeze-llm0-2", ends["full@1"]))
    ]
    write_comparison(tmp_path / "comparison", entries, baseline="sft", reference="full")
    main(
        ["--start", str(start), "--ends", *(f"{label}={path}" for label, path in ends.items()), "--units", *UNITS,
         "--alphas", *map(str, ALPHAS), "--tasks", f"{prompts}:test", "--max_new_tokens", "8", "--batch_size", "4",
         "--dtype", "float32", "--output_dir", str(swept), "--trained", str(tmp_path)]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "Prediction of the trained arms: not measured" in said
    prediction = read_table(swept / "prediction.csv")
    assert set(prediction["trained_arm"]) == {"freeze-llm0-2"} and set(prediction["direction"]) == {NECESSITY}
    assert len(prediction) == 2 * len(ALPHAS) and np.isfinite(prediction["trained_difference"]).all()
    page = (swept / "transplants.html").read_text()
    assert "Do transplants predict the trained arms?" in page and "data:image/png;base64," in page


def test_mistakes_are_refused_in_a_line(inputs: tuple[Path, dict[str, Path], Path], tmp_path: Path) -> None:
    for changes, message in (
        ({"alphas": [0.0, 1.0]}, "alphas are 0 1; expected different numbers other than 0"),
        ({"directions": ["both"]}, "direction 'both' is unknown"),
        ({"ends": [f"start={inputs[1]['full@0']}"]}, "END 'start' is a name that is taken already"),
        ({"units": ["llm:9"]}, "out of range: this model has decoder layers 0-5"),
        ({"units": ["early", "blocks"]}, "unit 'early' is asked for twice"),
        ({"units": ["each:9"]}, "unit 'each:9': expected 1 to 6 layers at a time"),
        ({"trained": [str(tmp_path)]}, "has neither layers.csv nor comparison.csv"),
    ):
        with pytest.raises(ValueError, match=message):
            transplant(arguments(inputs, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
