"""What a swap did to an answer: every metric on replies written by hand, and boxes in every coordinate system."""

from typing import Any

import pytest
from PIL import Image

from analyze.swap.scores import (
    BOX_SPACES,
    IMAGE_SPACE,
    METRICS,
    PAPER_METRICS,
    Answer,
    BoxSpace,
    answer_in,
    box_space,
    can_move,
    find_boxes,
    gold_texts,
    is_right,
    score,
)
from data_builders.pairs.pair import TASKS, Pair
from eval.grading import iou
from models.families import FAMILIES

GOLDS = {
    "ocr": ("tensor", "vector"),
    "counting": ("3", "10"),
    "grounding": ("100,100,200,200", "300,100,400,200"),
    "recognition": ("Yes", "No"),
}
TARGET_BOX, SOURCE_BOX = (100, 100, 200, 200), (300, 100, 400, 200)


def a_pair(task: str, **changes: Any) -> Pair:
    target, source = GOLDS[task]
    boxes = {"target_box": TARGET_BOX, "source_box": SOURCE_BOX} if task == "grounding" else {}
    values = {
        "id": "pair", "task": task, "prompt": "?", "target_image": "t.png", "source_image": "s.png",
        "target_answer": target, "source_answer": source, **boxes,
    }  # fmt: skip
    return Pair(**{**values, **changes})


def judged(pair: Pair, unswapped: str, swapped: str, **options: Any) -> str:
    """Returns the metrics as letters: capital where true, small where false, left out where they cannot be judged."""
    scores = score(pair, unswapped=unswapped, swapped=swapped, **options)
    assert tuple(scores) == METRICS
    return "".join(
        letter.upper() if value else letter
        for letter, value in zip("pcmksa", scores.values(), strict=True)
        if value is not None
    )


@pytest.mark.parametrize(
    ("task", "unswapped", "swapped", "expected"),
    [
        # p: the paper's metric, c: changed, m: moved to the source, k: kept the target, a: answered
        ("ocr", "tensor", "tensor", "pcmKA"),
        ("ocr", "tensor", "Tensor.", "pcmKA"),
        ("ocr", "tensor", "vector", "PCMkA"),
        ("ocr", "tensor", "matrix", "PCmkA"),
        ("ocr", "tenso", "tensor", "PCmKA"),
        ("ocr", "<think>it is big</think><answer>tensor</answer>", "<answer>tensor</answer>", "PcmKA"),
        ("ocr", "tensor", "there is no word that I could read in it", "PCmka"),
        ("counting", "3", "There are 3 items.", "pcmKA"),
        ("counting", "3", "<think>4 and 6</think><answer>10</answer>", "PCMkA"),
        ("counting", "There are three items.", "ten", "PCMkA"),
        ("counting", "Three, with the red one.", "There are 3, the red one too.", "pcmKA"),
        ("counting", "One.", "Just one of them", "pcmkA"),
        ("counting", "3", "7", "PCmkA"),
        ("counting", "4", "4", "pcmkA"),
        ("counting", "3", "several", "PCmka"),
        ("counting", "several", "3", "PCmKA"),
        ("counting", "several", "some", "mka"),
        ("counting", "3", "3.0", "pcmKA"),
        ("recognition", "Yes", "yes.", "pcmKA"),
        ("recognition", "Yes", "No", "PCMkA"),
        ("recognition", "Yes", "No, there is no toaster in this picture.", "PCMkA"),
        ("recognition", "**Yes**", "The answer is no.", "PCMkA"),
        ("recognition", "No", "No", "PcMkA"),
        ("recognition", "Yes", "Not a toaster", "pCmka"),
        ("recognition", "<think>No toaster? There is.</think><answer>Yes</answer>", "<answer>No</answer>", "PCMkA"),
        ("grounding", "100,100,200,200", "[102, 101, 199, 203]", "pcmKA"),
        ("grounding", "100,100,200,200", "(300,100),(400,200)", "PCMkA"),
        ("grounding", "100,100,200,200", '[{"bbox_2d": [310, 100, 400, 200], "label": "red circle"}]', "PCMkA"),
        ("grounding", "100,100,200,200", "180,100,280,200", "pCmkA"),
        ("grounding", "100,100,200,200", "I see none.", "pCmka"),
        ("grounding", "100,100,200,200", "10,10,20,20 or 30,30,40,40", "a"),
        ("grounding", "none", "nothing", "pmka"),
    ],
)
def test_every_metric_on_answers_by_hand(task: str, unswapped: str, swapped: str, expected: str) -> None:
    assert judged(a_pair(task), unswapped, swapped) == expected


def test_the_source_reply_is_compared_where_there_is_one() -> None:
    pair = a_pair("counting")
    assert score(pair, unswapped="3", swapped="9", source_reply="There are nine.")["as_source_reply"] is True
    assert score(pair, unswapped="3", swapped="10", source_reply="9")["as_source_reply"] is False
    assert score(pair, unswapped="3", swapped="10")["as_source_reply"] is None


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("ocr", {"source_answer": "Tensor"}),
        ("counting", {"source_answer": "03"}),
        ("grounding", {"source_box": (110, 100, 210, 200)}),
    ],
)
def test_a_pair_with_one_answer_shows_no_movement(task: str, changes: dict[str, Any]) -> None:
    assert can_move(a_pair(task))
    pair = a_pair(task, **changes)
    assert not can_move(pair)
    scores = score(pair, unswapped=pair.target_answer, swapped=pair.target_answer)
    assert scores["moved_to_source"] is scores["kept_target"] is None
    assert scores["changed"] is False


def test_a_place_without_a_box_is_judged_by_its_name() -> None:
    pair = a_pair(
        "grounding", target_box=None, source_box=None, target_answer="northwest", source_answer="east"
    )  # fmt: skip
    assert judged(pair, "northwest", "<think>red circle</think><answer>east</answer>") == "PCMkA"
    assert judged(pair, "northwest", "north") == "pCmkA"
    assert gold_texts(pair) == ("northwest", "east")


@pytest.mark.parametrize(
    ("task", "reply", "expected"),
    [
        ("ocr", "The answer is tensor.", True),
        ("ocr", "vector", False),
        ("counting", "\\boxed{3}", True),
        ("counting", "there are", False),
        ("recognition", "yes", True),
        ("grounding", "x1=101, y1=99, x2=201, y2=200", True),
        ("grounding", "300,100,400,200", False),
        ("grounding", "[[100,100,200,200],[300,100,400,200]]", None),
    ],
)
def test_right_without_a_swap(task: str, reply: str, expected: bool | None) -> None:
    assert is_right(a_pair(task), reply) is expected


@pytest.mark.parametrize(
    "reply",
    [
        "10,20,30,40",
        "10, 20, 30, 40.",
        "10 20 30 40",
        "[10, 20, 30, 40]",
        "The box is (10, 20, 30, 40).",
        "red circle(10,20),(30,40)",
        "<|object_ref_start|>red circle<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>",
        "<box>(10,20),(30,40)</box>",
        "(10, 20) to (30, 40)",
        "(10,20)-(30,40)",
        "top-left: (10, 20), bottom-right: (30, 40)",
        "top left corner at (10, 20) and bottom right corner at (30, 40)",
        "x1=10, y1=20, x2=30, y2=40",
        "x1: 10\ny1: 20\nx2: 30\ny2: 40",
        "xmin=10, ymin=20, xmax=30, ymax=40",
        "x1,y1,x2,y2 = 10,20,30,40",
        '{"x_min": 10, "y_min": 20, "x_max": 30, "y_max": 40}',
        '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "red circle 7"}\n]\n```',
        "10px, 20px, 30px, 40px",
        "1. 10.0, 20.0, 30.0, 40.0",
        "10,20,30,40\n10,20,30,40",
        "<think>Not 1,2,3,4 and not 5,6,7,8.</think> 10,20,30,40",
        "<think>Maybe 1,2,3,4.</think><answer>[10,20,30,40]</answer>",
        "First 1,2,3,4. The answer is 10, 20, 30, 40.",
        "\\boxed{10,20,30,40}",
    ],
)
def test_one_box_is_read_in_every_spelling(reply: str) -> None:
    assert find_boxes(reply) == [(10, 20, 30, 40)]


@pytest.mark.parametrize(
    "reply",
    ["", "no box", "10,20,30", "10,20,30,40,50", "30,40,10,20", "10,20,10,40", "a1,b2,c3,d4", "1.2.3, 4, 5, 6"],
)
def test_what_is_no_box_is_not_read_as_one(reply: str) -> None:
    assert find_boxes(reply) == []


def test_several_boxes_are_told_apart() -> None:
    two = [(10, 20, 30, 40), (50, 60, 70, 80)]
    assert find_boxes('[{"bbox_2d": [10,20,30,40], "label": "a"}, {"bbox_2d": [50,60,70,80], "label": "b"}]') == two
    assert find_boxes("[[10,20,30,40],[50,60,70,80]]") == two
    assert answer_in("10,20,30,40 and 50,60,70,80", a_pair("grounding")) == Answer(ambiguous=True)


def test_a_reply_of_many_numbers_is_read_in_no_time() -> None:
    assert find_boxes("1, " * 20_000) == []
    assert find_boxes("1 to " * 20_000 + "x") == []


@pytest.mark.parametrize("name", BOX_SPACES)
def test_boxes_go_to_the_image_and_back(name: str) -> None:
    space = box_space(name, image_size=(384, 300), grid=(22, 28), patch_size=14)
    box = (12.0, 30.0, 200.0, 299.0)
    assert space.to_image(space.to_model(box)) == pytest.approx(box)
    corner = {"resized": (392, 308), "thousand": (1000, 1000), "image": (384, 300)}[name]
    assert space.to_model((0, 0, 384, 300)) == pytest.approx((0, 0, *corner))


def test_the_same_reply_is_another_box_in_other_coordinates() -> None:
    pair = a_pair("grounding", target_box=(50, 50, 100, 100), source_box=(250, 250, 300, 300))
    thousand = box_space("thousand", image_size=(400, 400), grid=(28, 28), patch_size=14)
    assert is_right(pair, "125,125,250,250", space=thousand) is True
    assert is_right(pair, "125,125,250,250") is False
    assert gold_texts(pair, thousand) == ("125,125,250,250", "625,625,750,750")
    assert gold_texts(pair, BoxSpace(2.0, 1.0))[0] == "100,50,200,100"
    assert gold_texts(pair) == gold_texts(pair, IMAGE_SPACE) == ("50,50,100,100", "250,250,300,300")


def test_resized_pixels_are_those_that_the_processor_makes() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

    processor = Qwen2VLImageProcessor()
    for width, height in ((384, 384), (500, 304), (2000, 1400)):
        _, rows, columns = processor(Image.new("RGB", (width, height)), return_tensors="pt")["image_grid_thw"][
            0
        ].tolist()
        space = box_space("resized", image_size=(width, height), grid=(rows, columns), patch_size=processor.patch_size)
        resized = smart_resize(height, width, max_pixels=processor.size["longest_edge"])
        assert space.to_model((0, 0, width, height)) == pytest.approx((0, 0, resized[1], resized[0]))


def test_every_family_with_vision_and_every_task_is_known() -> None:
    for name, family in FAMILIES.items():
        assert (family.box_space in BOX_SPACES) == (not family.text_only), name
    assert set(PAPER_METRICS) == set(TASKS)
    with pytest.raises(ValueError, match="box space 'percent' is unknown; expected one of resized"):
        box_space("percent", image_size=(1, 1), grid=(1, 1), patch_size=14)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((0, 0, 10, 10), 1.0),
        ((5, 0, 15, 10), 50 / 150),
        ((2, 2, 6, 6), 16 / 100),
        ((10, 0, 20, 10), 0.0),
        ((20, 20, 30, 30), 0.0),
    ],
)
def test_iou_has_its_closed_form(second: tuple[int, int, int, int], expected: float) -> None:
    assert iou((0, 0, 10, 10), second) == pytest.approx(expected)
    assert iou(second, (0, 0, 10, 10)) == pytest.approx(expected)
