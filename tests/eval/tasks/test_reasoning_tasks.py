"""GSM8K and MATH-500 as published: every gold answer is gradable, and what is no line of them is refused."""

from pathlib import Path

import pytest

from data_builders.prompt_sets.prompts import Prompt
from eval.grading import grade, parse_number
from eval.tasks import open_task
from tracking.command import REPOSITORY_ROOT

SHARED = REPOSITORY_ROOT.parent / "shared" / "data"
FILES = {"gsm8k": SHARED / "gsm8k_test.jsonl", "math500": SHARED / "math500_test.jsonl"}


def problems(name: str) -> list[Prompt]:
    if not FILES[name].is_file():
        pytest.skip(f"{FILES[name]} is not here: the published problems are no part of the repository")
    return open_task(f"{name}:{FILES[name]}", cache_dir=Path("unused")).prompts


def test_every_gsm8k_gold_is_a_number_and_right_after_hashes() -> None:
    prompts = problems("gsm8k")
    assert (len(prompts), len({prompt.id for prompt in prompts})) == (1319, 1319)
    for prompt in prompts:
        assert grade(f"So it is\n#### {prompt.answer}", prompt.answer, prompt.answer_kind).correct, prompt
        value = parse_number(prompt.answer)
        assert value is not None
        assert grade(f"The answer is {value + 1}.", prompt.answer, prompt.answer_kind).correct is False, prompt
    assert "<<" not in "".join(prompt.question for prompt in prompts)


def test_math_500_golds_are_right_in_a_box() -> None:
    prompts = problems("math500")
    assert (len(prompts), len({prompt.id for prompt in prompts})) == (500, 500)
    for prompt in prompts[::25]:
        assert grade(rf"So \boxed{{{prompt.answer}}}", prompt.answer, prompt.answer_kind).correct, prompt


@pytest.mark.slow
def test_every_math_500_gold_is_right_in_a_box() -> None:
    verdicts = [grade(rf"\boxed{{{p.answer}}}", p.answer, p.answer_kind).status for p in problems("math500")]
    assert verdicts == ["correct"] * 500


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("gsm8k", '{"question": "a", "answer": "5"}', "row 1: answer has no '#### GOLD'"),
        ("gsm8k", '{"problem": "a", "answer": "5"}', "has no column 'question'; a row has problem, answer"),
        ("gsm8k", '{"question": "a", "answer": "5\\n#### "}', "row 1: .*answer is ''"),
        ("math500", '{"question": "a", "answer": "5"}', "has no column 'problem'"),
        ("math500", "[1]", r"set\.jsonl"),
        ("math500", '{"problem": ', r"set\.jsonl"),
        ("math500", "", "is empty"),
    ],
)
def test_what_is_no_line_of_a_set_is_refused(name: str, line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        open_task(f"{name}:{path}", cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"gone\.jsonl does not exist"):
        open_task(f"{name}:{tmp_path / 'gone.jsonl'}", cache_dir=tmp_path)
