"""Does the one-line answer of a necessity study say what its table can decide, and no more?"""

from pathlib import Path
from typing import Any

import pandas as pd

from analyze.report.kept import answer, beside_full, gain_rows, proof_sentence
from analyze.report.study import NecessityStudy

NOTHING = float("nan")


def study(*rows: dict[str, Any]) -> NecessityStudy:
    """A study of which only the pooled comparison and two scores are there."""
    same = {"metric": "accuracy", "against": "sft", "seed": "pooled", "n": 500, "p_holm": 0.01, "detectable": 0.048}
    same |= {"scope": "training", "num_seeds": 4, "num_seeds_against": 1, "num_tests": 9, "equivalent_within": 0.07}
    gains = dict.fromkeys(("gain_kept", "gain_kept_low", "gain_kept_high"), NOTHING)
    scores = [
        {"model": model, "seed": "", "task": "test", "ability": "vision", "accuracy": share, "n": 500, "mean_tokens": 9}
        for model, share in (("sft", 0.5), ("full", 0.7))
    ]
    table = pd.DataFrame([{"ability": "vision", **same, **gains, **row} for row in rows])
    return NecessityStudy(Path(), {}, pd.DataFrame(scores), table, pd.DataFrame(), [])


FULL = {"arm": "full", "difference": 0.2, "low": 0.15, "high": 0.25, "gain_kept": 1.0}
GAIN = "the gain in accuracy on vision (full − sft: +20.0 points [+15.0, +25.0], n = 500, 4 training seeds)"


def arm(name: str, kept: float, low: float, high: float) -> dict[str, Any]:
    gains = {"gain_kept": kept, "gain_kept_low": low, "gain_kept_high": high}
    return {"arm": name, "difference": 0.2 * kept, "low": 0.1, "high": 0.3, **gains}


def test_of_many_arms_the_extremes_are_named() -> None:
    frozen = [arm(f"freeze-llm{layer}", 1 + layer / 100, 0.9, 1.2) for layer in range(12)]
    alone = [arm(f"only-llm{layer}", 0.3 + layer / 100, 0.1, 0.6) for layer in range(12)]
    said = answer(study(FULL, *alone, *frozen))
    assert said == (
        f"No, not for most of it: each of 12 arms (freeze-llm0, freeze-llm1, …, freeze-llm11) keeps more than half of "
        f"{GAIN}. Kept, with 95 % intervals: 12 frozen blocks from 100 % [90, 120] (freeze-llm0) to 111 % [90, 120] "
        "(freeze-llm11); 12 controls from 30 % [10, 60] (only-llm0) to 41 % [10, 60] (only-llm11). The figure below "
        "shows all."
    )


def test_arms_that_keep_most_of_the_gain_show_that_no_block_was_necessary_for_it() -> None:
    said = answer(study(FULL, arm("freeze-early", 1.19, 1.08, 1.33), arm("freeze-mid", 1.05, 0.95, 1.18)))
    assert said == (
        f"No, not for most of it: each of freeze-early and freeze-mid keeps more than half of {GAIN}. Kept, with 95 % "
        "intervals: freeze-early 119 % [108, 133]; freeze-mid 105 % [95, 118]."
    )


def test_an_arm_that_keeps_most_but_not_all_is_named() -> None:
    said = answer(study(FULL, arm("freeze-early", 1, 0.9, 1.1), arm("freeze-mid", 0.8, 0.7, 0.9)))
    assert said.startswith("In part: each of freeze-early and freeze-mid keeps more than half of")
    assert "but freeze-mid less than all of it. Kept, with 95 % intervals: freeze-early 100 % [90, 110]" in said


def test_a_block_without_which_most_of_the_gain_is_lost_was_necessary() -> None:
    said = answer(study(FULL, arm("freeze-mid", 0.2, -0.05, 0.4), arm("freeze-late", 0.6, 0.3, 0.9)))
    assert said == (
        f"Yes: freeze-mid keeps less than half of {GAIN}. Kept, with 95 % intervals: freeze-mid 20 % [−5, 40]; "
        "freeze-late 60 % [30, 90]."
    )


def test_a_wide_interval_decides_nothing() -> None:
    said = answer(study(FULL, arm("freeze-mid", 0.7, 0.2, 1.2)))
    assert said.startswith(f"Undecided: the intervals of freeze-mid allow more and less than half of {GAIN}.")


def test_controls_are_named_and_do_not_judge_a_block() -> None:
    said = answer(study(FULL, arm("freeze-mid", 1, 0.9, 1.1), arm("only-mid", 0.1, 0, 0.2)))
    assert said.startswith("No, not for most of it: freeze-mid keeps more than half of") and said.endswith(
        "only-mid 10 % [0, 20]."
    )


def test_without_a_certain_gain_there_is_nothing_to_keep() -> None:
    full = {"arm": "full", "difference": 0.017, "low": -0.018, "high": 0.051, "p_holm": 1}
    said = answer(study(full, arm("freeze-mid", NOTHING, NOTHING, NOTHING)))
    assert said.startswith(
        "Undecided: full has no significant gain over sft on any ability (vision +1.7 points [−1.8, +5.1]"
    )


def test_a_gain_that_does_not_survive_correction_is_no_gain_to_keep() -> None:
    said = answer(study({**FULL, "p_holm": 0.06}, arm("freeze-mid", 1, 0.9, 1.1)))
    assert said.startswith("Undecided: full has no significant gain over sft on any ability (vision +20.0 points")
    assert "not significant after correction for 9 tests" in said


def test_with_one_training_run_the_answer_is_about_this_run() -> None:
    once = {"scope": "checkpoints", "num_seeds": 1}
    said = answer(study({**FULL, **once}, {**arm("freeze-mid", 0.1, 0.0, 0.3), **once}))
    assert said.startswith("Yes, in this run: freeze-mid keeps less than half of the gain") and "seeds" not in said


def test_the_gain_by_the_papers_definition_is_given_too_where_it_differs() -> None:
    defined = {"arm": "full", "metric": "ability", "difference": 0.016, "low": -0.02, "high": 0.05, "p_holm": 0.9}
    said = answer(study(FULL, arm("freeze-mid", 1, 0.9, 1.1), defined))
    assert said.endswith(
        "By the paper’s definition of vision, full − sft is +1.6 points [−2.0, +5.0], not significant."
    )
    assert "definition" not in answer(study(FULL, arm("freeze-mid", 1, 0.9, 1.1), {**defined, "difference": 0.2}))


def test_without_other_arms_or_without_full_nothing_is_claimed() -> None:
    assert answer(study(FULL)).startswith("Undecided: no arm with frozen layers was compared")
    assert answer(study(arm("freeze-mid", NOTHING, NOTHING, NOTHING))).startswith("Not answered: there is no")


def test_the_table_of_gains_says_gain_loss_or_neither() -> None:
    rows = [{**FULL, "difference": value, "p_holm": p} for value, p in ((0.2, 0.01), (-0.04, 0.02), (0.2, 0.06))]
    unsure = "not significant after correction for 9 tests"
    assert [gain_rows(study(row))[0]["verdict"] for row in rows] == ["gain", "loss", unsure]


def test_arms_are_compared_with_full_by_significance() -> None:
    against = {"against": "full", "difference": 0.054, "low": 0.025, "high": 0.084, "p_holm": 0.019}
    found = beside_full(study(FULL, {**against, "arm": "freeze-early"}, {**against, "arm": "base"}))
    assert found == [
        "vision (n = 500, over 4 training seeds): freeze-early − full is +5.4 points [+2.5, +8.4], corrected p = 0.019."
    ]
    nothing = beside_full(study(FULL, {**against, "arm": "freeze-early", "p_holm": 0.06}))
    assert nothing == [
        "vision (n = 500, over 4 training seeds): no significant difference from full was found (a difference of 4.8 "
        "points would be found four times in five); freeze-early: undecided whether equal within 5 points (shown: "
        "within 7.0)."
    ]


def test_an_arm_equals_full_only_by_a_test_of_equality() -> None:
    against = {"against": "full", "difference": 0.01, "low": -0.02, "high": 0.04, "p_holm": 0.9}
    rows = [{**against, "arm": name, "equivalent_within": within} for name, within in (("a", 0.03), ("b", 0.07))]
    (said,) = beside_full(study(FULL, *rows))
    assert "; a: equal within 5 points; b: undecided whether equal within 5 points (shown: within 7.0)." in said


def test_a_breach_of_freezing_is_the_first_thing_said() -> None:
    rows = [{"frozen": 12, "breaches": 0}, {"frozen": 12, "breaches": 2}]
    assert proof_sentence(rows).startswith("BREACH: 2 of the frozen tensors of 2 training runs differ")
    assert proof_sentence(rows[:1]).startswith("All 12 frozen tensors of 1 training run have the same bits")
    assert proof_sentence([{"frozen": 0, "breaches": 0}]).startswith("No tensor was frozen")
