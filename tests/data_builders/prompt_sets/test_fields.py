"""Selection of prompts by fields."""

import pytest

from data_builders.prompt_sets.fields import select_prompts
from data_builders.prompt_sets.prompts import Prompt

GRANULOCYTES = "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"
"""BloodMNIST's name of a class."""
PROMPTS = [
    Prompt(id=name, ability="vision", question="?", answer="A", answer_kind="option", meta={"class": name})
    for name in ("basophil", GRANULOCYTES, "platelet", "a,b")
]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GRANULOCYTES, [GRANULOCYTES]),
        (f"platelet,{GRANULOCYTES},basophil", ["basophil", GRANULOCYTES, "platelet"]),
        ("platelet,basophil", ["basophil", "platelet"]),
        ("a,b", ["a,b"]),
    ],
)
def test_values_may_contain_commas(values: str, expected: list[str]) -> None:
    assert [prompt.id for prompt in select_prompts(PROMPTS, [f"class={values}"], where="D")] == expected


def test_a_part_of_a_value_is_no_value() -> None:
    with pytest.raises(ValueError, match="no prompt with class 'metamyelocytes and promyelocytes"):
        select_prompts(PROMPTS, ["class=platelet,metamyelocytes and promyelocytes)"], where="D")
