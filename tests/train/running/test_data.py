"""What the trainer sees, and in which order."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from eval.replies.pictures import Picture, PixelLimits, open_picture
from models.loading import load_processor
from train.running.data import DataArguments, build_dataset, count_tokens, filter_prompts, load_prompts, training_order

ORIENTATION_TAG = Base.Orientation


def test_every_prompt_comes_once_a_pass_in_another_order_each_pass() -> None:
    order = training_order(10, 30, seed=0)
    passes = [order[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(each) for each in passes] == [list(range(10))] * 3
    assert passes[0] != passes[1] != passes[2]


def test_the_order_is_the_seeds_and_a_longer_run_begins_like_a_shorter_one() -> None:
    assert training_order(10, 25, seed=3) == training_order(10, 25, seed=3)
    assert training_order(10, 25, seed=3) != training_order(10, 25, seed=4)
    assert training_order(10, 25, seed=3)[:17] == training_order(10, 17, seed=3)
    assert len(training_order(10, 17, seed=3)) == 17


def test_only_prompts_of_the_wanted_abilities_are_loaded(tiny_prompts: Path) -> None:
    wanted = load_prompts(DataArguments(prompts=str(tiny_prompts), split="rl", abilities=["reasoning"]))
    assert [prompt.id for prompt in wanted] == [f"t{index}" for index in range(5)]
    assert len(load_prompts(DataArguments(prompts=str(tiny_prompts), split="rl"))) == 11


def test_an_ability_that_no_prompt_has_is_refused(tiny_prompts: Path) -> None:
    with pytest.raises(ValueError, match="no prompt of the ability 'visoin'; it has reasoning, vision"):
        load_prompts(DataArguments(prompts=str(tiny_prompts), split="rl", abilities=["vision", "visoin"]))


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prompts of two modalities, one of them with a space in its name, and one without meta."""
    directory = tmp_path_factory.mktemp("looks")
    rows = [("n0", "negative", "cat"), ("x0", "Chest X-Ray", "cat"), ("n1", "negative", "dog"), ("m0", None, "dog")]
    prompts = [
        Prompt(
            id=name, ability="vision", question="What ?", answer=answer, answer_kind="text",
            meta=None if modality is None else {"modality": modality, "size": 28},
        )
        for name, modality, answer in rows
    ]  # fmt: skip
    write_prompts(directory, "rl", prompts)
    return str(directory)


@pytest.mark.parametrize(
    ("select", "ids"),
    [
        ([], ["n0", "x0", "n1", "m0"]),
        (["modality=negative"], ["n0", "n1"]),
        (["modality=Chest X-Ray"], ["x0"]),
        (["modality=negative, Chest X-Ray"], ["n0", "x0", "n1"]),
        (["modality=negative", "class=dog"], ["n1"]),
        (["size=28"], ["n0", "x0", "n1"]),
        (["ability=vision", "class=dog"], ["n1", "m0"]),
    ],
)
def test_only_selected_prompts_are_loaded_in_the_order_of_the_file(
    looks: str, select: list[str], ids: list[str]
) -> None:
    wanted = load_prompts(DataArguments(prompts=looks, split="rl", select=select))
    assert [prompt.id for prompt in wanted] == ids


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (["modality=negativ"], "no prompt with modality 'negativ'.*'negative'.*it has Chest X-Ray, negative"),
        (["modalty=negative"], "no field 'modalty'.*'modality'.*it has ability, class, modality, size"),
        (["modality=Chest X-Ray", "class=dog"], "no prompt for which all of"),
    ],
)
def test_a_selection_that_no_prompt_fulfils_is_refused(looks: str, select: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_prompts(DataArguments(prompts=looks, split="rl", select=select))


def test_settings_of_earlier_runs_have_no_selection_and_stay_valid(looks: str) -> None:
    whole = DataArguments(prompts=looks, split="rl")
    assert "select" not in whole.settings
    part = dataclasses.replace(whole, select=["modality=negative"])
    assert part.settings == {**whole.settings, "select": ["modality=negative"]}


def test_rows_stand_in_the_given_order_with_pictures_and_gold(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="rl", prompt_style="think", system_prompt="Be brief .")
    prompts = load_prompts(data)
    dataset = build_dataset(prompts, [7, 2, 2], data, with_response=False)
    assert [row["answer"] for row in dataset] == [prompts[index].answer for index in (7, 2, 2)]
    assert [[image.size for image in row["images"]] for row in dataset] == [[], [(56, 56)], [(56, 56)]]
    assert [message["role"] for message in dataset[0]["prompt"]] == ["system", "user"]
    assert dataset[0]["prompt"][1]["content"].startswith(prompts[7].question)
    assert "completion" not in dataset.column_names


def test_rows_of_a_batch_with_the_same_picture_get_one_object(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="rl")
    prompts = load_prompts(data)
    batch = build_dataset(prompts, [2, 3, 2, 7], data, with_response=False).__getitems__([0, 1, 2, 3])
    (first,), (other,), (again,), none = (row["images"] for row in batch)
    assert first is again and first is not other and none == []
    with Image.open(tiny_prompts / prompts[2].images[0]) as expected:
        assert first == expected.convert("RGB")
    assert [row["answer"] for row in batch] == [prompts[index].answer for index in (2, 3, 2, 7)]


@pytest.mark.parametrize("kind", ["transparent", "with an EXIF turn", "of a palette"])
def test_training_shows_a_picture_as_an_evaluation_does(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (56, 84, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    name = "picture.jpg" if kind == "with an EXIF turn" else "picture.png"
    if kind == "of a palette":
        image.convert("RGB").quantize(16).save(tmp_path / name)
    elif kind == "with an EXIF turn":
        tags = Image.Exif()
        tags[ORIENTATION_TAG] = 6
        image.convert("RGB").save(tmp_path / name, exif=tags)
    else:
        image.save(tmp_path / name)
    prompt = Prompt(id="p", ability="vision", question="What is it ?", answer="5", answer_kind="number", images=(name,))
    write_prompts(tmp_path, "rl", [prompt])
    (row,) = build_dataset([prompt], [0], DataArguments(prompts=str(tmp_path), split="rl"), with_response=False)
    limits = PixelLimits(min_pixels=28 * 28, max_pixels=10**6, patch_size=14)
    assert row["images"] == [open_picture(Picture(tmp_path / name), limits)]


def test_the_teachers_reply_is_the_completion(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="sft")
    prompts = load_prompts(data)
    dataset = build_dataset(prompts, range(len(prompts)), data, with_response=True)
    assert [row["completion"] for row in dataset] == [[{"role": "assistant", "content": p.response}] for p in prompts]
    assert "answer" not in dataset.column_names


def test_a_prompt_without_response_cannot_be_trained_on(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="sft")
    prompts: list[Prompt] = read_prompts(tiny_prompts, "sft")
    prompts[4] = dataclasses.replace(prompts[4], response=None)
    with pytest.raises(ValueError, match="prompt 'i4' has no response"):
        build_dataset(prompts, range(len(prompts)), data, with_response=True)


def test_prompts_without_any_picture_make_a_dataset_too(tiny_prompts: Path) -> None:
    data = DataArguments(prompts=str(tiny_prompts), split="rl", abilities=["reasoning"])
    dataset = build_dataset(load_prompts(data), [0, 3], data, with_response=False)
    assert [row["images"] for row in dataset] == [[], []]
    dataset = build_dataset(load_prompts(data), [0, 3], data, with_response=False, text_only=True)
    assert len(dataset) == 2
    assert "images" not in dataset.column_names  # with it TRL takes the model for one that sees


SIZES = ((28, 28), (84, 84), (13, 300), (300, 13), (640, 480), (5, 5), (113, 57), (999, 1001))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A prompt set of the split `rl`: each size of picture alone, all of them together, and none."""
    for number, size in enumerate(SIZES):
        Image.new("RGB", size, (number, 90, 200)).save(tmp_path / f"{number}.{'jpg' if number % 3 == 1 else 'png'}")
    names = sorted(path.name for path in tmp_path.iterdir())
    shown = [*[(name,) for name in names], tuple(names), ()]
    prompts = [
        Prompt(id=f"p{n}", ability="vision", question="What is 2 + 3 ?" * n, answer="5", answer_kind="number", images=i)
        for n, i in enumerate(shown, start=1)
    ]
    write_prompts(tmp_path, "rl", prompts)
    return tmp_path


@pytest.mark.parametrize("checkpoint", ["pocket_checkpoint", "qwen3_vl_checkpoint", "internvl_checkpoint"])
@pytest.mark.parametrize(("style", "system_prompt"), [("plain", None), ("boxed", "Be brief .")])
def test_tokens_are_counted_as_the_processor_and_the_trainer_make_them(
    checkpoint: str, pictures: Path, style: str, system_prompt: str | None, request: pytest.FixtureRequest
) -> None:
    from trl.data_utils import prepare_multimodal_messages

    processor: Any = load_processor(request.getfixturevalue(checkpoint))
    data = DataArguments(prompts=str(pictures), split="rl", prompt_style=style, system_prompt=system_prompt)
    prompts = load_prompts(data)
    rows = build_dataset(prompts, range(len(prompts)), data, with_response=False)
    for prompt, row in zip(prompts, rows, strict=True):
        messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
        made = processor.apply_chat_template([messages], add_generation_prompt=True, tokenize=True, return_dict=True)
        assert list(count_tokens([prompt], data, processor)) == [(prompt, len(made["input_ids"][0]))]


def test_tokens_of_a_text_only_model_are_its_tokenizers(qwen2_checkpoint: Path, tiny_prompts: Path) -> None:
    tokenizer: Any = load_processor(qwen2_checkpoint)
    data = DataArguments(prompts=str(tiny_prompts), split="rl", abilities=["reasoning"], system_prompt="Be brief .")
    prompts = load_prompts(data)
    for prompt, row in zip(prompts, build_dataset(prompts, range(5), data, with_response=False), strict=True):
        made = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)
        assert list(count_tokens([prompt], data, tokenizer)) == [(prompt, len(made["input_ids"]))]


def test_prompts_longer_than_the_limit_are_left_out_and_counted(pocket_checkpoint: Path, pictures: Path) -> None:
    processor = load_processor(pocket_checkpoint)
    unlimited = DataArguments(prompts=str(pictures), split="rl")
    prompts = load_prompts(unlimited)
    lengths = {prompt.id: tokens for prompt, tokens in count_tokens(prompts, unlimited, processor)}
    kept, report = filter_prompts(prompts, unlimited, processor)
    assert (kept, report.filtered, report.longest_prompt_tokens) == (prompts, {}, max(lengths.values()))
    limit = sorted(lengths.values())[4]
    kept, report = filter_prompts(prompts, dataclasses.replace(unlimited, max_prompt_tokens=limit), processor)
    assert [prompt.id for prompt in kept] == [name for name, length in lengths.items() if length <= limit]
    assert report.filtered["too_long"].examples == [name for name, length in lengths.items() if length > limit]
    assert (report.num_prompts, report.num_kept) == (len(prompts), len(kept))
    assert report.longest_prompt_tokens == limit
    written = json.loads(json.dumps(dataclasses.asdict(report)))
    assert written["filtered"]["too_long"]["count"] == len(prompts) - len(kept)
    with pytest.raises(ValueError, match=r"no prompt of the split rl is left \(too_long 10\)"):
        filter_prompts(prompts, dataclasses.replace(unlimited, max_prompt_tokens=3), processor)


def test_what_training_would_stumble_over_is_left_out_with_its_reason(pocket_checkpoint: Path, tmp_path: Path) -> None:
    for name, size in (("whole", (60, 60)), ("narrow", (600, 2)), ("cut", (60, 60)), ("flat", (60, 60))):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{name}.png")
    Image.effect_noise((60, 60), 90).convert("RGB").save(tmp_path / "cut.jpg")
    for name in ("cut.png", "cut.jpg"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    flipped = bytearray((tmp_path / "flat.png").read_bytes())
    flipped[500] ^= 1
    (tmp_path / "flat.png").write_bytes(flipped)
    (tmp_path / "text.png").write_text("no picture")

    def prompt(name: str, question: str = "What is it ?", answer: str = "5", kind: str = "number") -> Prompt:
        images = (name,) if "." in name else ()
        return Prompt(
            id=f"{name} {question} {answer}", ability="vision", question=question, answer=answer, answer_kind=kind,
            images=images,
        )  # fmt: skip

    cases = [
        (None, prompt("whole.png")),
        (None, prompt("-")),
        (None, prompt("-", answer=r"\frac{1}{2}", kind="math")),
        ("broken_image", prompt("narrow.png")),
        ("broken_image", prompt("cut.png")),
        ("broken_image", prompt("cut.jpg")),
        ("broken_image", prompt("flat.png")),
        ("broken_image", prompt("text.png")),
        ("image_token", prompt("whole.png", question="What is <|image_pad|> ?")),
        ("image_token", prompt("-", question="What is <|image_pad|> ?")),
        ("ungradable", prompt("-", answer="several")),
        ("ungradable", prompt("whole.png", answer="the", kind="text")),
    ]
    prompts = [each for _, each in cases]
    kept, report = filter_prompts(
        prompts, DataArguments(prompts=str(tmp_path), split="rl"), load_processor(pocket_checkpoint)
    )
    expected: dict[str, list[str]] = {}
    for reason, each in cases:
        if reason:
            expected.setdefault(reason, []).append(each.id)
    assert kept == [each for reason, each in cases if reason is None]
    assert {reason: entry.examples for reason, entry in report.filtered.items()} == expected
    assert {reason: entry.count for reason, entry in report.filtered.items()} == {
        reason: len(ids) for reason, ids in expected.items()
    }


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_no_prompt_can_meet_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"max_prompt_tokens is {limit}"):
        DataArguments(prompts="unused", split="rl", max_prompt_tokens=limit)
