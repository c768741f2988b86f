"""Announcements and JSON: where the last one is, and what is no announcement."""

import time

import pytest

from eval.grading.answers import announced, announced_text, json_answer


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        ("The answer is 5. No: the answer is 6. Done.", "number", "6"),
        ("故选：B．", "choice", "B"),
        ("所以选B", "choice", "B"),
        ("答案：**12**。", "number", "12"),
        ("【答案】C", "choice", "C"),
        ("答：一共有5个苹果。再见", "number", "一共有5个苹果"),
        ("答案是12，因为3*4=12", "number", "12"),
        ("Answer:\n```\n7\n```", "number", "7"),
        ("The answer is:\n$$\n7\n$$", "number", "\n7\n"),
    ],
)
def test_the_last_announcement_is_read_to_the_end_of_its_sentence(reply: str, kind: str, text: str) -> None:
    mark = announced(reply)
    assert mark is not None
    assert announced_text(reply, mark.end(), kind) == text


@pytest.mark.parametrize("reply", ["不选B", "不能选B", "选项B错误", "我选了三个", "no announcement", "She answered."])
def test_what_is_no_announcement(reply: str) -> None:
    assert announced(reply) is None


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"answer": "B"}', "B"),
        ('so:\n```json\n{"answer": "B"}\n```\n', "B"),
        ("{'answer': 'B'}", "B"),
        ('[{"answer": 12.50}]', "12.50"),
        ('{"answer": "B", "why": "as {x} is 1"}', "B"),
        ('{"why": "the \\"answer\\": C", "answer": "B"}', "B"),
        ('{"answer": [1, [2, 3]]}', "[1, [2, 3]]"),
        ('{"answer": "\\\\frac{1}{2}"}', r"\frac{1}{2}"),
        ('{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),
        ('{"answer": "a \\"b\\""}', 'a "b"'),
        ('{"final answer": true,}', "true"),
    ],
)
def test_the_answer_key_of_a_json_object_is_the_answer(reply: str, value: str) -> None:
    assert json_answer(reply) == value


@pytest.mark.parametrize(
    "reply",
    [
        '{"question": "B"}',
        'write {"answer": "B"} and then think',
        '{"answer": "B"} or {x}',
        '{"answer": {"value": 5}}',
        '"answer": "B"}',
        '{"answer": null}',
        '{"answer": "B',
        r"\boxed{5}",
    ],
)
def test_what_is_no_json_answer(reply: str) -> None:
    assert json_answer(reply) is None


@pytest.mark.parametrize(
    "piece", ['{"answer":', '"answer": "B", ', '{"answer": [', "选", "答案", '"\\"', "'", "answer is ", "\n", " "]
)
def test_announcements_without_end_are_read_in_no_time(piece: str) -> None:
    text = piece * (100_000 // len(piece)) + "}"
    begin = time.monotonic()
    json_answer(text), announced(text)
    assert time.monotonic() - begin < 2
