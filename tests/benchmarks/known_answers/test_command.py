"""The calibration as a command: everything is found, and an instrument that is broken on purpose fails it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.known_answers import necessity
from benchmarks.known_answers.command import main
from benchmarks.known_answers.instruments import INSTRUMENTS
from tracking.run import is_finished, read_run
from tracking.tables import read_table

SIZES = ["--num-pairs", "8", "--num-prompts", "24"]

QUICK = [name for name in INSTRUMENTS if name != necessity.NAME]
"""The positive control of freezing trains for minutes; tests/benchmarks/necessary_block has its parts."""


def calibrate(output_dir: Path, instruments: Sequence[str]) -> None:
    main(["--output-dir", str(output_dir), "--instruments", *instruments, *SIZES])


def test_an_unknown_instrument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"instrument 'skips' is unknown; did you mean 'skip'\? \(expected swap, skip"):
        calibrate(tmp_path / "out", ["skips"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_planted_truth_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(tmp_path / "out", QUICK)
    table = read_table(tmp_path / "out" / "answers.csv")
    assert set(table["verdict"]) == {"found"}
    assert list(dict.fromkeys(table["instrument"])) == QUICK
    page = (tmp_path / "out" / "calibration.html").read_text()
    assert f"{len(table)} of {len(table)} planted truths found." in page
    assert page.count('src="data:image/png;base64,') == len(QUICK)
    assert str(tmp_path) not in page
    before = read_run(tmp_path / "out")
    capsys.readouterr()
    calibrate(tmp_path / "out", QUICK)
    assert read_run(tmp_path / "out") == before
    assert f"{len(table)} of {len(table)} planted truths found." in capsys.readouterr().out


def swap_one_layer_too_late(patch: pytest.MonkeyPatch) -> None:
    from analyze.swap.plan import MODES

    patch.setitem(MODES, "from", lambda layer, num_layers, window: range(min(layer + 1, num_layers), num_layers))


def skip_one_layer_too_late(patch: pytest.MonkeyPatch) -> None:
    from analyze.skip.plan import Configuration

    right = Configuration.plan
    patch.setattr(Configuration, "plan", lambda self, num_layers: np.roll(right(self, num_layers), 1, axis=0))


def one_vision_token_counted_as_template(patch: pytest.MonkeyPatch) -> None:
    from analyze.attention.mass import KEY_SEGMENTS, AttentionMass

    right: Callable[..., None] = AttentionMass.__init__

    def wrong(self: AttentionMass, segments: Any, *arguments: Any, **options: Any) -> None:
        is_vision = segments == KEY_SEGMENTS.index("vision")
        is_first = is_vision & (is_vision.cumsum(1) == 1)
        right(self, segments.masked_fill(is_first, KEY_SEGMENTS.index("template")), *arguments, **options)

    patch.setattr(AttentionMass, "__init__", wrong)


def steps_of_two_ulps_at_the_floor(patch: pytest.MonkeyPatch) -> None:
    from analyze.deltas import floor

    patch.setattr(floor, "FLOOR_STEP_ULPS", 3)


def one_layer_from_the_other_donor(patch: pytest.MonkeyPatch) -> None:
    from merge import all as merging

    right: Callable[..., Any] = merging.make_plan

    def wrong(*arguments: Any, **options: Any) -> Any:
        plan = right(*arguments, **options)
        owners = {
            name: ({"in": "rl", "rl": "in"}[owner] if ".layers.3." in name and "visual" not in name else owner)
            for name, owner in plan.owners.items()
        }
        assert owners != plan.owners
        return replace(plan, owners=owners)

    patch.setattr(merging, "make_plan", wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instrument", "break_it", "message"),
    [
        (
            "swap",
            swap_one_layer_too_late,
            "picture read in layer 0: answers moved, mode from, layer 0: planted 1, found 0",
        ),
        ("skip", skip_one_layer_too_late, "accuracy, llm:0: planted 1, found 0"),
        (
            "attention",
            one_vision_token_counted_as_template,
            "uniform attention, teacher-forced replies: mass on the picture",
        ),
        ("deltas", steps_of_two_ulps_at_the_floor, "judged above floor, layer 1, gate: planted 1, found 0"),
        ("splices", one_layer_from_the_other_donor, "gain in mid: gain in accuracy, in-rl-in: planted"),
    ],
    ids=("swap", "skip", "attention", "deltas", "splices"),
)
def test_an_instrument_that_is_broken_on_purpose_fails_the_calibration(
    instrument: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(monkeypatch)
    with pytest.raises(RuntimeError, match="planted truths are not found") as failure:
        calibrate(tmp_path / "out", [instrument])
    assert message in str(failure.value)
    assert not is_finished(tmp_path / "out")
    assert "wrong" in set(read_table(tmp_path / "out" / "answers.csv")["verdict"])
    assert "<b>Not found: " in (tmp_path / "out" / "calibration.html").read_text()
