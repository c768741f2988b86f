"""How the model in training writes: a template that opens `<think>`, and boxes in the coordinates of its family."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.replies.pictures import AnswerSpaces, PixelLimits, resized_size
from models.loading import load_processor
from train.rewards.form import AS_GIVEN, ReplyForm, reply_form
from train.rewards.functions import RewardArguments, bind_rewards, in_form

NAMES = ["accuracy", "format"]
LIMITS = PixelLimits(min_pixels=28 * 28, max_pixels=1_000_000, patch_size=14)


def rewards(form: ReplyForm, replies: list[str], gold: str, kind: str, **columns: Any) -> list[list[float | None]]:
    """Calls the built-in rewards as TRL calls them."""
    functions = bind_rewards(
        RewardArguments(rewards=NAMES), weights=None, prompt_style="think", max_completion_tokens=64
    )
    given = {"completions": replies, "answer": [gold] * len(replies), "answer_kind": [kind] * len(replies), **columns}
    return [function(**given) for function in in_form(functions, NAMES, form)]


@pytest.mark.parametrize("ending", ["<think>\n", "<think>", ""])
def test_the_form_is_that_of_the_chat_template(pocket_checkpoint: Path, ending: str) -> None:
    processor = load_processor(pocket_checkpoint)
    processor.chat_template = processor.chat_template + "{% if add_generation_prompt %}" + ending + "{% endif %}"
    form = reply_form("qwen2_5_vl", processor)
    assert form.opened_thoughts is bool(ending)
    replies = [
        "3 + 4</think><answer>7</answer>",
        "3 + 4, so the answer is 7. But",
        "<think>3</think><answer>7</answer>",
    ]
    accuracy, well_formed = rewards(form, replies, "7", "number")
    assert accuracy == ([1.0, 0.0, 1.0] if ending else [1.0, 1.0, 1.0])
    assert well_formed == ([1.0, 0.0, 0.0] if ending else [0.0, 0.0, 1.0])


def test_options_of_the_template_are_passed_on(pocket_checkpoint: Path) -> None:
    processor = load_processor(pocket_checkpoint)
    processor.chat_template = processor.chat_template + "{% if thinks %}<think>{% endif %}"
    assert reply_form("qwen2_5_vl", processor).opened_thoughts is False
    assert reply_form("qwen2_5_vl", processor, template_options={"thinks": True}).opened_thoughts is True


@pytest.mark.parametrize(
    ("model_type", "name", "right"),
    [
        ("qwen2_vl", None, "[250, 500, 500, 1000]"),
        ("qwen3_vl", None, "[250, 500, 500, 1000]"),
        ("internvl", None, "[250, 500, 500, 1000]"),
        ("qwen2_5_vl", None, "[504, 504, 1008, 1008]"),
        ("qwen2_5_vl", "image", "[500, 500, 1000, 1000]"),
        ("qwen3_vl", "image", "[500, 500, 1000, 1000]"),
    ],
)
def test_a_box_is_right_in_the_coordinates_of_the_family(
    pocket_checkpoint: Path, model_type: str, name: str | None, right: str
) -> None:
    """The gold covers a quarter of an image of 2000 x 1000 pixels, which the processor resizes."""
    processor = load_processor(pocket_checkpoint)
    processor.image_processor.size = type(processor.image_processor.size)(shortest_edge=28 * 28, longest_edge=2_100_000)
    form = reply_form(model_type, processor, box_space=name)
    picture = Image.new("RGB", (2000, 1000))
    answers = [f"<think>left</think><answer>{box}</answer>" for box in (right, "[0, 0, 250, 500]", "[2, 4, 9, 9]")]
    found, _ = rewards(form, answers, "500, 500, 1000, 1000", "box", images=[[picture]] * 3)
    assert found == [1.0, 0.0, 0.0]


def test_pixels_are_assumed_where_nothing_is_known() -> None:
    answers = ["<answer>[500, 500, 1000, 1000]</answer>", "<answer>[250, 500, 500, 1000]</answer>"]
    thousand = ReplyForm(spaces=AnswerSpaces(name="thousand", limits=LIMITS))
    pictures = [Image.new("RGB", (2000, 1000)), Image.new("RGB", (500, 500))]
    gold = "500, 500, 1000, 1000"
    assert rewards(AS_GIVEN, answers, gold, "box", images=[[pictures[0]]] * 2)[0] == [1.0, 0.0]
    assert rewards(thousand, answers, gold, "box")[0] == [1.0, 0.0]
    assert rewards(thousand, answers, gold, "box", images=[pictures] * 2)[0] == [1.0, 0.0], "two sizes"
    assert rewards(thousand, answers, gold, "box", images=[[pictures[0]] * 2] * 2)[0] == [0.0, 1.0], "one size"
    assert thousand.gold("7", "number", [pictures[0]]) == "7"


def test_the_size_in_which_a_model_sees_an_image_is_that_of_its_processor() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=1_000_000)
    for size in ((384, 384), (500, 304), (2000, 1400), (20, 30)):
        _, rows, columns = processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0].tolist()
        assert resized_size(size, LIMITS) == (columns * 14, rows * 14)


def test_functions_in_a_form_keep_the_names_that_trl_logs() -> None:
    from trl.trainer.utils import get_callable_name

    functions = bind_rewards(
        RewardArguments(rewards=NAMES), weights=None, prompt_style="think", max_completion_tokens=64
    )
    assert [get_callable_name(function) for function in in_form(functions, NAMES, AS_GIVEN)] == NAMES


def test_box_space_is_a_setting_and_an_unknown_one_is_refused() -> None:
    assert RewardArguments(box_space="thousand").box_space == "thousand"
    with pytest.raises(ValueError, match="box space 'percent' is unknown; expected one of resized, thousand, image"):
        RewardArguments(box_space="percent")
