"""How imported answers are graded: told by fields, by golds, or by the person who imports them."""

from typing import Any

import pytest

from eval.harnesses.choices import letter_in, options_in, options_of, right_option
from eval.harnesses.kinds import NO_GOLD, NO_SUCH_OPTION, SEVERAL_GOLDS, kind_of_golds, parse_kinds, settle
from eval.harnesses.replies import Reply


def reply(*golds: str, question: str = "How many?", **fields: Any) -> Reply:
    return Reply(task="t", id=str(id(fields)), question=question, golds=golds, response="", fields=fields)


@pytest.mark.parametrize(
    ("golds", "kind"),
    [
        (["Yes", "no", "YES"], "yes_no"),
        (["A", "(B)", "C."], "choice"),
        (["12", "1,250", "0.5", "-3"], "number"),
        (["12", r"\frac{1}{2}", "x + 1", "Evelyn"], "math"),
        (["2^{10}", "7"], "math"),
    ],
)
def test_golds_that_are_alike_tell_their_kind(golds: list[str], kind: str) -> None:
    settled, left_out = settle([reply(gold) for gold in golds], {})
    assert {one.kind for one in settled} == {kind}
    assert not left_out


@pytest.mark.parametrize("golds", [["a cat", "12"], ["1, 2"], ["x + 1"], ["yes", "maybe"]])
def test_golds_that_do_not_tell_are_asked_for_in_one_line(golds: list[str]) -> None:
    with pytest.raises(ValueError, match=r"t: how answers are graded cannot be told .* give --kind") as raised:
        kind_of_golds(golds, "t")
    assert "\n" not in str(raised.value)
    settled, _ = settle([reply(gold) for gold in golds], parse_kinds(["t=text"]))
    assert {one.kind for one in settled} == {"text"}


def test_each_gold_decides_for_itself_if_told_so() -> None:
    settled, _ = settle([reply(gold) for gold in ("12", "a cat", "x + 1", "B")], parse_kinds(["by-gold"]))
    assert [one.kind for one in settled] == ["number", "text", "math", "choice"]


def test_fields_of_benchmarks_tell_the_kind_of_each_row() -> None:
    rows = [
        reply("3", answer_type="integer"),
        reply("[1, 2]", answer_type="list"),
        reply("a cat", answer_type="text"),
        reply("(0, 1)", answer_kind="math"),
        reply("B", choices=["10", "20"]),
    ]
    settled, _ = settle(rows, {})
    assert [one.kind for one in settled] == ["number", "list", "text", "math", "choice"]
    assert [one.gold for one in settled] == ["3", "[1, 2]", "a cat", "(0, 1)", "20"]


def test_decimals_are_taken_over_where_numbers_are_rounded_to_them() -> None:
    rows = [
        reply("1.2", answer_type="float", precision="1.0"),
        reply("1.2", answer_type="float", precision=2),
        reply("1.2", answer_type="float", precision=""),
        reply("3", answer_type="integer", precision="0.0"),
    ]
    settled, _ = settle(rows, {})
    assert [one.precision for one in settled] == [1, 2, None, None]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("14 + 9 = 23.\n#### 23", "23"), (r"so it is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"), (" 7 ", "7")],
)
def test_the_answer_of_a_solution_is_the_gold(gold: str, answer: str) -> None:
    settled, _ = settle([reply(gold)], {})
    assert settled[0].gold == answer


def test_rows_that_cannot_be_graded_are_counted_by_reason() -> None:
    rows = [reply("7"), reply("7", "8"), reply(""), reply("E", choices=["10", "20"]), reply("7", "7")]
    settled, left_out = settle(rows, {})
    assert [one.gold for one in settled] == ["7", "7"]
    assert left_out == {SEVERAL_GOLDS: 1, NO_GOLD: 1, NO_SUCH_OPTION: 1}


@pytest.mark.parametrize("text", ["maths", "t=", "t=letters"])
def test_an_unknown_kind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected KIND or TASK=KIND"):
        parse_kinds([text])


def test_a_kind_of_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no such task; the files have t"):
        settle([reply("7")], parse_kinds(["gsm8k=number"]))


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": ["red", "blue"]},
        {"options": "['red', 'blue']"},
        {"choices": {"text": ["red", "blue"], "label": ["A", "B"]}},
        {"options": {"B": "blue", "A": "red"}},
        {"A": "red", "B": "blue", "C": "", "answer": "A"},
    ],
)
def test_options_are_read_in_every_spelling(fields: dict[str, Any]) -> None:
    assert options_of(fields) == ("red", "blue")


@pytest.mark.parametrize(
    "fields", [{}, {"choices": []}, {"options": "[]"}, {"A": "only one"}, {"options": "not a list"}]
)
def test_what_lists_no_options_gives_none(fields: dict[str, Any]) -> None:
    assert options_of(fields) == ()


def test_options_are_read_from_the_last_lettered_list_of_a_prompt() -> None:
    shots = "Which?\nA. one\nB. two\nAnswer: A\n\n"
    assert options_in(f"{shots}Which colour?\n(A) red\n(B) blue\n(C) green\nAnswer with the letter.") == (
        "red", "blue", "green"
    )  # fmt: skip
    assert options_in("A. a single line") == ()
    assert options_in("Is it A or B?") == ()


@pytest.mark.parametrize(
    ("gold", "right"), [("B", "blue"), ("(b)", None), ("blue", "blue"), ("1", "blue"), ("C", None), ("7", None)]
)
def test_a_gold_names_its_option_by_letter_text_or_place(gold: str, right: str | None) -> None:
    assert right_option(gold, ("red", "blue")) == right


def test_a_gold_that_may_mean_two_options_is_asked_for() -> None:
    choices = ("0", "2", "1")
    with pytest.raises(ValueError, match="give --gold-is text or --gold-is index"):
        right_option("1", choices)
    assert right_option("1", choices, "text") == "1"
    assert right_option("1", choices, "index") == "2"
    assert right_option("0", choices) == "0", "text and place agree"


def test_letters_are_told_from_words() -> None:
    assert [letter_in(text) for text in ("B", "(C)", "D.", "Blue", "K", "AB")] == ["B", "C", "D", None, None, None]
