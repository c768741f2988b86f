"""Where the answer of a reply is found: each rule, their order, and what of the marked text is the answer."""

import time

import pytest

from eval.grading import KINDS, grade
from eval.grading.answers import RULES, find_answer, is_well_formed, last_boxed


@pytest.mark.parametrize(
    ("response", "kind", "found"),
    [
        ("<think>2+3</think><answer> 5 </answer>", "number", ("5", "answer tag")),
        ("<answer>4</answer> no, <answer>5</answer>", "number", ("5", "answer tag")),
        (r"<answer>so \boxed{5}</answer>", "number", ("5", "answer tag")),
        (r"\boxed{4}, or rather \boxed{5}. The answer is 6.", "number", ("5", "boxed")),
        (r"\boxed{\frac{1}{2}}", "math", (r"\frac{1}{2}", "boxed")),
        ("The answer is 3.5.", "number", ("3.5", "the answer is")),
        ("The answer is: red\nSo it is.", "text", ("red", "the answer is")),
        ("The answer is 4. No: the answer is 5. That is all.", "number", ("5", "the answer is")),
        ("2 + 3 = 5\n#### 5", "number", ("5", "####")),
        ("First 3 circles. Then 4 more make 7.", "number", ("7", "last sentence")),
        ("There are 3 of them\nThat makes 1,250.75", "number", ("1,250.75", "last sentence")),
        ("top left", "text", ("top left", "last sentence")),
    ],
)
def test_an_answer_is_found_by_the_first_rule_that_applies(response: str, kind: str, found: tuple[str, str]) -> None:
    assert find_answer(response, kind) == found


def test_each_rule_yields_to_the_ones_before_it() -> None:
    parts = ["1", "#### 2", "The answer is 3\n", r"\boxed{4}", "<answer>5</answer>"]
    for count, rule in enumerate(("last sentence", "####", "the answer is", "boxed", "answer tag"), start=1):
        found = find_answer("\n".join(reversed(parts[:count])), "number")
        assert found == (str(count), rule)


def test_boxes_are_read_with_balanced_braces() -> None:
    assert last_boxed(r"\boxed{a{b}{c{d}}} e}") == "a{b}{c{d}}"
    assert last_boxed(r"\boxed{a{b}") is None
    assert last_boxed("nothing") is None
    assert last_boxed(r"\boxed{}") == ""
    assert last_boxed(r"\boxed{a \\} b}") == r"a \\"
    many = "{a}" * 30
    assert last_boxed(rf"\boxed{{{many}}}}}") == many
    assert last_boxed(rf"\boxed{{{many}") is None


@pytest.mark.parametrize(
    ("response", "well_formed"),
    [
        ("<think>2+3=5</think><answer>5</answer>", True),
        ("<think>a\nb</think>\n<answer>5</answer>\n", True),
        ("<think></think><answer>5</answer>", True),
        ("<think>x<5</think><answer>5</answer>", True),
        ("<answer>5</answer>", False),
        ("<think>2</think>5", False),
        ("<think>2</think><answer></answer>", False),
        ("<answer>5</answer><think>2</think>", False),
        ("so <think>2</think><answer>5</answer>", False),
        ("<think>2</think><answer>5</answer> done", False),
        ("<think>2</think> so <answer>5</answer>", False),
        ("<think>2</think><answer>5</answer><answer>6</answer>", False),
        ("<think>2</think><think>3</think><answer>5</answer>", False),
        ("<think>2<think>3</think></think><answer>5</answer>", False),
        ("<think><answer>5</answer></think><answer>5</answer>", False),
        ("<think>2</think><answer><think>3</think>5</answer>", False),
        ("<think>2</think><answer>5", False),
        ("<THINK>2</THINK><ANSWER>5</ANSWER>", False),
        ("", False),
    ],
)
def test_well_formed_is_one_thought_then_one_answer_and_nothing_else(response: str, well_formed: bool) -> None:
    assert is_well_formed(response) is well_formed


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("The answer is 7 circles.", "7"),
        ("The answer is -3.", "-3"),
        ("Take seven, so 7-4", "4"),
        ("That leaves -4", "-4"),
        ("(2+1)-4", "4"),
    ],
)
def test_a_number_is_found_among_words_and_a_minus_between_numbers_is_no_sign(response: str, extracted: str) -> None:
    assert grade(response, "0", "number").extracted == extracted


@pytest.mark.parametrize(
    ("response", "kind", "found"),
    [
        ("<think>it may be 5, the answer is 5</think> It is 6.", "number", ("6", "last sentence")),
        ("<think>the answer is 5</think>", "number", ("5", "the answer is")),
        ("<think>\\boxed{5}</think>I do not know.", "number", None),
        ("Q: How many?\nA: 31 apples", "number", ("31", "A:")),
        ("#### Step 3\n2 + 2 = 4", "number", ("4", "last sentence")),
        ("#### 18\n\nQuestion: what is next", "number", ("18", "####")),
        ("A: 12\nB: 14\nSo it is (B).", "choice", ("(B)", "last sentence")),
        ("The answer is B. It is 14.", "choice", ("B. It is 14", "the answer is")),
        ("**Answer:** 12", "number", ("12", "the answer is")),
        ("The correct option is (C).", "choice", ("(C)", "the answer is")),
        ("答案是 B", "choice", ("B", "the answer is")),
        ("The answer is $x = 5$. Done.", "math", ("x = 5", "the answer is")),
        ("The answer is\n\\[\n\\frac{1}{2}\n\\]", "math", (r"\frac{1}{2}", "the answer is")),
        (r"So $a = 1$ and $b = \frac{1}{2}$", "math", (r"b = \frac{1}{2}", "last sentence")),
        ("The answer is 5 or 6.", "number", ("5 or 6", "the answer is")),
        ("She pays 2 + 3 = 5 dollars. The answer is 2 + 3 = 5 dollars.", "number", ("5 dollars", "the answer is")),
        (
            "Yes, since it is taller. It reaches 30",
            "yes_no",
            ("Yes, since it is taller", "last sentence"),
        ),
        ("<answer>The answer is 12, because 3 * 4 = 12.</answer>", "number", ("12", "answer tag")),
        ("The cat is at [1, 2, 3, 4].", "box", ("The cat is at [1, 2, 3, 4].", "last sentence")),
        ("The years are [2014, 2016]", "list", ("[2014, 2016]", "last sentence")),
    ],
)
def test_what_a_rule_marks_is_narrowed_to_the_answer(response: str, kind: str, found: tuple[str, str] | None) -> None:
    assert find_answer(response, kind, ("12", "14", "16") if kind == "choice" else ()) == found


def test_boxes_with_escaped_braces_are_read_to_their_end() -> None:
    assert last_boxed(r"\boxed{\{1, 2\}} and }") == r"\{1, 2\}"
    assert last_boxed(r"\boxed{\text{a \} b}}") == r"\text{a \} b}"


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.cases_slow
def test_the_time_to_find_an_answer_grows_with_the_length_alone(kind: str) -> None:
    pieces = (
        "answer to the ",
        "not B ",
        "1,",
        "$",
        "\\boxed{",
        "####",
        "A: ",
        "yes no ",
        "( ",
        "10 x ",
        "**",
        "<answer>",
    )
    for piece in pieces:
        begin = time.monotonic()
        find_answer(piece * (100_000 // len(piece)), kind, ("10", "12"))
        assert time.monotonic() - begin < 3, (piece, kind)


def test_every_rule_has_a_name_and_a_place_in_the_documentation() -> None:
    import eval.grading.answers

    listed = [
        line.split("  ")[2].strip()
        for line in (eval.grading.answers.__doc__ or "").splitlines()
        if line.startswith("    ")
    ]
    assert listed == list(RULES)
