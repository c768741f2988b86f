"""Does the page of the claims begin with the verdicts that its table holds?"""

import pandas as pd

from eval.claims.page import answer, draw_statements, measured_verdict

VERDICTS = {"mid layers carry": "supported", "late layers carry": "contradicted", "vision is unchanged": "not measured"}


def statements() -> pd.DataFrame:
    numbers = {"difference": 0.05, "low": -0.02, "high": 0.12, "p_holm": 0.4}
    numbers |= {"measured_difference": -0.04, "measured_low": -0.07, "measured_high": -0.01, "measured_p_holm": 0.01}
    numbers |= {"measured_scope": "training", "measured_num_seeds": 4}
    table = pd.DataFrame([{"statement": words, "verdict": verdict, **numbers} for words, verdict in VERDICTS.items()])
    table.loc[table["verdict"] == "not measured", [name for name in table if name.startswith("measured_")]] = None
    return table


CLAIMS = pd.DataFrame({"exceeds_noise": [True, False, False]})


def test_measured_statements_are_counted_and_decided_ones_named_with_their_interval() -> None:
    assert answer(statements(), CLAIMS, measured=True) == (
        "Of 3 statements, judged by the measurements: 1 supported, 1 contradicted, 1 not measured. "
        "Supported: “mid layers carry” (−4.0 points [−7.0, −1.0], over 4 training seeds). "
        "Contradicted: “late layers carry” (−4.0 points [−7.0, −1.0], over 4 training seeds)."
    )


def test_a_statement_measured_on_one_run_is_about_this_run() -> None:
    said = answer(statements().assign(measured_scope="checkpoints"), CLAIMS, measured=True)
    assert "“mid layers carry” (−4.0 points [−7.0, −1.0], in this run)" in said


def test_a_statement_that_is_not_significant_names_the_correction() -> None:
    row = {"measured_p_holm": 0.06, "measured_low": 0.01, "measured_high": 0.2, "measured_num_tests": 27}
    assert measured_verdict(row) == "not significant after correction for 27 tests"
    assert measured_verdict({**row, "measured_p_holm": float("nan")}) == ""


def test_published_statements_are_judged_by_their_own_percentages() -> None:
    said = answer(statements(), CLAIMS, measured=False)
    assert said.startswith("1 of 3 published differences is significant. Of 3 statements, judged by the paper’s own")
    assert "“mid layers carry” (+5.0 points [−2.0, +12.0])" in said


def test_what_was_not_measured_has_no_mark_of_its_own() -> None:
    drawing = draw_statements(statements(), measured=True)
    assert drawing.count("<circle") == 3 + 2 and "vision is unchanged" in drawing
    assert draw_statements(statements(), measured=False).count("<circle") == 3
