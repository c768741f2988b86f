"""A hub data set laid out as detection-datasets/coco: as many rows as are needed, the same pairs for any number."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import PairPictures
from data_builders.pairs.sets import Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import PROCESSORS
from data_builders.recognition import coco_hub
from data_builders.recognition.build import RECOGNITION, RecognitionArguments
from data_builders.recognition.check import check_recognition
from data_builders.recognition.coco import split_of
from data_builders.recognition.coco_hub import hub_fingerprint

NAMES = ["dog", "apple"]
SIZE = (40, 30)
NUM_ROWS = 240


def encoded(image_id: int) -> bytes:
    file = BytesIO()
    noise = np.random.default_rng(image_id).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format="JPEG")
    return file.getvalue()


def rows() -> list[dict[str, Any]]:
    made = []
    for image_id in range(1, NUM_ROWS + 1):
        categories = [[0], [1], [0, 1], [1, 1]][image_id % 4]
        objects = {
            "bbox_id": categories,
            "category": categories,
            "bbox": [[1.0, 1.0, 9.0, 9.0] for _ in categories],
            "area": [64.0 if image_id % 10 else 2.0 for _ in categories],
        }
        content = encoded(image_id) if image_id % 13 else b"no picture"
        image = {"bytes": content, "path": None}
        made.append({"image_id": image_id, "image": image, "width": SIZE[0], "height": SIZE[1], "objects": objects})
    return made


def write_hub_folder(directory: Path) -> None:
    features = Features(
        {
            "image_id": Value("int64"),
            "image": ImageFeature(),
            "width": Value("int64"),
            "height": Value("int64"),
            "objects": {
                "bbox_id": List(Value("int64")),
                "category": List(ClassLabel(names=NAMES)),
                "bbox": List(List(Value("float64"), length=4)),
                "area": List(Value("float64")),
            },
        }
    )
    (directory / "data").mkdir(parents=True)
    dataset = Dataset.from_list(rows(), features=features)
    dataset.to_parquet(directory / "data" / "val-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub")
    write_hub_folder(directory)
    return directory


def build(directory: Path, hub_folder: Path, num_pairs: int, **options: Any) -> list[Pair]:
    directory.mkdir()
    work_dir = directory.parent / f"{directory.name}-work"
    grid = PROCESSORS["qwen2_5_vl"]
    drawing = Drawing(task="recognition", seed=0, split="test", grid=grid, work_dir=work_dir)
    arguments = RecognitionArguments(hub_dataset=str(hub_folder), **options)
    build_pair_set(directory, RECOGNITION, arguments, drawing, PairSetArguments(num_pairs=num_pairs, num_workers=1))
    return read_pairs(directory)


def test_pairs_show_the_rows_categories_in_their_own_bytes(
    hub_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for pair in build(tmp_path / "set", hub_folder, 30):
        assert pair.meta is not None
        image_id = pair.meta["image_id"]
        assert split_of(image_id) == "test"
        assert image_id % 13
        assert image_id % 10  # its objects are large enough
        assert NAMES.index(pair.meta["category"]) in [[0], [1], [0, 1], [1, 1]][image_id % 4]
        assert (tmp_path / "set" / pair.target_image).read_bytes() == encoded(image_id)
        assert list(check_recognition(PairPictures(tmp_path / "set", pair))) == []
    first_broken = next(number for number in range(13, NUM_ROWS, 13) if split_of(number) == "test")
    assert f"left out: image {first_broken} cannot be decoded" in capsys.readouterr().err


def test_no_more_rows_are_read_than_needed_and_the_first_pairs_are_the_same(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_hub, "ASK_EVERY", 5)
    few, many = (build(tmp_path / str(num), hub_folder, num) for num in (6, 30))
    assert few == many[:6]
    kept = [len(list((tmp_path / f"{num}-work" / "photographs").iterdir())) for num in (6, 30)]
    assert kept[0] < kept[1] / 2


def test_no_more_rows_are_read_than_allowed(hub_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are photographs for"):
        build(tmp_path / "set", hub_folder, 30, hub_rows=40)


def test_what_is_described_follows_the_files_and_names_no_place(hub_folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_hub_folder(elsewhere)
    described = RECOGNITION.describe(RecognitionArguments(hub_dataset=str(elsewhere)))
    assert described == RECOGNITION.describe(RecognitionArguments(hub_dataset=str(hub_folder)))
    assert str(tmp_path) not in str(described)
    assert described["hub_rows"] == 5000


def test_what_has_another_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "data" / "val-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="has the columns text; expected image_id, image"):
        build(tmp_path / "set", tmp_path, 1)
    with pytest.raises(ValueError, match="cannot stream its split 'train'"):
        build(tmp_path / "other", tmp_path, 1, hub_split="train")
    with pytest.raises(ValueError, match="'nothing here' is neither a folder nor a hub id"):
        hub_fingerprint("nothing here")
