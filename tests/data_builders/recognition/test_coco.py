"""COCO's annotations and photographs: read in pieces, with nothing lost, turned round or passed over in silence."""

import json
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.prompt_sets.images import UnusableImageError
from data_builders.recognition import coco
from data_builders.recognition.coco import open_photograph, read_annotations, read_outlines, read_photograph, split_of

SQUARE = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]


def first_ids(split: str, num: int) -> list[int]:
    return [number for number in range(1, 1000) if split_of(number) == split][:num]


def annotation(image_id: int, category_id: int = 18, **others: Any) -> dict[str, Any]:
    return {
        "id": 1, "image_id": image_id, "category_id": category_id, "segmentation": [SQUARE], "area": 64.0,
        "bbox": [1, 1, 8, 8], "iscrowd": 0, **others,
    }  # fmt: skip


def described(annotations: list[dict[str, Any]], image_ids: list[int]) -> dict[str, Any]:
    images = [{"id": each, "file_name": f"{each:012d}.jpg", "width": 20, "height": 10} for each in image_ids]
    categories = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 53, "name": "apple"}]
    return {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": categories}


def write(tmp_path: Path, value: Any, **options: Any) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(value, **options), encoding="utf-8")
    return path


def test_instances_of_a_category_are_summed_for_each_photograph_of_the_split(tmp_path: Path) -> None:
    first, second = first_ids("test", 2)
    elsewhere = first_ids("train", 1)[0]
    read = read_annotations(
        write(
            tmp_path,
            described(
                [
                    annotation(first),
                    annotation(first, area=100.5),
                    annotation(first, iscrowd=1, segmentation={"counts": [3, 5], "size": [10, 20]}, area=500.0),
                    annotation(second, 53, segmentation=[[1, 2, 3, 4]]),
                    annotation(elsewhere),
                ],
                [first, second, elsewhere],
            ),
        ),
        "test",
    )
    assert read.categories == {18: "dog", 53: "apple"}
    assert {each.file_name for each in read.photographs.values()} == {f"{each:012d}.jpg" for each in (first, second)}
    dogs, apples = read.presences[first, 18], read.presences[second, 53]
    assert (dogs.num_instances, dogs.num_crowds, dogs.largest_area, dogs.total_area) == (2, 1, 100.5, 164.5)
    assert (dogs.num_without_outline, apples.num_without_outline) == (0, 1)
    assert set(read.presences) == {(first, 18), (second, 53)}


def test_outlines_are_those_of_the_wanted_category_without_crowds(tmp_path: Path) -> None:
    first, second = first_ids("test", 2)
    other = [2, 2, 5, 2, 5, 5]
    path = write(
        tmp_path,
        described(
            [
                annotation(first),
                annotation(first, segmentation=[other, SQUARE]),
                annotation(first, 53),
                annotation(second, iscrowd=1, segmentation={"counts": [1], "size": [1, 1]}),
                annotation(second),
            ],
            [first, second],
        ),
    )
    assert read_outlines(path, [(first, 18)]) == {
        (first, 18): [[SQUARE], [[float(number) for number in other], SQUARE]]
    }


@pytest.mark.parametrize("num_chars", [1, 7, 64, 10_000])
@pytest.mark.parametrize("indent", [None, 1])
def test_what_is_read_does_not_depend_on_where_the_file_is_cut(
    num_chars: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = first_ids("test", 3)
    value = described([annotation(each, area=12.25, note='a "}]" , é') for each in ids], ids)
    value = {"version": 12345, "empty": [], "nothing": {}, **value, "last": 1.5e3}
    monkeypatch.setattr(coco, "CHUNK_CHARS", num_chars)
    path = write(tmp_path, value, indent=indent, ensure_ascii=False)
    read = list(coco._entries(path, ("images", "annotations", "categories")))
    assert [(name, entry) for name, _, entry in read] == [
        (name, entry) for name in ("images", "annotations", "categories") for entry in value[name]
    ]


@pytest.mark.slow
def test_a_large_file_is_never_in_memory_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "CHUNK_CHARS", 2**16)
    ids = first_ids("train", 50)
    path = write(tmp_path, described([annotation(ids[n % 50], segmentation=[SQUARE * 60]) for n in range(2000)], ids))
    assert path.stat().st_size > 4 * 2**20
    tracemalloc.start()
    read = read_annotations(path, "test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not read.photographs
    assert peak < 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": "a", "width": 1, "height": 1, "file_name": "a"}]}, "entry 0 of images has the id 'a'"),
        ({"annotations": [{"image_id": 1, "caption": "a dog"}]}, "entry 0 of annotations has no 'category_id'"),
        ({"annotations": [3]}, "entry 0 of annotations is a int; expected an object"),
        ({"annotations": [annotation(1, area="x")]}, "entry 0 of annotations could not convert"),
        ({"annotations": [annotation(1)], "images": []}, "an annotation names image 1 with category 18"),
        ({"categories": []}, "names no categories"),
    ],
)
def test_what_is_none_of_cocos_files_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**described([], []), **change})
    with pytest.raises(ValueError, match=message):
        for split in ("train", "validation", "test"):
            read_annotations(path, split)


@pytest.mark.parametrize("text", ["", "[1]", '{"images": [', '{"images": [{"id": 1}, ', '{"images" 3}', "{]"])
def test_a_file_that_is_cut_short_or_no_json_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"instances\.json"):
        for split in ("train", "validation", "test"):
            read_annotations(path, split)
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        read_annotations(tmp_path / "gone.json", "test")


def test_each_photograph_falls_into_one_split_in_the_stated_shares() -> None:
    splits = [split_of(number) for number in range(5000)]
    for split, share in coco.SPLIT_SHARES.items():
        assert abs(splits.count(split) / 50 - share) < 2


def encoded(picture: Image.Image, suffix: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, format=suffix, **options)
    return file.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (20, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[coco.ORIENTATION_TAG] = 6  # a viewer turns it by 90 degrees
    return exif


@pytest.mark.parametrize(
    ("content", "plain_suffix"),
    [
        (encoded(noise(), "JPEG"), ".jpg"),
        (encoded(noise(), "PNG"), ".png"),
        (encoded(noise("L"), "JPEG"), None),
        (encoded(noise("CMYK"), "JPEG"), None),
        (encoded(noise("P"), "PNG"), None),
        (encoded(noise("RGBA"), "PNG"), None),
        (encoded(noise(), "PNG", transparency=(0, 0, 0)), None),
        (encoded(noise(), "WEBP", lossless=True), None),
        (encoded(noise(), "JPEG", exif=turned_exif()), None),
        (encoded(noise(), "PNG", exif=turned_exif()), None),
    ],
)
def test_only_files_that_every_reader_sees_alike_are_stored_as_they_are(
    content: bytes, plain_suffix: str | None
) -> None:
    opened = open_photograph(content, (20, 10))
    assert (opened.picture.mode, opened.picture.size, opened.plain_suffix) == ("RGB", (20, 10), plain_suffix)


def test_an_exif_mark_turns_nothing() -> None:
    turned, upright = (open_photograph(encoded(noise(), "PNG", **exif), (20, 10)).picture
                       for exif in ({"exif": turned_exif()}, {}))  # fmt: skip
    assert np.array_equal(turned, upright)
    again = Image.open(BytesIO(encoded(turned, "PNG")))
    assert again.getexif().get(coco.ORIENTATION_TAG, 1) == 1


def test_photographs_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    whole = encoded(noise(size=(200, 100)), "JPEG")
    for content, size, found in (
        (whole[: len(whole) // 2], (200, 100), "cannot be decoded"),
        (b"", (200, 100), "cannot be decoded"),
        (whole, (100, 200), "has 200 x 100 pixels, its annotations 100 x 200"),
    ):
        with pytest.raises(UnusableImageError, match=found):
            open_photograph(content, size)
    with pytest.raises(UnusableImageError, match="is not there"):
        read_photograph(tmp_path / "gone.jpg")


def test_sizes_below_one_pixel_leave_a_photograph_out_with_that_reason(tmp_path: Path) -> None:
    content = described([annotation(1), annotation(2)], [1, 2])
    content["images"][0]["width"] = -1
    path = write(tmp_path, content)
    found = {}
    for split in ("train", "validation", "test"):
        found.update(read_annotations(path, split).left_out)
    assert list(found.values()) == [
        f"has -1 x {content['images'][0]['height']} pixels in its annotations; expected at least 1 x 1"
    ]
