"""Does the command tell towers apart, from data to tables, killed or not?"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.tower.command import main, open_subjects
from models.checkpoint import open_checkpoint
from tracking.tables import read_table

NUM_STEPS = 80
BATCH_SIZE = 32


@pytest.fixture(scope="module")
def medmnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures in MedMNIST's layout: a bright bar that lies, stands or is missing."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, num in (("train", 60), ("val", 6), ("test", 45)):
        labels = np.arange(num) % 3
        images = rng.integers(0, 60, (num, 28, 28))
        for image, label, place in zip(images, labels, rng.integers(2, 22, num), strict=True):
            rows, columns = (slice(place, place + 4), slice(3, 25))
            if label:
                image[(rows, columns) if label == 1 else (columns, rows)] += 180
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None].astype(np.uint8)}
    path = tmp_path_factory.mktemp("medmnist") / "bars.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def command(model: Path | str, data: Path | str, output_dir: Path, *more: str) -> None:
    main(["--model", str(model), "--data", str(data), "--output_dir", str(output_dir), "--num_folds", "3", *more])


def tables(output_dir: Path) -> dict[str, bytes]:
    return {name: (output_dir / name).read_bytes() for name in ("tower.csv", "differences.csv", "samples.csv")}


@pytest.mark.slow
def test_a_medmnist_file_is_probed_layer_by_layer_and_a_killed_command_ends_alike(
    pocket_checkpoint: Path, medmnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(f"base={pocket_checkpoint}", medmnist, tmp_path / "whole", "--batch_size", "60", "--num_random", "2")
    assert "left out: 6 (picture of the validation part)" in capsys.readouterr().out
    table = read_table(tmp_path / "whole" / "tower.csv")
    assert (set(table["n_train"]), set(table["n_test"])) == ({60}, {45})
    assert table.groupby("model").size().to_dict() == {"pixels": 2, "random": 12, "base": 6}
    assert table[(table["model"] == "base") & (table["probe"] == "linear")]["accuracy"].max() > 0.7
    assert len(read_table(tmp_path / "whole" / "samples.csv")) == 105
    assert (tmp_path / "whole" / "figures" / "tower.png").stat().st_size > 10_000

    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", killed)
    (killed / "run.json").write_text(
        (killed / "run.json").read_text().replace('"status": "finished"', '"status": "running"')
    )
    (killed / "features" / "base" / "00000060.npy").unlink()
    lines = (killed / "records.jsonl").read_text().splitlines(keepends=True)
    (killed / "records.jsonl").write_text("".join(lines[:9]) + lines[9][:50])
    for name in tables(killed):
        (killed / name).unlink()
    command(f"base={pocket_checkpoint}", medmnist, killed, "--batch_size", "60", "--num_random", "2")
    assert tables(killed) == tables(tmp_path / "whole")

    before = (killed / "run.json").read_bytes()
    command(f"base={pocket_checkpoint}", medmnist, killed, "--batch_size", "60", "--num_random", "2")
    assert (killed / "run.json").read_bytes() == before
    with pytest.raises(ValueError, match="seed"):
        command(f"base={pocket_checkpoint}", medmnist, killed, "--batch_size", "60", "--num_random", "2", "--seed", "1")


@pytest.mark.slow
def test_a_recipes_tower_is_the_one_of_its_donor(pocket_checkpoint: Path, medmnist: Path, tmp_path: Path) -> None:
    import yaml

    other = with_tower(pocket_checkpoint, tmp_path / "other", lambda name, weight: weight * 1.5)
    donors = {"a": str(pocket_checkpoint), "b": str(other)}
    recipe = {
        "donors": donors,
        "blocks": dict.fromkeys(("early", "mid", "late"), "a"),
        "rest": dict.fromkeys(("embed", "norm", "head"), "a") | dict.fromkeys(("vision", "projector"), "b"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main([
        "--model", f"a={pocket_checkpoint}", f"b={other}", f"made={tmp_path / 'recipe.yaml'}", "--data", str(medmnist),
        "--output_dir", str(tmp_path / "out"), "--num_folds", "3", "--num_random", "1", "--limit", "30",
    ])  # fmt: skip
    features = {
        name: np.load(next((tmp_path / "out" / "features" / name).glob("*.npy"))) for name in ("a", "b", "made")
    }
    assert np.array_equal(features["made"], features["b"])
    assert not np.allclose(features["made"], features["a"], rtol=0.05)
    rows = read_table(tmp_path / "out" / "differences.csv").set_index(["model", "against"])
    assert set(rows.loc[("made", "b")]["difference"]) == {0}
    assert set(rows.loc[("made", "b")]["p_holm"]) == {1}


def with_tower(source: Path, directory: Path, change: Any) -> Path:
    """Writes a copy of a checkpoint whose tower's weights are changed."""
    from models.loading import load_model, load_processor

    model = load_model(source, dtype="float32")
    for name, parameter in model.named_parameters():
        if name.startswith("model.visual."):
            parameter.data = change(name, parameter.data)
    model.save_pretrained(directory)
    load_processor(source).save_pretrained(directory)
    return directory


def test_models_that_cannot_be_compared_are_refused_by_name(
    pocket_checkpoint: Path, qwen2_vl_checkpoint: Path, qwen2_checkpoint: Path
) -> None:
    for models, expected in (
        ([f"random={pocket_checkpoint}"], "names a baseline"),
        ([f"full@0={pocket_checkpoint}"], "neither / nor @ in NAME"),
        ([f"a={pocket_checkpoint}", f"a={pocket_checkpoint}"], "'a' is named twice"),
        ([f"a={pocket_checkpoint}", f"b={qwen2_vl_checkpoint}"], "the towers of a and b differ in"),
        ([f"a={qwen2_checkpoint}"], "text-only"),
        (["a=missing"], "does not exist"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            open_subjects(models)
        assert expected in str(caught.value)


@pytest.mark.slow
def test_a_tower_that_learnt_shapes_separates_them_better_than_random_towers(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    learnt = with_tower(pocket_checkpoint, tmp_path / "learnt", _learnt_weights(pocket_checkpoint))
    assert open_checkpoint(learnt).fingerprint() != open_checkpoint(pocket_checkpoint).fingerprint()
    command(f"learnt={learnt}", "pocket:1260", tmp_path / "out", "--test_frac", "0.8", "--num_random", "2")
    rows = read_table(tmp_path / "out" / "differences.csv")
    row = rows[(rows["against"] == "random") & (rows["layer"] == "merger") & (rows["probe"] == "linear")].iloc[0]
    assert row["n"] >= 1000
    assert row["low"] > 0 and row["p_holm"] < 0.05, row
    table = read_table(tmp_path / "out" / "tower.csv")
    merger = table[(table["layer"].isin(["merger", "pixels"])) & (table["probe"] == "linear")]
    best = merger.groupby("model")["accuracy"].max()
    assert best["learnt"] > best["random"] > best["pixels"] > 1 / 3, best


def _learnt_weights(checkpoint: Path) -> Any:
    """Trains the tower for seconds to name the most frequent shape, on pictures of another seed than the probe's."""
    import torch

    from eval.replies.subject import open_subject
    from eval.tower.features import trained_tower
    from eval.tower.images import load_images
    from models.loading import load_processor

    images = load_images("pocket:600", test_frac=0.01, seed=77, limit=None, min_per_class=2)
    ready = load_processor(checkpoint).image_processor(
        images=[one.open() for one in images.images], return_tensors="pt"
    )
    num = len(images.images)
    patches = ready["pixel_values"].reshape(num, -1, ready["pixel_values"].shape[-1])  # [pictures, patches, pixels]
    classes = torch.tensor([images.classes.index(one.label) for one in images.images])
    torch.manual_seed(0)
    tower = trained_tower(open_subject(str(checkpoint))).train()
    head = torch.nn.Linear(128, 3)
    parameters = [*tower.parameters(), *head.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for _ in range(NUM_STEPS):
        drawn = torch.randint(num, (BATCH_SIZE,))
        merged = tower(patches[drawn].flatten(0, 1), grid_thw=ready["image_grid_thw"][drawn]).pooler_output
        pooled = merged.reshape(BATCH_SIZE, -1, merged.shape[-1]).mean(dim=1)
        loss = torch.nn.functional.cross_entropy(head(pooled), classes[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = {f"model.visual.{name}": parameter.detach().clone() for name, parameter in tower.named_parameters()}
    return lambda name, weight: weights[name]
