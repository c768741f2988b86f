"""Every figure of a trajectory is that of a direct NumPy computation, and the page shows it."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyze.trajectory.command import main
from merge.restore import main as restore
from models.blocks import block_names, make_partition
from models.checkpoint import open_checkpoint
from models.layout import layout_of
from models.pocket import PocketShape, write_pocket_checkpoint
from tests.merge.trajectories.kept import keep_steps
from tests.models.damage import read_tensors, write_tensors
from tracking.records import read_records

STEPS = (10, 20, 40, 50)
RANK = 3
SHAPE = PocketShape(hidden_size=64, num_heads=4, num_kv_heads=2, mlp_size=96, vision_hidden_size=32)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a start and two runs in bf16; the decoder's second layer stays as it is, the others drift and wander."""
    folder = tmp_path_factory.mktemp("trajectory")
    write_pocket_checkpoint(folder / "start", shape=SHAPE, seed=0)
    start = {name: values.bfloat16() for name, values in read_tensors(folder / "start").items()}
    generator = torch.Generator().manual_seed(0)

    def noise(values: torch.Tensor) -> torch.Tensor:
        return torch.randn(values.shape, generator=generator)

    shutil.copytree(folder / "start", folder / "base")
    write_tensors(folder / "base", {name: (own.float() + 0.01 * noise(own)).bfloat16() for name, own in start.items()})
    for seed in range(2):
        drift = {name: noise(own) for name, own in start.items() if ".layers.1." not in name}
        steps = {
            step: {
                name: (start[name].float() + 2e-4 * step * own + 1e-3 * noise(own)).bfloat16()
                for name, own in drift.items()
            }
            for step in STEPS
        }
        keep_steps(folder, start, steps, name=f"full-seed{seed}")
    main(
        f"{folder}/full-seed0 other@1={folder}/full-seed1 --base {folder}/base --subspace_rank {RANK} "
        f"--output-dir {folder}/out".split()
    )
    return folder


def table(work: Path, name: str) -> pd.DataFrame:
    found = pd.read_csv(work / "out" / f"{name}.csv")
    return found[found["name"] == "full"]


def values(directory: Path, name: str) -> np.ndarray:
    return open_checkpoint(directory).tensor(name).double().numpy()


@pytest.fixture(scope="module")
def restored(work: Path) -> dict[int, Path]:
    """The kept steps of the first run as written checkpoints."""
    for step in STEPS:
        restore(["--trajectory", str(work / "full-seed0"), "--step", str(step), "--output-dir", f"{work}/step-{step}"])
    return {step: work / f"step-{step}" / "checkpoint" for step in STEPS}


def close(found: object, expected: object) -> bool:
    """Equal up to the six digits of a table."""
    return bool(
        np.allclose(np.asarray(found, float), np.asarray(expected, float), rtol=2e-5, atol=1e-9, equal_nan=True)
    )


def test_a_matrix_over_steps_is_that_of_numpy(work: Path, restored: dict[int, Path]) -> None:
    own = table(work, "matrices")
    (lines,) = [each[each["level"] == "tensor"].set_index("tensor") for each in [table(work, "lines")]]
    names = [
        name for name in own["tensor"].unique() if name.endswith(("q_proj.weight", "down_proj.weight", "norm.weight"))
    ]
    assert len(names) > 10
    for name in names:
        start, base = values(work / "start", name), values(work / "base", name)
        deltas = np.stack([values(restored[step], name) - start for step in STEPS])
        rows = own[own["tensor"] == name].sort_values("step")
        flat = deltas.reshape(len(STEPS), -1)
        norms = np.linalg.norm(flat, axis=1)
        assert close(rows["energy"], norms) and close(rows["relative_energy"], norms / np.linalg.norm(start))
        assert close(rows["changed_frac"], (flat != 0).mean(axis=1))
        line = lines.loc[name]
        if not norms.any():
            assert ".layers.1." in name and rows["cosine_final"].isna().all() and np.isnan(line["r2"])
            continue
        assert close(rows["cosine_final"], flat @ flat[-1] / norms / norms[-1])
        assert close(rows["reached"], flat @ flat[-1] / norms[-1] ** 2)
        left, singular, _ = np.linalg.svd(flat, full_matrices=False)
        coefficients = singular[0] * left[:, 0] * np.sign(left[-1, 0])
        slope, intercept = np.polyfit(STEPS, coefficients, 1)
        assert close(rows["coefficient"], coefficients)
        assert close(line["trajectory_rank1_share"], singular[0] ** 2 / (singular**2).sum())
        assert close(line["r2"], np.corrcoef(STEPS, coefficients)[0, 1] ** 2)
        assert close([line["slope"], line["intercept"]], [slope, intercept])
        sft = (start - base).reshape(-1)
        both = (flat != 0) & (sft != 0)
        assert close(rows["sft_both_frac"], both.mean(axis=1))
        assert close(rows["sft_conflict_frac"], ((flat * sft < 0) & both).sum(axis=1) / both.sum(axis=1))
        assert close(rows["sft_cosine"], flat @ sft / norms / np.linalg.norm(sft))
        if start.ndim == 2:
            top = np.array([np.linalg.svd(delta, compute_uv=False)[0] ** 2 for delta in deltas])
            assert np.allclose(rows["rank1_share"], top / norms**2, rtol=1e-4)
            u, _, vt = np.linalg.svd(start)
            inside = [np.linalg.norm(u[:, :RANK].T @ delta) ** 2 for delta in deltas] / norms**2
            assert np.allclose(rows["left_share"], inside, rtol=1e-3) and close(rows["left_random"], RANK / len(start))
            inside = [np.linalg.norm(delta @ vt[:RANK].T) ** 2 for delta in deltas] / norms**2
            assert np.allclose(rows["right_share"], inside, rtol=1e-3)
            assert close(rows["right_random"], RANK / start.shape[1])
        else:
            assert rows["rank1_share"].isna().all() and rows["left_share"].isna().all()


@pytest.mark.slow
def test_a_layer_and_a_block_are_their_tensors_as_one_vector(work: Path, restored: dict[int, Path]) -> None:
    layout = layout_of(work / "start")
    partition = make_partition(layout.num_layers)
    lines, paths = table(work, "lines"), [work / "start", *restored.values()]
    for level, column, place in (("layer", "layer", 2), ("block", "block", "early"), ("all", "block", "all")):
        names = [
            parameter.name
            for parameter in layout
            if place == "all"
            or (parameter.region == "llm" and parameter.index == place)
            or block_names(parameter, partition) == place
        ]
        before, *after = (np.concatenate([values(path, n).ravel() for n in names]) for path in paths)
        flat = np.stack(after) - before
        own = table(work, "layers" if level == "layer" else "blocks")
        rows = own[own[column] == place].sort_values("step")
        assert close(rows["energy"], np.linalg.norm(flat, axis=1))
        assert close(rows["changed_frac"], (flat != 0).mean(axis=1))
        left, singular, _ = np.linalg.svd(flat, full_matrices=False)
        line = lines[(lines["level"] == level) & (lines[column] == place)].iloc[0]
        assert close(line["trajectory_rank1_share"], singular[0] ** 2 / (singular**2).sum())
        assert close(line["r2"], np.corrcoef(STEPS, left[:, 0])[0, 1] ** 2)


@pytest.mark.slow
def test_ordinary_checkpoints_give_the_same_tables_as_kept_steps(work: Path, restored: dict[int, Path]) -> None:
    entries = [f"full@0:{step}={path}" for step, path in reversed(restored.items())]
    main(
        ["--start", f"{work}/start", "--checkpoints", *entries, "--base", f"{work}/base", "--subspace_rank", str(RANK),
         "--output-dir", f"{work}/again"]
    )  # fmt: skip
    for name in ("matrices", "layers", "blocks", "lines"):
        again = pd.read_csv(work / "again" / f"{name}.csv")
        pd.testing.assert_frame_equal(again, table(work, name).reset_index(drop=True))


def test_the_page_answers_and_a_finished_directory_is_left_alone(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (work / "out" / "trajectory.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "other@1, place by place" in page
    assert "full@0: at step 50," in page and "half of its length" in page
    records = (work / "out" / "records.jsonl").read_bytes()
    assert len(read_records(work / "out" / "records.jsonl")) == 2 * len(layout_of(work / "start").parameters)
    main(
        f"{work}/full-seed0 other@1={work}/full-seed1 --base {work}/base --subspace_rank {RANK} "
        f"--output-dir {work}/out".split()
    )
    assert "Half of the final change was reached at step" in capsys.readouterr().out
    assert (work / "out" / "records.jsonl").read_bytes() == records


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "no trajectory is given"),
        ("{work}/full-seed0 full@0={work}/full-seed1", "'full@0' is named twice"),
        ("--checkpoints full:0={work}/start", "--checkpoints requires --start"),
        ("--start {work}/start --checkpoints full:0={work}/base", "step 0 is the start"),
        ("--start {work}/start --checkpoints full:5={work}/base", "has one step, 5; a trajectory needs at least 2"),
        ("--start {work}/start --checkpoints full@5={work}/base", "is no NAME:STEP=CHECKPOINT"),
        ("{work}/base", "expected the output directory of a run of train.grpo or train.sft with keep_trajectory"),
    ],
)
def test_mistakes_are_named(work: Path, tmp_path: Path, words: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        main([*words.format(work=work).split(), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
