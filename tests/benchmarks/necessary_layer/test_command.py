"""Is a planted layer told from the others? Its start, and the verdicts on the table of a sweep."""

import pandas as pd
import pytest

from analyze.layers.plan import NECESSITY, SUFFICIENCY
from benchmarks.known_answers.answers import FOUND, WRONG
from benchmarks.necessary_layer.command import PLANTED, judge_layers


def sweep(*, broken: str = "") -> pd.DataFrame:
    """The table of a sweep that finds the planted layer; `broken` names an arm that it gets wrong."""
    rows = []
    for direction, name in ((SUFFICIENCY, "only"), (NECESSITY, "freeze")):
        for layer in range(6):
            arm = f"{name}-llm{layer}"
            share = float((layer == PLANTED) != (arm == broken))
            rows.append(
                {"direction": direction, "arm": arm, "first": layer, "share": share, "share_low": share - 0.1,
                 "share_high": share + 0.1}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_a_sweep_that_finds_the_planted_layer_is_right_in_every_row() -> None:
    answers = judge_layers(sweep())
    assert [answer.verdict for answer in answers] == [FOUND] * 12
    assert [answer.place for answer in answers if answer.truth] == [f"only-llm{PLANTED}", f"freeze-llm{PLANTED}"]


@pytest.mark.parametrize("arm", [f"only-llm{PLANTED}", "only-llm0", f"freeze-llm{PLANTED}", "freeze-llm5"])
def test_a_sweep_that_gets_one_arm_wrong_is_wrong_there(arm: str) -> None:
    assert [answer.place for answer in judge_layers(sweep(broken=arm)) if answer.verdict == WRONG] == [arm]


def test_an_interval_that_reaches_the_other_side_is_wrong() -> None:
    wide = sweep().assign(share_low=-0.5, share_high=1.5)
    assert {answer.verdict for answer in judge_layers(wide)} == {WRONG}
