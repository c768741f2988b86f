"""The part of a reply that can hold its answer: thoughts, turns, markers of families, and templates that open a tag."""

import time

import pytest

from eval.grading import INCORRECT, continued, grade, is_well_formed, opens_thoughts
from eval.grading.final_text import text_after_thoughts


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("It is 7.", "It is 7."),
        ("<think>8?</think>It is 7.", "It is 7."),
        ("8?</think>It is 7.", "It is 7."),
        ("<think>It is 7.</think>", "<think>It is 7.</think>"),
        ("<think>It is 7.", None),
        ("<think>8?</think>It is 7. <think>Or", None),
        ("<think>8, no, <answer>7</answer>", "<answer>7</answer>"),
        ("<think>as in <answer>7</answer>, but", None),
        ("◁think▷8?◁/think▷7", "7"),
        ("[THINK]8?[/THINK]7", "7"),
        ("[THINK]8?", None),
        ("<Thinking>8?</Thinking><ANSWER>7</ANSWER>", "<answer>7</answer>"),
        ("<|begin_of_box|>7<|end_of_box|>", r"\boxed{7}"),
        ("7<|im_end|>\n<|im_start|>user\n8", "7"),
        ("<|im_start|>assistant\n7</s>", "7"),
        ("if x < 5, 7", "if x < 5, 7"),
    ],
)
def test_the_final_text_is_what_follows_the_thoughts(response: str, expected: str | None) -> None:
    assert text_after_thoughts(response) == expected


def test_a_reply_cut_in_its_thoughts_is_wrong_and_says_why() -> None:
    verdict = grade("<think>The answer is 7. But wait", "7", "number")
    assert (verdict.status, verdict.extracted, verdict.rule) == (INCORRECT, None, "unfinished thoughts")


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>", True),
        ("assistant\n◁think▷", True),
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("Think inside <think> </think>.<|im_end|>\n<|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_that_opens_thoughts_is_known_by_its_end(prompt: str, opened: bool) -> None:
    assert opens_thoughts(prompt) is opened


def test_where_the_prompt_opened_the_thoughts_the_reply_is_read_with_the_tag() -> None:
    whole, cut = "3 + 4 = 7</think><answer>7</answer>", "3 + 4, so the answer is 7. But"
    assert not is_well_formed(whole)
    assert is_well_formed(continued(whole, opened=True))
    assert grade(continued(cut, opened=False), "7", "number").correct is True
    assert grade(continued(cut, opened=True), "7", "number").rule == "unfinished thoughts"


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>", "<", "[THINK]", "◁", "</s>"]
)
def test_markers_without_end_are_read_in_no_time(piece: str) -> None:
    begin = time.monotonic()
    text_after_thoughts(piece * (100_000 // len(piece)))
    assert time.monotonic() - begin < 2
