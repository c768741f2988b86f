"""Do the sentences of a comparison say what its rows say, with signs, intervals and n, and count many models?"""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eval.compare.scope import about, corrections, equality, in_this_run, read_comparison
from eval.compare.sentences import answers, could_find, draw_differences, with_labels

ROW = {
    "task": "test", "ability": "vision", "metric": "accuracy", "arm": "full", "against": "sft", "seed": "pooled",
    "n": 500, "difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.001, "p_holm": 0.01, "scope": "training",
    "num_seeds": 2, "num_seeds_against": 1, "num_tests": 24, "detectable": 0.08, "low_holm": 0.01,
    "high_holm": 0.19,
}  # fmt: skip
SAME: dict[str, Any] = {"difference": 0.01, "low": -0.03, "high": 0.05, "p_holm": 0.6}


def said(*changes: dict[str, Any]) -> list[str]:
    return answers(with_labels(pd.DataFrame([{**ROW, **change} for change in changes])), "sft")


def test_better_worse_and_undecided_abilities_are_told_apart() -> None:
    worse = {"ability": "reasoning", "difference": -0.04, "low": -0.066, "high": -0.016, "n": 400}
    assert said({}, worse, {"ability": "ocr", **SAME}) == [
        "full − sft over 2 training seeds: significantly better on vision (+10.0 points [+5.0, +15.0]); significantly "
        "worse on reasoning (−4.0 points [−6.6, −1.6]); no significant difference on ocr (+1.0 points [−3.0, "
        "+5.0]); n = 400 to 500."
    ]


def test_without_several_seeds_a_sentence_is_about_this_run_only() -> None:
    checkpoints = {"scope": "checkpoints", "num_seeds": 1}
    assert said(checkpoints)[0].startswith("full − sft in this run: significantly better on vision")
    assert said({"num_seeds": 3, "num_seeds_against": 2})[0].startswith("full − sft over 3 and 2 training seeds: ")


def test_an_interval_without_zero_that_is_not_significant_names_the_correction() -> None:
    found = said({"p_holm": 0.06}, {"ability": "ocr", "p_holm": 0.6, "low": -0.01})
    assert found == [
        "full − sft over 2 training seeds: no significant difference on vision (+10.0 points [+5.0, +15.0], not "
        "significant after correction for 24 tests) and ocr (+10.0 points [−1.0, +15.0]); n = 500."
    ]


def test_accuracy_and_the_papers_definition_are_both_given_where_they_differ() -> None:
    defined = {"metric": "ability", **SAME}
    by_definition = "By the paper’s definition of the abilities: +1.0 points [−3.0, +5.0] on vision (not significant)."
    assert "better on vision (+10.0 points" in said({}, defined)[0] and said({}, defined)[0].endswith(by_definition)
    assert "on vision (significant)." in said({}, {**defined, "p_holm": 0.01})[0]
    assert "definition" not in said({}, {"metric": "ability"})[0]


def test_many_models_are_counted_by_what_their_rows_are_about() -> None:
    arms = [{"arm": f"arm{number}", **({} if number < 2 else SAME)} for number in range(4)]
    counted = "2 are significantly better and 0 worse."
    assert said(*arms) == [f"vision (n = 500), compared with sft: of 4 models (over 2 training seeds) {counted}"]
    arms[3] |= {"scope": "checkpoints"}
    both = "of 4 models (3 over 2 training seeds, 1 in this run)"
    assert said(*arms) == [f"vision (n = 500), compared with sft: {both} {counted}"]


def test_what_could_have_been_found_is_said_with_seeds_and_prompts() -> None:
    rows = [ROW, {**ROW, "ability": "ocr", "detectable": 0.12}, {**ROW, "arm": "base", "scope": "checkpoints"}]
    rows[2]["detectable"] = 0.03
    assert could_find(pd.DataFrame(rows), "sft") == (
        "With 2 training seeds a model and 500 prompts an ability, a true difference from sft of at least 8.0 to 12.0 "
        "points (it depends on model and ability) is found four times in five, before correction for the number of "
        "tests."
    )
    assert could_find(pd.DataFrame(rows[2:]), "sft").startswith(
        "With one run a model and 500 prompts an ability, a true difference of these checkpoints from sft of at least "
        "3.0 points is found"
    )


def test_equality_needs_its_own_test() -> None:
    assert equality({"equivalent_within": 0.049}) == "equal within 5 points"
    assert equality({"equivalent_within": 0.072}) == "undecided whether equal within 5 points (shown: within 7.2)"
    assert equality({"equivalent_within": 0.0503}) == "undecided whether equal within 5 points (shown: within 5.1)"


def test_a_section_says_what_its_statements_are_about() -> None:
    assert about(["training", "training"]) == "About training"
    assert about(["checkpoints", float("nan")]) == "About these checkpoints"
    assert about(["training", "checkpoints"]) == "About training if seeds are named, otherwise about these checkpoints"
    assert in_this_run("Undecided: no layer stands out.") == "Undecided, in this run: no layer stands out."
    assert in_this_run("Leaving out layer 0 costs most.") == "In this run, leaving out layer 0 costs most."


def test_a_table_of_an_older_version_is_refused(tmp_path: Path) -> None:
    pd.DataFrame([ROW]).drop(columns="scope").to_csv(tmp_path / "comparison.csv", index=False)
    with pytest.raises(ValueError, match=r"has no column 'scope': an older eval.compare wrote it; run that command"):
        read_comparison(tmp_path / "comparison.csv")


def test_tasks_are_kept_apart_in_sentences_and_figures() -> None:
    rows = with_labels(pd.DataFrame([ROW, {**ROW, "task": "mathvista", **SAME}]))
    assert "better on vision (test) (+10.0" in answers(rows, "sft")[0]
    drawing = draw_differences(rows, "sft")
    assert ">vision (test)<" in drawing and ">vision (mathvista)<" in drawing
    assert drawing.count("<circle") == 2 and drawing.count('fill="#fff"') == 1
    assert drawing.count('stroke-width="0.8"') == 2, "the corrected intervals"


def test_the_number_of_tests_is_said_for_each_model_that_is_compared_with() -> None:
    rows = pd.DataFrame({"against": ["sft", "sft", "full"], "num_tests": [15, 15, 12]})
    assert corrections(rows) == "15 tests against sft and 12 against full"
    assert corrections(rows[rows["against"] == "full"]) == "12 tests"
    assert corrections(rows.assign(num_tests=1).iloc[:1]) == "1 test"
