"""Lists, sets, tuples and ratios: how answers are split, and what is decided although a part is not."""

import itertools
import random

import pytest

from eval.grading.quantities import parse_quantity
from eval.grading.structure import cleaned, equal_structures, parts_of


def same_number(answer: str, gold: str) -> bool | None:
    """Compares numbers; None for anything else."""
    first, second = parse_quantity(answer), parse_quantity(gold)
    return None if first is None or second is None else first.value == second.value


@pytest.mark.parametrize(
    ("text", "sort", "items"),
    [
        (r"x=-3 \text{ or } x=2", "list", ["-3", "2"]),
        ("1,000, 2,000", "list", ["1,000", "2,000"]),
        ("3,5,7", "list", ["3", "5", "7"]),
        ("1,234", "value", []),
        ("(100,200)", "tuple", ["100", "200"]),
        (r"\{1, (2,3)\}", "set", ["1", "(2,3)"]),
        (r"[1, \frac{(2,3)}{4})", "tuple", ["1", r"\frac{(2,3)}{4}"]),
        (r"\{x \mid x > 1, x < 3\}", "list", ["x > 1", "x < 3"]),
        (r"\{x \mid x \text{ is even}\}", "value", []),
        (r"1\pm\sqrt{2}", "list", [r"1+\sqrt{2}", r"1-\sqrt{2}"]),
        (r"\pm 3", "list", ["3", "- 3"]),
        ("3:4:5", "ratio", ["3", "4", "5"]),
        (r"\begin{cases} 1, & x > 0 \\ 0, & x < 0 \end{cases}", "value", []),
        ("1,,2", "value", []),
        ("(1,2", "value", []),
    ],
)
def test_an_answer_is_split_into_its_parts(text: str, sort: str, items: list[str]) -> None:
    parts = parts_of(cleaned(text))
    assert (parts.sort, [item.text for item in parts.items]) == (sort, items)


def test_lists_of_numbers_are_equal_as_sets_and_tuples_as_sequences() -> None:
    rng = random.Random(0)
    for _ in range(300):
        first, second = ([rng.randrange(4) for _ in range(rng.randrange(2, 5))] for _ in range(2))
        texts = [", ".join(map(str, numbers)) for numbers in (first, second)]
        assert equal_structures(*texts, same_number) is (set(first) == set(second))
        assert equal_structures(*(f"({text})" for text in texts), same_number) is (first == second)
        assert equal_structures(f"\\{{{texts[0]}\\}}", f"({texts[1]})", same_number) is False


def test_ratios_are_equal_up_to_a_factor() -> None:
    rng = random.Random(1)
    for _ in range(200):
        first, second = ([rng.randrange(1, 5) for _ in range(3)] for _ in range(2))
        expected = all(first[i] * second[j] == first[j] * second[i] for i, j in itertools.combinations(range(3), 2))
        assert equal_structures(":".join(map(str, first)), ":".join(map(str, second)), same_number) is expected


@pytest.mark.parametrize(
    ("answer", "gold", "decided"),
    [
        ("(x, 4)", "(y, 4)", None),
        ("(x, 4)", "(y, 5)", False),
        ("1, x", "1, 2", None),
        ("1, 3", "1, x", None),
        ("1, 3", "1, 2, x", False),
        ("x=1, y=2", "y=2, x=1", True),
        ("x=1, y=2", "x=2, y=1", False),
        ("x=1, y=2", "(1, 2)", True),
        ("x=2, y=1", "(1, 2)", False),
        ("y=2, x=1", "(1, 2)", True),
        ("(1, 2)", "y=2, x=1", True),
        ("x=2, y=1", "1, 2", None),
        ("x_1=1, x_2=2", "x_1=2, x_2=1", None),
        ("x_1=1, x_2=2", "2, 1", True),
        ("9:30", "3:10", None),
        ("9:30", "3:20", False),
    ],
)
def test_what_the_parts_leave_open_is_undecided(answer: str, gold: str, decided: bool | None) -> None:
    assert equal_structures(answer, gold, same_number) is decided
