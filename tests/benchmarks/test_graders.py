"""The page on graders: it shows what the packages said, what this grader says today, and who errs."""

from pathlib import Path

import pytest

from benchmarks.graders.command import GUIDE, ours, page, read_cases, read_results, render, write_results
from tracking.command import REPOSITORY_ROOT

CASES = read_cases()


def test_there_are_forty_replies_and_none_twice() -> None:
    assert len(CASES) == 40
    assert len({(case["reply"], case["gold"]) for case in CASES}) == 40


def test_the_page_is_what_the_graders_say_today() -> None:
    """If this fails after a change of the grader: python -m benchmarks.graders, and read the diff."""
    assert (REPOSITORY_ROOT / GUIDE).read_text(encoding="utf-8") == page(CASES, read_results(CASES))


def test_verdicts_of_other_packages_are_not_shown_for_other_cases(tmp_path: Path) -> None:
    write_results(read_results(CASES), CASES, tmp_path / "graders.json")
    assert read_results(CASES, tmp_path / "graders.json") == read_results(CASES)
    with pytest.raises(ValueError, match="verdicts on other cases"):
        read_results([*CASES[1:], CASES[0]], tmp_path / "graders.json")


def test_wrong_verdicts_are_bold_and_counted_with_their_effect() -> None:
    cases = [
        {"reply": "B", "gold": "B", "kind": "choice", "right": True, "about": "a letter"},
        {"reply": "It is 5.", "gold": "6", "kind": "number", "right": False, "about": "a wrong number"},
    ]
    text = render(cases, {"this suite": [True, False], "trl": [False, True], "lmms-eval": [True, None]}, {"trl": "1"})
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| <code>B</code> | <code>B</code> | right | right | **wrong** | right | a letter | give no reward" in text
    assert "| wrong | wrong | **right** | – | a wrong number | reward a wrong reply |" in text
    assert "| TRL `accuracy_reward` | 2 | 0 | 1 | 1 |" in rows
    assert "| lmms-eval | 1 | 1 | 0 | 0 |" in rows


def test_right_letters_are_judged_with_their_options() -> None:
    assert ours([case for case in CASES if case["about"] in ("the letter alone", "the option's text")]) == [True, True]
