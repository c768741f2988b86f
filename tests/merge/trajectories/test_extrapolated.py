"""Lines through trajectories agree with NumPy, and what lies on a line is extrapolated exactly."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import merge.trajectories.stack
from merge.extrapolate import main
from merge.trajectories.line import fit_line, half_step
from merge.trajectories.restored import Trajectory, open_trajectory
from merge.trajectories.stack import open_stack
from models.checkpoint import open_checkpoint
from models.pocket import PocketShape, write_pocket_checkpoint
from tests.merge.trajectories.kept import keep_steps
from tests.models.damage import read_tensors

STEPS = (4, 8, 12, 20, 32)
UNTIL, TO = 20, 32
SHAPE = PocketShape(hidden_size=64, num_heads=4, num_kv_heads=2, mlp_size=96, vision_hidden_size=32)


def direct(matrix: np.ndarray, steps: tuple[int, ...]) -> dict[str, np.ndarray | float]:
    """What `fit_line` gives, by a singular value decomposition of the whole matrix and a polynomial fit."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    coefficients = values[0] * left[:, 0] * np.sign(left[-1, 0])
    slope, intercept = np.polyfit(steps, coefficients, 1)
    return {
        "rank1_share": values[0] ** 2 / (values**2).sum(),
        "coefficients": coefficients,
        "slope": slope,
        "intercept": intercept,
        "r2": np.corrcoef(steps, coefficients)[0, 1] ** 2,
        "change": (intercept + slope * 50) * right[0] * np.sign(left[-1, 0]),
    }


def test_lines_are_those_of_a_direct_computation() -> None:
    rng = np.random.default_rng(0)
    for noise in (0.0, 0.1, 3.0):
        matrix = np.outer(np.sqrt(STEPS), rng.standard_normal(500)) + noise * rng.standard_normal((5, 500))
        line, expected = fit_line(matrix @ matrix.T, STEPS), direct(matrix, STEPS)
        for name in ("rank1_share", "coefficients", "slope", "intercept", "r2"):
            assert np.allclose(getattr(line, name), expected[name], rtol=1e-9, atol=1e-9), (noise, name)
        assert np.allclose(line.weights(50) @ matrix, expected["change"], atol=1e-9)


def test_a_trajectory_without_change_has_no_line() -> None:
    line = fit_line(np.zeros((3, 3)), (1, 2, 3))
    assert np.isnan(line.rank1_share) and np.isnan(line.r2) and not line.weights(9).any()
    assert np.isnan(half_step(np.zeros((3, 3)), (1, 2, 3)))
    assert np.isnan(fit_line(np.eye(2), (1, 2)).r2)  # two points lie on every line


@pytest.mark.parametrize(
    ("lengths", "expected"), [((1, 2, 3, 4), 8.0), ((3, 4, 4, 4), 8 / 3), ((0, 0, 0, 1), 14.0), ((1, -1, 1, 2), 4.0)]
)
def test_half_of_the_change_is_found_between_steps(lengths: tuple[int, ...], expected: float) -> None:
    changes = np.array(lengths, float)[:, None]
    assert half_step(changes @ changes.T, (4, 8, 12, 16)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five kept steps on a straight line, of half of the tensors; in powers of two, so that fp32 holds them exactly."""
    folder = tmp_path_factory.mktemp("straight")
    write_pocket_checkpoint(folder / "start", shape=SHAPE, seed=0)
    start = read_tensors(folder / "start")
    generator = torch.Generator().manual_seed(0)
    for values in start.values():
        values.copy_((values * 2**10).round() / 2**10)
    directions = {
        name: torch.randint(-4, 5, values.shape, generator=generator) / 2**12
        for number, (name, values) in enumerate(start.items())
        if number % 2
    }
    return keep_steps(
        folder,
        start,
        {step: {name: start[name] + step * own for name, own in directions.items()} for step in STEPS},
    )


def assert_equal(one: Trajectory, checkpoint: Path, step: int) -> None:
    written, real = open_checkpoint(checkpoint), one.at(step)
    for name in real.tensors:
        assert torch.allclose(written.tensor(name), real.tensor(name), rtol=0, atol=1e-6), name


def test_a_straight_run_is_continued_to_its_real_steps(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--trajectory", str(run), "--until-step", str(UNTIL), "--to-step", str(TO)]
    main([*command, "--output-dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "step 32, predicted from 4 kept steps, 4 to 20" in said
    assert "cosine of predicted and real change: 1.000" in said
    trajectory = open_trajectory(run)
    assert_equal(trajectory, tmp_path / "out" / "checkpoint", TO)
    lines = pd.read_csv(tmp_path / "out" / "lines.csv").set_index("tensor")
    assert set(lines.index) == set(trajectory.steps[0].tensors)
    assert (lines["rank1_share"] > 1 - 1e-9).all() and (lines["r2"] > 1 - 1e-9).all()
    assert (lines["error"] < 1e-4).all() and np.allclose(lines["last_error"], 12 / 32, atol=1e-4)
    unchanged = set(trajectory.start.tensors) - set(lines.index)
    written = open_checkpoint(tmp_path / "out" / "checkpoint")
    assert unchanged and all(written.data(name) == trajectory.start.data(name) for name in unchanged)


def test_too_few_observed_steps_are_refused(run: Path, tmp_path: Path) -> None:
    command = ["--trajectory", str(run), "--until-step", "7", "--to-step", "32", "--output-dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"has kept 1 steps up to step 7; a line needs at least two \(kept are"):
        main(command)
    assert not (tmp_path / "out").exists()


def test_a_tensor_too_large_for_memory_is_read_from_a_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory = open_trajectory(run)
    ends = [trajectory.at(step) for step in STEPS]
    name = max(trajectory.steps[0].tensors, key=lambda each: trajectory.start.tensors[each].num_bytes)
    with open_stack(trajectory.start, ends, name) as stack:
        expected = stack.gram()
    monkeypatch.setattr(merge.trajectories.stack, "MEMORY_BYTES", 0)
    monkeypatch.setattr(merge.trajectories.stack, "CHUNK_ELEMENTS", 100)
    with open_stack(trajectory.start, ends, name) as stack:
        assert np.allclose(stack.gram(), expected, rtol=1e-12)
        assert torch.equal(stack.values(3), trajectory.at(STEPS[2]).tensor(name).flatten())
