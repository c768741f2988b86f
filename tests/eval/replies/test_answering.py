"""Records of replies: what the prompt and the model's family say about a reply, and that grading again agrees."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt
from eval.compare.alike import shared_settings
from eval.regrade import regrade_records
from eval.replies.answering import answer_batch, reply_record
from eval.replies.conditions import Query, make_queries
from eval.replies.generation import Generation
from eval.replies.pictures import PixelLimits, answer_spaces
from eval.tasks import Task
from tracking.records import Record

GOLD = "500, 500, 1000, 1000"
"""A quarter of the height and half of the width of the picture, in its pixels."""


class Saying:
    """An engine that gives the same reply to every prompt."""

    dtype = "float32"

    def __init__(self, reply: str) -> None:
        self.reply = reply

    def answer(self, requests: Any) -> list[Generation]:
        return [Generation(self.reply, 9, "length") for _ in requests]

    def close(self) -> None: ...


def ask(directory: Path, reply: str, *, text: str = "What?", model_type: str = "qwen3_vl", **prompt: Any) -> Record:
    """Returns the record of one reply to one prompt about a picture of 2000 x 1000 pixels."""
    Image.new("RGB", (2000, 1000)).save(directory / "wide.png")
    given = Prompt(id="1", ability="vision", question="What?", images=("wide.png",), **prompt)
    task = Task(name="t", prompts=[given], directory=directory, fingerprint="")
    queries = make_queries(task, lambda prompt: ("given",), {}, 1)
    spaces = answer_spaces(model_type, PixelLimits(min_pixels=784, max_pixels=500_000, patch_size=14))
    ((record,),) = answer_batch(Saying(reply), queries, {queries[0].key: text}, 1, 0, spaces)
    return record


@pytest.mark.parametrize(
    ("model_type", "scale", "right"),
    [
        ("qwen2_vl", [0.5, 1.0], "[250, 500, 500, 1000]"),
        ("qwen3_vl", [0.5, 1.0], "[250, 500, 500, 1000]"),
        ("qwen2_5_vl", [0.49, 0.476], "[245, 238, 490, 476]"),
    ],
)
def test_a_box_is_judged_in_the_coordinates_of_the_family_and_again_so(
    tmp_path: Path, model_type: str, scale: list[float], right: str
) -> None:
    for reply, status in ((right, "correct"), ("[0, 0, 200, 200]", "incorrect")):
        record = ask(tmp_path, reply, model_type=model_type, answer=GOLD, answer_kind="box")
        assert record["status"] == status
        assert record["box_scale"] == pytest.approx(scale)
        assert record["gold"] == GOLD
        assert regrade_records([record]) == [record]


def test_a_text_only_family_and_other_kinds_have_no_coordinates(tmp_path: Path) -> None:
    assert "box_scale" not in ask(tmp_path, "7", answer="7", answer_kind="number")
    record = ask(tmp_path, GOLD, model_type="qwen2", answer=GOLD, answer_kind="box")
    assert record["status"] == "correct" and "box_scale" not in record


def test_a_reply_whose_prompt_opened_its_thoughts_starts_inside_them(tmp_path: Path) -> None:
    cut, whole = "3 + 4, so the answer is 7. But wait", "3 + 4</think><answer>7</answer>"
    seven = {"answer": "7", "answer_kind": "number"}
    opened = "<|im_start|>assistant\n<think>\n"
    verdicts = [ask(tmp_path, reply, text=text, **seven) for reply in (cut, whole) for text in ("What?", opened)]
    assert [record["status"] for record in verdicts] == ["correct", "incorrect", "correct", "correct"]
    assert [record["well_formed"] for record in verdicts] == [False, False, False, True]
    assert verdicts[1]["rule"] == "unfinished thoughts"
    assert [record.get("opened_thoughts") for record in verdicts] == [None, True, None, True]
    assert [record["response"] for record in verdicts] == [cut, cut, whole, whole]
    assert regrade_records(verdicts) == verdicts


def test_models_of_two_families_are_compared_although_they_write_boxes_differently() -> None:
    assert shared_settings({"box_space": "thousand", "seed": 1}) == shared_settings({"box_space": "resized", "seed": 1})


def test_records_name_the_modality_and_kind_of_prompts_that_have_them() -> None:
    def record(meta: dict[str, Any] | None) -> dict[str, Any]:
        prompt = Prompt(id="1", ability="vision", question="q", answer="7", answer_kind="number", meta=meta)
        query = Query("t", prompt, "given", 0, Path())
        return reply_record(query, "q", Generation("<answer>7</answer>", 3, "stop"), None)

    found = record({"modality": "Chest X-Ray", "kind": "count", "source": "x"})
    assert (found["modality"], found["kind"]) == ("Chest X-Ray", "count")
    assert {"modality", "kind", "source"}.isdisjoint(record({"source": "x"})) and "modality" not in record(None)
    assert list(record({"source": "x"})) == list(record(None))
