"""What probes are given: tasks of several kinds, images that cannot be decoded, and every mistake before the work."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from analyze.probes.inputs import check_choices, check_loading, load_problems, readable, skipped_rows, unreadable_images
from data_builders.prompt_sets.prompts import Prompt, write_prompts


def write_task(directory: Path, **changes: Any) -> str:
    """Three prompts: a sum, and two about pictures, the second of which is cut short."""
    directory.mkdir(exist_ok=True)
    for name in ("whole.png", "cut.png"):
        Image.effect_noise((84, 84), 64).convert("RGB").save(directory / name)
    (directory / "cut.png").write_bytes((directory / "cut.png").read_bytes()[:2000])
    facts: dict[str, Any] = {"question": "What is 1 + 1 ?", "answer": "2", "answer_kind": "number", **changes}
    prompts = [Prompt(id="sum", ability="reasoning", **facts)]
    prompts += [Prompt(id=name, ability="vision", images=(f"{name}.png",), **facts) for name in ("whole", "cut")]
    write_prompts(directory, "test", prompts)
    return f"{directory}:test"


def test_tasks_of_every_kind_are_read_in_order_up_to_so_many_problems(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps({"question": f"{n} + 2 ?", "answer": f"…\n#### {n + 2}"}) + "\n" for n in range(3))
    )
    problems, fingerprints = load_problems([write_task(tmp_path / "set"), f"gsm8k:{tmp_path / 'sums.jsonl'}"], limit=2)
    assert [problem.key for problem in problems] == ["test/sum", "test/whole", "gsm8k/0001", "gsm8k/0002"]
    assert list(fingerprints) == ["test", "gsm8k"]
    assert problems[1].image_paths == [tmp_path / "set" / "whole.png"]
    seeing, others = load_problems([write_task(tmp_path / "set")], abilities=["vision"])
    assert [problem.prompt.id for problem in seeing] == ["whole", "cut"] and others["test"] == fingerprints["test"]


def test_problems_with_images_that_cannot_be_decoded_are_listed_and_the_rest_stays(tmp_path: Path) -> None:
    problems, _ = load_problems([write_task(tmp_path / "set")])
    unreadable = unreadable_images(problems)
    (row,) = skipped_rows(problems, unreadable)
    assert (row["task"], row["id"]) == ("test", "cut") and "cut.png cannot be read" in row["reason"]
    assert str(tmp_path) not in row["reason"]
    assert [problem.prompt.id for problem in readable(problems, unreadable)] == ["sum", "whole"]
    with pytest.raises(ValueError, match=r"none of the 1 problems can be used; the first, test/cut: image cut\.png"):
        readable(problems[2:], unreadable)


def test_mistakes_are_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt 'sum' of .*: answer kind 'colour' is unknown"):
        load_problems([write_task(tmp_path / "kind", answer_kind="colour")])
    good = write_task(tmp_path / "set")
    with pytest.raises(ValueError, match="two tasks have the name 'test'"):
        load_problems([good, good])
    with pytest.raises(ValueError, match="has no prompts of vision-to-reasoning"):
        load_problems([good], abilities=["vision-to-reasoning"])
    with pytest.raises(ValueError, match="dtype 'float23' is unknown; did you mean 'float32'"):
        check_loading(dtype="float23")
    with pytest.raises(ValueError, match=r"attn_implementation 'fast' is unknown \(expected sdpa"):
        check_loading(dtype="auto", attn_implementation="fast")
    with pytest.raises(ValueError, match="no mode is named; expected any of from, only"):
        check_choices("mode", [], ("from", "only"))
    with pytest.raises(ValueError, match="mode 'from' is named twice"):
        check_choices("mode", ["from", "from"], ("from", "only"))
