"""Prompts from upstream rows: kept and dropped rows, their counts, splits, and memory use."""

import base64
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_builders import build
from data_builders.prompt_sets.images import PixelLimits, UnusableImageError, open_image, store_image
from data_builders.prompt_sets.prompts import Prompt, read_prompts
from data_builders.rl.build import RlArguments, group_prompts, read_rules, split_prompts
from data_builders.rl.kinds import ANSWER_KINDS
from data_builders.sources.rows import open_sources, stream_dataset
from eval.grading import KINDS
from tracking.command import REPOSITORY_ROOT

SPLITS = ("rl", "validation", "test")


def picture(number: int, size: tuple[int, int] = (60, 44)) -> Image.Image:
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def row(number: int, **changes: Any) -> dict[str, Any]:
    """An upstream row with one embedded picture."""
    values = {
        "data_source": "virl39k",
        "prompt": [
            {"role": "system", "content": "Think first ."},
            {"role": "user", "content": f"<image>\nWhat is {number} ?"},
        ],
        "images": [{"bytes": png(picture(number)), "path": None}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(number)},
        "extra_info": {"index": number, "question": f"What is {number} ?"},
    }
    return {**values, **changes}


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def text_row(question: str, answer: Any, **changes: Any) -> dict[str, Any]:
    return row(0, prompt=asking(question), images=[], reward_model={"ground_truth": answer}, **changes)


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    return path


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def run(output_dir: Path, *sources: Path, **options: Any) -> Path:
    flags = [word for name, value in options.items() for word in (f"--{name}", *_words(value))]
    build.main(["rl", "--output-dir", str(output_dir), "--source", *map(str, sources), *flags])
    return output_dir / "data"


def _words(value: Any) -> list[str]:
    return [str(word) for word in (value if isinstance(value, list) else [value])]


def report(data: Path) -> dict[str, Any]:
    return dict(json.loads((data / "build_report.json").read_text()))


def all_prompts(data: Path) -> list[Prompt]:
    return [prompt for split in SPLITS if (data / f"{split}.jsonl").exists() for prompt in read_prompts(data, split)]


def product(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}


def test_rows_become_prompts_with_their_pictures_as_qwens_own_code_opens_them(tmp_path: Path) -> None:
    from qwen_vl_utils import fetch_image

    source = write_parquet(tmp_path / "train.parquet", [row(number) for number in range(5)])
    data = run(tmp_path / "out", source, validation_frac=0, test_frac=0)
    prompts = read_prompts(data, "rl")
    assert sorted(prompt.answer for prompt in prompts) == list("01234")
    for prompt in prompts:
        assert prompt.question == f"What is {prompt.answer} ?"
        assert (prompt.ability, prompt.answer_kind) == ("vision-to-reasoning", "math")
        stored = Image.open(data / prompt.images[0])
        expected = fetch_image({"image": picture(int(prompt.answer))})
        assert (stored.mode, stored.size) == ("RGB", (56, 56))
        assert stored.tobytes() == expected.tobytes()
        assert prompt.meta is not None
        assert prompt.meta["row"] == f"train.parquet#{prompt.answer}"
        assert prompt.meta["extra"] == {"index": int(prompt.answer)}
    assert report(data)["system_prompts"] == {"Think first .": 5}
    manifest = json.loads((data / "manifest.json").read_text())
    assert set(manifest["files"]) == set(product(data)) - {"manifest.json"}
    assert str(tmp_path) not in json.dumps([manifest, report(data)])
    assert manifest["arguments"]["max_pixels"] == 16384 * 28 * 28


def test_every_form_of_a_picture_is_the_same_picture(tmp_path: Path) -> None:
    shown = picture(7)
    encoded = base64.b64encode(png(shown)).decode()
    (tmp_path / "a.png").write_bytes(png(shown))
    forms = [
        shown,
        png(shown),
        {"bytes": png(shown), "path": "somewhere/else.png"},
        {"bytes": None, "path": "a.png"},
        {"bytes": encoded},
        {"image": shown},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        "a.png",
        str(tmp_path / "a.png"),
        f"file://{tmp_path}/a.png",
        f"data:image/png;base64,{encoded}",
        encoded,
        png(shown, "WEBP", lossless=True),
        png(shown, "TIFF"),
        png(shown, "BMP"),
    ]
    names = {store_image(open_image(form, tmp_path, PixelLimits()), tmp_path) for form in forms}
    assert len(names) == 1
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_pictures_are_scaled_between_the_limits_and_lie_on_white(tmp_path: Path) -> None:
    large = open_image(picture(0, (400, 300)), None, PixelLimits(max_pixels=20 * 28 * 28))
    assert large.width * large.height <= 20 * 28 * 28 < 400 * 300
    assert open_image(picture(0, (40, 40)), None, PixelLimits(min_pixels=100 * 28 * 28)).size == (280, 280)
    assert open_image(picture(0, (60, 60)), None, PixelLimits(patch_size=16)).size == (64, 64)
    assert open_image(Image.new("RGBA", (56, 56), (9, 9, 9, 0)), None, PixelLimits()).getpixel((3, 3)) == (255,) * 3


def test_what_a_picture_file_says_beside_its_pixels_is_not_stored(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    marked = png(picture(1, (56, 84)), "PNG", exif=turned, icc_profile=b"profile", transparency=(0, 0, 0))
    stored = Image.open(tmp_path / store_image(open_image(marked, None, PixelLimits()), tmp_path))
    assert stored.size == (56, 84)
    assert not stored.info and not stored.getexif()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF"])
def test_a_picture_cut_short_anywhere_is_found_broken_or_whole(kind: str) -> None:
    whole = png(picture(3, (40, 40)), kind)
    rng = random.Random(0)
    for _ in range(40):
        garbled = bytearray(whole[: rng.randrange(len(whole))])
        if garbled and rng.random() < 0.5:
            garbled[rng.randrange(len(garbled))] ^= 1 << rng.randrange(8)
        try:
            open_image(bytes(garbled), None, PixelLimits())
        except UnusableImageError as error:
            assert error.reason in ("broken_image", "missing_image")


TWO = [{"bytes": png(picture(90)), "path": None}, {"bytes": png(picture(91)), "path": None}]


@pytest.mark.parametrize(
    ("prompt", "question", "notes"),
    [
        (asking("<image><image>\nWhich ?"), "Which ?", set()),
        (asking("<image> <image>Which ?"), "Which ?", set()),
        (asking("Compare <image> with <image> ."), "Compare with .", {"image_moved"}),
        (asking("First:\n<image>\nSecond:\n<image>\nWhich ?"), "First:\nSecond:\nWhich ?", {"image_moved"}),
        ("<image><image> Which ?", "Which ?", set()),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which ?"}]}],
            "Which ?",
            set(),
        ),
        (
            [{"role": "system", "content": "Be brief ."}, *asking("<image><image>Which ?")],
            "Which ?",
            {"system_message"},
        ),
    ],
)
def test_placeholders_are_taken_out_of_the_text(tmp_path: Path, prompt: Any, question: str, notes: set[str]) -> None:
    source = write_parquet(tmp_path / "a.parquet", [row(0, prompt=prompt, images=TWO)])
    data = run(tmp_path / "out", source, validation_frac=0, test_frac=0)
    (kept,) = read_prompts(data, "rl")
    assert kept.question == question
    assert len(kept.images) == 2
    assert set(report(data)["noted"]) == notes


def test_every_row_that_is_dropped_is_counted_and_named(tmp_path: Path) -> None:
    shown = {"bytes": base64.b64encode(png(picture(1))).decode(), "path": None}
    narrow = base64.b64encode(png(picture(2, (2, 500)))).decode()
    cut = base64.b64encode(png(picture(3))[:200]).decode()
    lines: list[tuple[str | None, Any]] = [
        (None, text_row("What is 2 + 3 ?", "5")),
        ("unreadable_row", '{"prompt": "What\n'),
        ("unreadable_row", "[1, 2]\n"),
        ("unreadable_row", '{"prompt": "half a pair \\ud800", "reward_model": {"ground_truth": "1"}}\n'),
        ("unreadable_row", {"prompt": 7, "reward_model": {"ground_truth": "7"}}),
        ("no_question", {"reward_model": {"ground_truth": "7"}}),
        ("no_question", text_row(" ", "5")),
        ("no_question", row(1, prompt=[{"role": "system", "content": "x"}])),
        ("no_question", row(1, prompt=asking("<image>"), images=[shown])),
        ("several_turns", row(1, prompt=[*asking("a"), {"role": "assistant", "content": "b"}, *asking("c")])),
        ("several_turns", row(1, prompt=[*asking("a"), {"role": [], "content": "b"}])),
        ("control_token", text_row("What is <|image_pad|> ?", "5")),
        ("control_token", text_row("<video> What happens ?", "5")),
        ("image_count", row(1, images=[shown, shown])),
        ("image_count", row(1, images=[])),
        ("image_count", row(1, prompt=asking("Without a mark ?"), images=[shown])),
        ("missing_image", row(1, images=["gone.png"])),
        ("missing_image", row(1, images=[{"bytes": None, "path": None}])),
        ("remote_image", row(1, images=["https://example.org/a.png"])),
        ("broken_image", row(1, images=[cut])),
        ("broken_image", row(1, images=[narrow])),
        ("no_answer", text_row("What is 1 ?", " ")),
        ("no_answer", text_row("What is 2 ?", None)),
        ("no_answer", {"prompt": "What is 3 ?"}),
        ("several_answers", text_row("What is 4 ?", ["4", "four"])),
        ("several_answers", text_row("What is 4 ?", float("nan"))),
        (None, text_row("What is 5 ?", ["5"])),
        (None, text_row("What is 6 ?", 6.5)),
        ("duplicate", text_row("What is 2 + 3 ?", "5", data_source="elsewhere")),
        ("conflicting_answer", text_row("What is 8 ?", "8")),
        ("conflicting_answer", text_row("What is 8 ?", "9")),
        (None, row(1, images=[shown])),
        ("duplicate", row(1, prompt=asking("<image> What is 1 ?"), images=[shown])),
    ]
    source = write_lines(
        tmp_path / "rows.jsonl", ["\n", *[line if isinstance(line, str) else strip(line) for _, line in lines]]
    )
    data = run(tmp_path / "out", source, validation_frac=0, test_frac=0)
    expected: dict[str, list[str]] = {}
    for number, (reason, _) in enumerate(lines):
        if reason:
            expected.setdefault(reason, []).append(f"rows.jsonl#{number}")
    found = report(data)
    assert {reason: list(entry["examples"]) for reason, entry in found["dropped"].items()} == expected
    assert {reason: entry["count"] for reason, entry in found["dropped"].items()} == {
        reason: len(names) for reason, names in expected.items()
    }
    assert (found["num_rows"], found["num_kept"]) == (len(lines), 4)
    assert sorted(prompt.answer for prompt in read_prompts(data, "rl")) == ["1", "5", "5", "6.5"]
    assert str(tmp_path) not in (tmp_path / "out" / "records.jsonl").read_text()


def strip(line: dict[str, Any]) -> dict[str, Any]:
    """An upstream row as JSON can hold it."""
    images = line.get("images", [])
    return {**line, "images": [i for i in images if not (isinstance(i, dict) and isinstance(i["bytes"], bytes))]}


def test_blank_pictures_that_stand_in_for_none_are_taken_out(tmp_path: Path) -> None:
    blank = {"bytes": png(Image.new("RGB", (28, 28), "white")), "path": None}
    rows = [row(number, images=[blank]) for number in range(3)]
    source = write_parquet(
        tmp_path / "a.parquet",
        [*rows, row(3), row(4, prompt=asking("<image><image>Which ?"), images=[blank, *TWO[:1]])],
    )
    data = run(tmp_path / "out", source, validation_frac=0, test_frac=0)
    assert sorted(len(prompt.images) for prompt in read_prompts(data, "rl")) == [0, 0, 0, 1, 2]
    assert report(data)["abilities"] == {"reasoning": 3, "vision-to-reasoning": 2}
    assert report(data)["noted"]["blank_images"]["count"] == 3
    kept = run(tmp_path / "kept", source, validation_frac=0, test_frac=0, keep_blank_images=True)
    assert [len(prompt.images) for prompt in read_prompts(kept, "rl")].count(1) == 4


def test_rows_without_placeholder_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "a.parquet", [row(1, prompt=asking("How many ?"))])
    with pytest.raises(ValueError, match=r"none of 1 rows .* can be used: image_count 1"):
        run(tmp_path / "out", source)
    data = run(tmp_path / "lenient", source, validation_frac=0, allow_missing_placeholders=True, test_frac=0)
    assert report(data)["noted"]["no_placeholder"]["count"] == 1


def family(seed: int, num: int) -> list[dict[str, Any]]:
    """Rows of which some share a picture, some a question, and some both by way of others."""
    rng = random.Random(seed)
    rows = []
    for index in range(num):
        shared = rng.randrange(num // 3)
        rows.append(
            row(
                shared if index % 3 == 0 else 1000 + index,
                prompt=asking(f"<image>Question {rng.randrange(num // 3) if index % 4 == 0 else 1000 + index} ?"),
                reward_model={"ground_truth": "1"},
            )
        )
    return [*rows, *[text_row(f"What is {index} ?", str(index)) for index in range(num // 2)]]


def test_no_question_and_no_picture_stands_in_two_splits(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "a.parquet", family(0, 60))
    data = run(tmp_path / "out", source, validation_frac=0.2, test_frac=0.2)
    shown = {
        split: {text for prompt in read_prompts(data, split) for text in (prompt.question, *prompt.images)}
        for split in SPLITS
    }
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not shown[split] & shown[other]
    assert report(data)["largest_group"] > 1
    ids = [prompt.id for prompt in all_prompts(data)]
    assert len(set(ids)) == len(ids) == report(data)["num_kept"]
    assert {f"images/{path.name}" for path in (data / "images").iterdir()} == {
        image for prompt in all_prompts(data) for image in prompt.images
    }


def test_shares_are_met_and_a_large_group_is_not_held_out() -> None:
    def prompt(number: int, question: str) -> Prompt:
        return Prompt(id=f"p{number}", ability="reasoning", question=question, answer="1", answer_kind="math")

    prompts = [prompt(number, f"{number} ?") for number in range(3000)]
    splits = split_prompts(group_prompts(prompts), seed=0, validation_frac=0.1, test_frac=0.3)
    assert [len(splits[split]) for split in SPLITS] == pytest.approx([1800, 300, 900], rel=0.15)
    alike = [prompt(number, "alike ?") for number in range(3000, 4000)]
    for seed in range(20):
        splits = split_prompts(group_prompts([*prompts, *alike]), seed=seed, validation_frac=0.2, test_frac=0.2)
        assert sum(p.question == "alike ?" for p in splits["rl"]) == 1000


def test_ids_and_order_do_not_depend_on_files_their_order_or_their_place(tmp_path: Path) -> None:
    rows = family(1, 30)
    one = write_parquet(tmp_path / "one" / "all.parquet", rows)
    shuffled = random.Random(0).sample(rows, len(rows))
    two = tmp_path / "two"
    write_parquet(two / "b" / "train.parquet", shuffled[:20])
    write_parquet(two / "a" / "train.parquet", shuffled[20:])
    datas = [run(tmp_path / "out1", one), run(tmp_path / "out2", two)]
    for split in SPLITS:
        assert len({tuple(prompt.id for prompt in read_prompts(data, split)) for data in datas}) == 1
    elsewhere = Path(shutil.copytree(two, tmp_path / "elsewhere" / "two"))
    moved = run(tmp_path / "out3", elsewhere / "a" / "train.parquet", elsewhere / "b" / "train.parquet")
    assert product(moved) == product(datas[1])
    other = run(tmp_path / "out4", one, seed=1)
    assert {p.id for p in all_prompts(other)} == {p.id for p in all_prompts(datas[0])}
    assert [p.id for p in all_prompts(other)] != [p.id for p in all_prompts(datas[0])]


def test_abilities_and_kinds_are_given_by_data_source(tmp_path: Path) -> None:
    rows = [row(1, data_source="tqa"), row(2, data_source="MMK 12"), text_row("What is 9 ?", "9", data_source="tqa")]
    source = write_parquet(tmp_path / "a.parquet", rows)
    data = run(
        tmp_path / "out", source, validation_frac=0, test_frac=0,
        ability="tqa=vision", answer_kind=["number", "tqa=text", "absent=math"],
    )  # fmt: skip
    found = {prompt.answer: (prompt.ability, prompt.answer_kind) for prompt in read_prompts(data, "rl")}
    assert found == {"1": ("vision", "text"), "2": ("vision-to-reasoning", "number"), "9": ("vision", "text")}
    assert report(data)["unused_rules"] == ["absent"]
    assert {prompt.id.rpartition("-")[0] for prompt in read_prompts(data, "rl")} == {"tqa", "MMK-12"}
    assert report(data)["data_sources"]["tqa"] == {"num_rows": 2, "num_kept": 2}


def test_the_kinds_are_the_graders() -> None:
    assert set(ANSWER_KINDS) == set(KINDS)
    assert read_rules("answer_kind", ["math"], ANSWER_KINDS) == {"": "math"}


def test_a_kind_is_stated_by_the_row_or_inferred_from_its_answer(tmp_path: Path) -> None:
    listed = "Which ?\nA. red\nB. blue"
    rows = [
        text_row(listed, "B"),
        text_row("What share ?", "12%"),
        text_row("Is it prime ?", "Yes"),
        text_row("Which colour ?", "red", answer_kind="text"),
        text_row("How many ?", "5", extra_info={"index": 1, "answer_kind": "math"}),
        text_row("What now ?", "7", answer_kind="maths"),
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    data = run(tmp_path / "out", source, validation_frac=0, test_frac=0, answer_kind="infer")
    found = {prompt.answer: (prompt.answer_kind, prompt.choices) for prompt in read_prompts(data, "rl")}
    assert found == {
        "B": ("choice", ("red", "blue")),
        "12%": ("number", ()),
        "Yes": ("yes_no", ()),
        "red": ("text", ()),
        "5": ("math", ()),
    }
    (dropped,) = report(data)["dropped"]["unknown_kind"]["examples"].values()
    assert dropped == "'maths'; expected one of number, text, math, choice, yes_no, box, list"


@pytest.mark.parametrize("row_group_size", [1, 7, 16, 40])
def test_a_source_can_be_read_from_any_row_on(tmp_path: Path, row_group_size: int) -> None:
    rows = [text_row(f"What is {number} ?", str(number)) for number in range(37)]
    write_parquet(tmp_path / "a.parquet", rows, row_group_size=row_group_size)
    write_lines(tmp_path / "b.jsonl", rows)
    for source in open_sources([str(tmp_path)], config=None, split="train", revision=None, image_root=None):
        whole = [dict(found or {})["prompt"] for found in source.rows(0)]
        assert whole == [line["prompt"] for line in rows]
        for start in range(39):
            assert [dict(found or {})["prompt"] for found in source.rows(start)] == whole[start:]


@pytest.fixture
def hub_rows(tmp_path: Path) -> list[dict[str, Any]]:
    """The rows of a folder `hub`, laid out as `datasets` writes one."""
    from datasets import Dataset, List
    from datasets import Image as ImageFeature

    rows = [row(number) for number in range(9)]
    (tmp_path / "hub").mkdir()
    dataset = Dataset.from_list(rows).cast_column("images", List(ImageFeature()))
    dataset.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    return rows


def test_hub_data_sets_stream_through_datasets_with_the_bytes_of_their_pictures(
    tmp_path: Path, hub_rows: list[dict[str, Any]]
) -> None:
    stream = stream_dataset(str(tmp_path / "hub"), config=None, split="train")
    read = list(stream(0))
    assert [found["images"][0]["bytes"] for found in read if found] == [line["images"][0]["bytes"] for line in hub_rows]
    for start in (3, 9):
        assert list(stream(start)) == read[start:]
    assert all("ability" not in (found or {}) for found in read)
    with pytest.raises(ValueError, match=r"cannot stream its split 'tarin'.*correct hub_config or hub_split"):
        stream_dataset(str(tmp_path / "hub"), config=None, split="tarin")


def test_a_hub_id_is_read_from_the_cache_where_the_hub_is_switched_off(
    tmp_path: Path, hub_rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "cache" / "datasets--group--rl-data"
    shutil.copytree(tmp_path / "hub", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    options: dict[str, Any] = {"validation_frac": 0, "test_frac": 0}
    data = run(tmp_path / "out", Path("group/rl-data"), **options)
    assert json.loads((data / "manifest.json").read_text())["arguments"]["source"] == {"group/rl-data/train": commit}
    from_file = run(tmp_path / "from_file", tmp_path / "hub", **options)
    assert [p.id for p in all_prompts(data)] == [p.id for p in all_prompts(from_file)]
    with pytest.raises(ValueError, match="dataset group/other is not a local folder"):
        run(tmp_path / "out2", Path("group/other"))


@pytest.mark.slow
def test_rows_with_pictures_never_sit_in_memory_together(tmp_path: Path) -> None:
    num_rows, noise = 120, np.random.default_rng(0).bytes(2**20)
    rows = [row(number, images=[{"bytes": noise[number:] + noise[:number]}]) for number in range(num_rows)]
    path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=8)
    lines = write_lines(tmp_path / "a.jsonl", [strip(line) | {"images": [noise.hex()]} for line in rows[:40]])
    assert path.stat().st_size > num_rows * 2**20
    del rows
    pool = pa.default_memory_pool()
    for source in open_sources([str(path), str(lines)], config=None, split="train", revision=None, image_root=None):
        before = pool.bytes_allocated()
        tracemalloc.start()
        peak = max(pool.bytes_allocated() - before + tracemalloc.get_traced_memory()[1] for _ in source.rows(0))
        tracemalloc.stop()
        assert peak < 50 * 2**20


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of 45 rows, ten of them duplicates."""
    folder = tmp_path_factory.mktemp("sources")
    rows = [
        row(number % 35, images=[{"bytes": png(picture(number % 35, (500, 500))), "path": None}])
        for number in range(45)
    ]
    return [write_parquet(folder / "a.parquet", rows[:25]), write_parquet(folder / "b.parquet", rows[25:])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sources: list[Path]) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "out"
    run(directory, *sources)
    return directory


@pytest.mark.cases_slow
@pytest.mark.parametrize("num_done", [0, 1, 25, 30, 45])
def test_a_build_continues_from_its_records_to_the_same_product(
    tmp_path: Path, sources: list[Path], whole: Path, num_done: int
) -> None:
    killed = tmp_path / "killed"
    (killed / ".work" / "images").mkdir(parents=True)
    lines = (whole / "records.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "records.jsonl").write_bytes(b"".join(lines[:num_done]) + b'{"key": "b.parq')
    for line in lines[:num_done]:
        for name in json.loads(line)["images"]:
            shutil.copy2(whole / "data" / "images" / name, killed / ".work" / "images")
    state = json.loads((whole / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps({**state, "status": "running"}))
    stored = {path.name: path.stat().st_mtime_ns for path in (killed / ".work" / "images").iterdir()}
    data = run(killed, *sources)
    assert product(data) == product(whole / "data")
    assert (killed / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    assert stored == {name: (data / "images" / name).stat().st_mtime_ns for name in stored}
    assert not (killed / ".work").exists()


@pytest.mark.slow
def test_a_build_that_is_killed_and_started_again_gives_the_same_product(
    tmp_path: Path, sources: list[Path], whole: Path
) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "data_builders.build", "rl", "--output-dir", str(killed), "--source"]
    process = subprocess.Popen([*command, *map(str, sources)], cwd=REPOSITORY_ROOT, stdout=subprocess.DEVNULL)
    records = killed / "records.jsonl"
    while not (records.exists() and records.read_bytes().count(b"\n") >= 20):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "data").exists()
    done = records.read_bytes()
    assert product(run(killed, *sources)) == product(whole / "data")
    assert records.read_bytes().startswith(done[: done.rfind(b"\n") + 1])


def test_a_finished_build_is_left_alone(sources: list[Path], whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "data").rglob("*")}
    run(whole, *sources)
    assert {path: path.stat().st_mtime_ns for path in (whole / "data").rglob("*")} == before


def test_sources_that_changed_are_not_mixed(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [text_row("What is 1 ?", "1")])
    run(tmp_path / "out", source)
    write_lines(source, [text_row("What is 2 ?", "2")])
    with pytest.raises(ValueError, match=r"was made with source\.a\.jsonl = .*--overwrite"):
        run(tmp_path / "out", source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "gone.parquet"}, "source gone.parquet does not exist"),
        ({"source": "no/such/place"}, "source no/such/place does not exist"),
        ({"source": ["{a}", "{a}"]}, "is named twice"),
        ({"source": "{empty}"}, "contains no .parquet or .jsonl file"),
        ({"source": "{text}"}, "is not a .parquet or .jsonl file"),
        ({"source": "{columns}"}, "has no column 'reward_model'; it has prompt"),
        ({"source": "{torn}"}, "is not readable as Parquet"),
        ({"ability": "visoin"}, "'visoin' is not one of .*did you mean 'vision'"),
        ({"answer_kind": ["math", "text"]}, "a second rule for all rows"),
        ({"validation_frac": "0.6", "test_frac": "0.4"}, "expected shares from 0 whose sum is below 1"),
        ({"test_frac": "-0.1"}, "expected shares from 0"),
        ({"max_pixels": "100"}, "expected 0 < min_pixels <= max_pixels"),
        ({"patch_size": "0"}, "patch_size is 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "torn.parquet").write_text("x")
    places = {
        "a": write_lines(tmp_path / "a.jsonl", [text_row("What is 1 ?", "1")]),
        "empty": tmp_path / "empty",
        "text": tmp_path / "a.txt",
        "columns": write_parquet(tmp_path / "columns.parquet", [{"prompt": "x"}]),
        "torn": tmp_path / "torn.parquet",
    }
    chosen = {"source": "{a}", **options}
    words = [
        word
        for name, value in chosen.items()
        for word in (f"--{name}", *[each.format(**places) for each in (value if isinstance(value, list) else [value])])
    ]
    with pytest.raises(ValueError, match=message):
        build.main(["rl", "--output-dir", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_arguments_without_a_source_are_refused() -> None:
    with pytest.raises(ValueError, match="source is empty"):
        RlArguments(source=[])
