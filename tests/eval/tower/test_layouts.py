"""Are pictures in every published layout probed, and as a stream? MedMNIST's twelve 2D sets, and prompt sets."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.medmnist.sets import SETS, Labels
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from eval.statistics.intervals import holm
from eval.tower.archives import read_npz
from eval.tower.command import main
from eval.tower.features import FeatureStore
from eval.tower.groups import make_groups
from eval.tower.images import ImageSet, load_images
from eval.tower.labelled import TEST, TRAIN
from eval.tower.probes import C_GRID
from tests.data_builders.medmnist.archives import RGB_SETS, medmnist_arrays, write_medmnist
from tracking.tables import read_table


def load(data: Path | str, **changes: Any) -> ImageSet:
    options: dict[str, Any] = {"test_frac": 0.25, "seed": 0, "limit": None, "min_per_class": 2}
    return load_images(str(data), **options | changes)


@pytest.mark.parametrize("name", SETS)
def test_every_published_set_keeps_its_pixels_labels_names_and_parts(name: str, tmp_path: Path) -> None:
    arrays, known = medmnist_arrays(name), SETS[name]
    images = load(write_medmnist(tmp_path, name))
    for part in (TRAIN, TEST):
        own, labels = images.of(part), arrays[f"{part}_labels"]
        assert np.array_equal([np.asarray(image.open()) for image in own], arrays[f"{part}_images"])
        for image, label in zip(own, labels, strict=True):
            if known.labels == Labels.FINDINGS:
                assert image.findings == tuple(known.names[number] for number in np.flatnonzero(label))
            else:
                assert (image.label, image.findings) == (known.names[int(label[0])], None)
        assert {image.modality for image in own} == {known.modality}
        assert {image.open().mode for image in own} == {"RGB" if name in RGB_SETS else "L"}
    assert images.left_out == {"picture of the validation part": len(arrays["val_labels"])}


def test_a_file_is_streamed_in_order_again_after_its_end_and_with_pictures_left_out(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path, "pathmnist", size=224, per_class=1)
    pixels = medmnist_arrays("pathmnist", size=224, per_class=1)["train_images"]
    whole, some = load(path), load(path, limit=9, min_per_class=1)
    for images in (whole, whole, some):
        for image in images.of(TRAIN):
            assert np.array_equal(np.asarray(image.open()), pixels[int(image.id.partition("/")[2])])
    places = [int(image.id.partition("/")[2]) for image in some.of(TRAIN)]
    assert len(places) == 9 and places == sorted(places)


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    peaks = []
    for num in (40, 400):
        path = tmp_path / f"plain{num}.npz"
        pixels, labels = np.zeros((num, 224, 224, 3), np.uint8), np.arange(num) % 2
        parts = {"train_images": pixels, "train_labels": labels, "test_images": pixels[:4], "test_labels": labels[:4]}
        np.savez_compressed(path, **parts)  # type: ignore[arg-type]
        del pixels, parts
        tracemalloc.start()
        for image in read_npz(path, Counter()):
            image.open()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 30 * 2**20  # 400 pictures take 57 MiB


def test_a_damaged_stream_is_refused_in_a_line(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path, "octmnist")
    data = bytearray(path.read_bytes())
    data[2000:2040] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"octmnist\.npz.*not readable as an \.npz file") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_findings_that_are_too_rare_to_probe_are_named(tmp_path: Path) -> None:
    labels = np.zeros((40, 3), np.uint8)
    labels[::2, 0], labels[::5, 1], labels[3, 2] = 1, 1, 1
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 256, (40, 8, 8), dtype=np.uint8) for part in (TRAIN, TEST)}
    np.savez(tmp_path / "own.npz", **arrays, train_labels=labels, test_labels=labels)  # type: ignore[arg-type]
    images = load(tmp_path / "own.npz")
    (group,), left_out = make_groups(images, data="own.npz", by=None, num_folds=3)
    assert (group.many, group.classes) == (True, ["0", "1"])
    assert np.array_equal(group.train_labels, labels[:, :2]) and np.array_equal(group.gold, labels[:, :2])
    assert left_out == {"finding, 2: 1 training and 1 test pictures have it": 1}
    with pytest.raises(ValueError, match="none of 3 findings has 30 training"):
        make_groups(images, data="own.npz", by=None, num_folds=30)


def prompt_set(folder: Path, change: Callable[[Prompt], Prompt] = lambda prompt: prompt) -> Path:
    """Two modalities of two classes each, two questions about each picture; splits rl and test."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for split, num in (("rl", 24), ("test", 16)):
        prompts = []
        for index in range(num):
            name = f"images/{split}-{index}.png"
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / name)
            modality = ("outline", "speckle")[index % 2]
            own = {"outline": ("square", "circle"), "speckle": ("cyst", "mass")}[modality][index // 2 % 2]
            for kind, answer in (("choice", own), ("yes_no", "no")):
                prompts.append(
                    change(
                        Prompt(
                            id=f"{split}-{index}-{kind}", ability="vision", question="What is it?", answer=answer,
                            answer_kind=kind, choices=(own, "other") if kind == "choice" else (), images=(name,),
                            meta={"class": own, "modality": modality},
                        )
                    )
                )  # fmt: skip
        write_prompts(folder, split, prompts)
    return folder


def test_a_prompt_sets_pictures_have_the_class_in_meta_and_count_once(tmp_path: Path) -> None:
    images = load(f"{prompt_set(tmp_path)}:rl,test")
    assert (len(images.of(TRAIN)), len(images.of(TEST)), images.left_out) == (24, 16, {})
    assert images.classes == ["circle", "cyst", "mass", "square"] and images.modalities == ["outline", "speckle"]
    groups, _ = make_groups(images, data="d", by="modality", num_folds=2)
    assert [(group.name, group.classes) for group in groups] == [
        ("outline", ["circle", "square"]), ("speckle", ["cyst", "mass"]),
    ]  # fmt: skip
    for group in groups:
        for places, labels in ((group.train, group.train_labels), (group.test, group.gold)):
            assert [images.images[place].label for place in places] == [group.classes[label] for label in labels]
    divided = load(f"{tmp_path}:rl")
    assert (len(divided.of(TRAIN)), len(divided.of(TEST))) == (16, 8)


def test_without_a_class_the_answer_counts_and_pictures_of_two_classes_are_left_out(tmp_path: Path) -> None:
    def without_class(prompt: Prompt) -> Prompt:
        index = int(prompt.id.split("-")[1])
        answer = prompt.answer if index == 4 else f"answer {index % 3}"
        return replace(prompt, meta=None, answer=answer, choices=())

    images = load(f"{prompt_set(tmp_path, without_class)}:rl,test")
    assert images.classes == ["answer 0", "answer 1", "answer 2"] and images.modalities == []
    assert images.left_out == {"picture that is of different classes in its prompts": 2}  # number 4 of both splits
    with pytest.raises(ValueError, match="38 of 38 pictures of --data d name no modality"):
        make_groups(images, data="d", by="modality", num_folds=2)


MISTAKES: dict[str, tuple[str, str]] = {
    "no split": ("{}", "is a prompt set with the splits rl, test; expected FOLDER:TRAIN,TEST, such as {}:rl,test"),
    "three splits": ("{}:rl,test,other", "names 3 splits"),
    "one split twice": ("{}:rl,rl", "names 2 splits"),
    "missing split": ("{}:rl,validation", "validation.jsonl does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_split_is_refused_in_a_line(mistake: str, tmp_path: Path) -> None:
    prompt_set(tmp_path)
    data, expected = (text.format(tmp_path, tmp_path) for text in MISTAKES[mistake])
    with pytest.raises(ValueError, match=r".") as caught:
        load(data)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def coloured_findings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several findings per picture: a red patch, a blue patch, and one that no picture shows."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, num in ((TRAIN, 90), ("val", 4), (TEST, 90)):
        labels = (rng.random((num, 3)) < (0.5, 0.3, 0.4)).astype(np.uint8)
        images = rng.integers(0, 60, (num, 28, 28, 3))
        for image, (red, blue, _) in zip(images, labels, strict=True):
            row, column = rng.integers(0, 12, 2)
            image[row : row + 16, column : column + 16] += np.array([180 * red, 0, 180 * blue])
        arrays |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels}
    path = tmp_path_factory.mktemp("findings") / "coloured.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.slow
def test_a_tower_that_lost_a_finding_is_told_from_its_original_and_probes_are_those_of_scikit_learn(
    pocket_checkpoint: Path, coloured_findings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    blind = blind_to_blue(pocket_checkpoint, tmp_path / "blind")
    out = tmp_path / "out"
    main([
        "--model", f"whole={pocket_checkpoint}", f"blind={blind}", "--data", str(coloured_findings), "--output-dir",
        str(out), "--num-folds", "3", "--num-random", "1",
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert "left out: 4 (picture of the validation part)" in printed and "macro AUC of whole at" in printed
    classes = read_table(out / "classes.csv")
    rows = classes[(classes["probe"] == "linear") & (classes["model"] == "blind") & (classes["against"] == "whole")]
    lost = rows[rows["p_holm"] < 0.05]
    assert set(lost["class"]) == {1} and set(lost["layer"]) == set(rows["layer"]), rows
    assert (lost["high"] < -0.2).all() and set(rows["metric"]) == {"auc"}
    assert any(line.split()[:3] == ["blind", "whole", "1"] for line in printed.splitlines())
    areas = read_table(out / "auc.csv")
    row = areas[(areas["model"] == "blind") & (areas["against"] == "whole") & (areas["layer"] == "merger")].iloc[0]
    assert row["high"] < 0 and row["p_holm"] < 0.05

    with np.load(coloured_findings) as file:
        train, gold = file["train_labels"], file["test_labels"]
    features = FeatureStore(out / "features" / "whole").read("merger").astype(float)
    own, other = features[: len(train)], features[len(train) :]
    record = next(
        record
        for record in map(json.loads, (out / "records.jsonl").read_text().splitlines())
        if record["key"] == "whole/merger/linear"
    )
    by_hand = []
    for finding, bits in enumerate(record["predicted"]):
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        models = [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)) for c in C_GRID]
        tuned = [cross_val_score(model, own, train[:, finding], cv=folds, scoring="roc_auc").mean() for model in models]
        best = models[int(np.argmax(np.round(tuned, 6)))].fit(own, train[:, finding])
        assert np.mean(best.predict(other) == np.array([*map(int, bits)])) > 0.97
        by_hand.append(roc_auc_score(gold[:, finding], best.decision_function(other)))
    scores = read_table(out / "tower.csv").set_index(["model", "layer", "probe"])
    assert scores.loc[("whole", "merger", "linear"), "auc"] == pytest.approx(np.mean(by_hand), abs=0.005)


def blind_to_blue(source: Path, directory: Path) -> Path:
    """Writes a copy of a checkpoint whose tower does not see blue."""
    from models.loading import load_model, load_processor

    model = load_model(source, dtype="float32")
    weight = next(own for name, own in model.named_parameters() if name.endswith("patch_embed.proj.weight"))
    weight.data[:, 2] = 0
    model.save_pretrained(directory)
    load_processor(source).save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_every_modality_has_probes_tables_and_a_figure_of_its_own(
    pocket_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prompt_set(tmp_path / "set")
    main([
        "--model", f"base={pocket_checkpoint}", "--data", f"{data}:rl,test", "--by", "modality", "--output-dir",
        str(tmp_path / "out"), "--num-folds", "2", "--num-random", "1",
    ])  # fmt: skip
    assert {"outline:", "speckle:"} < {*capsys.readouterr().out.splitlines()}
    tables = {name: read_table(tmp_path / "out" / f"{name}.csv") for name in ("tower", "differences", "classes")}
    for table in tables.values():
        assert table.columns[0] == "modality" and set(table["modality"]) == {"outline", "speckle"}
    assert set(tables["tower"]["n_test"]) == {8} and not (tmp_path / "out" / "auc.csv").exists()
    own = tables["classes"]
    assert set(own[own["modality"] == "speckle"]["class"]) == {"cyst", "mass"}
    family = tables["differences"].query("family == 'linear, random'")
    np.testing.assert_allclose(family["p_holm"], holm(family["p"].to_numpy()))
    assert len(family) == 2 * 3
    assert sorted(path.name for path in (tmp_path / "out" / "figures").iterdir()) == [
        "tower-outline.png", "tower-speckle.png",
    ]  # fmt: skip
