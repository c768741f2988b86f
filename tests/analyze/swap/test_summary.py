"""The last lines of a swap say in which layers answers move, and whether the controls held."""

from pathlib import Path

import pandas as pd
import pytest

from analyze.swap.summary import moving_layers, summary


@pytest.mark.parametrize(
    ("rates", "falls", "expected"),
    [
        ([0.98, 0.04, 0.01], True, [0]),
        ([1.0, 1.0, 0.6, 0.2, 0.0], True, [1, 2, 3]),
        ([0.9, 0.9, 0.9], True, [2]),
        ([0.0, 0.0], True, []),
        ([0.1, 0.8, 0.5, 0.3], False, [1, 2]),
        ([0.0, 0.0], False, []),
    ],
)
def test_answers_move_where_the_share_falls_or_stands_high(
    rates: list[float], falls: bool, expected: list[int]
) -> None:
    assert moving_layers(rates, range(len(rates)), falls=falls) == expected


def write(directory: Path, rates: list[float], *, n: int = 50, num_differs: int = 0) -> Path:
    """Writes the tables of a probe of one set: the rates are those of correctly answered pairs."""
    rows = []
    for subset, metric, values in (
        ("right", "moved_to_source", [*rates, 0.0]),
        ("right", "changed", [1.0] * (len(rates) + 1)),
        ("all", "moved_to_source", [1.0] * (len(rates) + 1)),
    ):
        for layer, rate in enumerate(values):
            row = {"set": "pairs", "task": "counting", "mode": "from", "layer": layer, "metric": metric}
            row |= {"block": "none" if layer == len(rates) else "early", "subset": subset, "n": n}
            rows.append(row | {"rate": rate if n else None, "low": max(rate - 0.1, 0), "high": min(rate + 0.1, 1)})
    pd.DataFrame(rows).to_csv(directory / "rates.csv", index=False)
    control = {"set": "pairs", "task": "counting", "mode": "from", "control": "self-swap", "n": 60}
    control |= {"num_equal": 60 - num_differs, "num_tie": 0, "num_differs": num_differs}
    pd.DataFrame([control]).to_csv(directory / "controls.csv", index=False)
    return directory


def test_the_range_of_layers_stands_with_shares_and_intervals(tmp_path: Path) -> None:
    lines = summary(write(tmp_path, [0.98, 0.04, 0.01]))
    assert " ".join(lines[2].split()) == ("pairs counting from 50 0 98.0 % [88.0, 100.0] at layer 0 1.0 % [0.0, 11.0]")
    assert lines[-1] == "controls: self-swap passed (60 of 60)"


def test_a_failed_control_and_a_model_that_is_never_right_are_said(tmp_path: Path) -> None:
    lines = summary(write(tmp_path, [0.5, 0.5], n=0, num_differs=2))
    assert "no pair is answered correctly" in lines[2]
    assert lines[-1] == "controls: self-swap failed (58 of 60)"
