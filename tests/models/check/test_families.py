"""Every family's record, and every instrument on it: the checks of `models.check`, on the fixtures of all families."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from models.check.command import GUIDE, check_files, check_small
from models.check.outcome import ABSENT, FAILS, HOLDS
from models.families import FAMILIES, Family
from tests.families_page import COLUMNS, NO, PAGE, UNKNOWN, YES, expect, family_checkpoint, read_page
from tracking.command import REPOSITORY_ROOT

COLUMN_OF = {
    "spellings": "names", "freezing": "freeze", "LoRA": "LoRA", "plan": "plan", "sharing": "shared prompts",
    "splice": "splice", "deltas": "deltas", "skip": "skip", "attention": "attention", "swap": "swap", "batch": "eval",
}  # fmt: skip
"""Check -> its column in docs/families.md."""


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_check_holds_as_the_page_says(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    directory = request.getfixturevalue(family_checkpoint(family))
    outcomes, layout, checkpoint = check_files(directory)
    assert layout is not None and layout.family is FAMILIES[family]
    outcomes += check_small(directory, tmp_path / "work", checkpoint)
    failed = [str(outcome) for outcome in outcomes if outcome.state == FAILS]
    assert not failed
    expect(
        family,
        {
            COLUMN_OF[outcome.check]: (NO, outcome.detail) if outcome.state == ABSENT else (YES, outcome.restriction)
            for outcome in outcomes
            if outcome.check in COLUMN_OF
        },
    )


@pytest.mark.slow
def test_checks_hold_for_an_untied_qwen3_too(qwen3_untied_checkpoint: Path, tmp_path: Path) -> None:
    """The family's fixture is tied."""
    outcomes, layout, checkpoint = check_files(qwen3_untied_checkpoint)
    assert layout is not None and not layout.tied
    outcomes += check_small(qwen3_untied_checkpoint, tmp_path / "work", checkpoint)
    assert [str(outcome) for outcome in outcomes if outcome.state == FAILS] == []


def test_files_with_tensors_of_no_model_and_of_two_dtypes_fit_their_record(mixed_checkpoint: Path) -> None:
    outcomes, layout, checkpoint = check_files(mixed_checkpoint)
    found = {outcome.check: outcome for outcome in outcomes}
    assert {outcome.state for outcome in outcomes} == {HOLDS}
    assert layout is not None and checkpoint is not None and "mtp.fc.weight" in layout.parameters
    assert "in bfloat16" in found["dtypes"].detail and "in float32" in found["dtypes"].detail


def test_the_page_has_a_row_for_every_record_and_no_open_cell() -> None:
    page = read_page()
    assert PAGE.read_text(encoding="utf-8") == page.render()
    assert list(page.cells) == list(FAMILIES)
    assert not [(family, column) for family in FAMILIES for column in COLUMNS if page.cells[family][column] == UNKNOWN]
    open_reasons = [
        (family, column)
        for family in FAMILIES
        for column in COLUMNS
        if page.cells[family][column] == NO and (family, column) not in page.reasons
    ]
    assert open_reasons == []


def test_no_code_asks_for_the_name_of_a_family() -> None:
    """What differs between families is a field of their records."""
    asked = re.compile(r"model_type[\"'\])]*\s*[!=]=")
    found = [
        f"{path.relative_to(REPOSITORY_ROOT)}: {line.strip()}"
        for package in ("models", "data_builders", "merge", "eval", "analyze", "train")
        for path in sorted((REPOSITORY_ROOT / package).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if asked.search(line)
    ]
    assert found == []


def test_the_guide_names_every_field_of_a_record() -> None:
    guide = (REPOSITORY_ROOT / GUIDE).read_text(encoding="utf-8")
    assert [field.name for field in fields(Family) if f"`{field.name}`" not in guide] == []
