"""Restoring kept steps: the bytes come back; a changed start or a damaged file is refused, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from merge.restore import main
from merge.trajectories.restored import open_trajectory
from merge.trajectories.store import TrajectoryWriter
from models.checkpoint import Checkpoint, open_checkpoint, write_like
from tests.merge.trajectories.kept import keep_steps
from tests.models.damage import read_tensors, write_tensors
from tracking.run import open_run

STEPS = (5, 10)


def moved(directory: Path, start: Path, step: int) -> Path:
    """A copy of a checkpoint after a made-up step: every third tensor stays, the others change in a few elements."""
    shutil.copytree(start, directory)
    tensors = read_tensors(directory)
    generator = torch.Generator().manual_seed(step)
    for number, values in enumerate(tensors.values()):
        if number % 3:
            chosen = torch.rand(values.shape, generator=generator) < 0.04 * step
            values.add_(chosen * 0.01 * step * torch.randn(values.shape, generator=generator).to(values.dtype))
    write_tensors(directory, tensors)
    return directory


def keep(run: Path, start: Path, ends: dict[int, Path], *, resume_step: int = 0) -> TrajectoryWriter:
    """Writes a run's trajectory as training does."""
    opened = open_checkpoint(start)
    writer = TrajectoryWriter(run, opened, known={}, resume_step=resume_step)
    for step, end in ends.items():
        after = open_checkpoint(end)
        file = writer.open_step(step, opened.tensors)
        for name in opened.tensors:
            file.add(name, after.data(name))
        writer.close_step(file)
    return writer


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def run(request: pytest.FixtureRequest, pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with two kept steps; start and true weights beside it: `start`, `after-5`, `after-10`."""
    folder = tmp_path_factory.mktemp(request.param)
    start = Path(shutil.copytree(pocket_checkpoint, folder / "start"))
    if request.param == "bf16":
        write_tensors(start, {name: values.bfloat16() for name, values in read_tensors(start).items()})
        (start / "rollout.json").write_text("{}")  # of the run that made the start
    with open_run(folder / "run", command="train.grpo", settings={"start": str(start)}):
        keep(folder / "run", start, {step: moved(folder / f"after-{step}", start, step) for step in STEPS})
    return folder / "run"


def words(run: Path, output_dir: Path, step: int = 5, **more: object) -> list[str]:
    values = {"trajectory": run, "step": step, "output_dir": output_dir, **more}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def same_tensors(one: Checkpoint, other: Checkpoint) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(one.data(n) == other.data(n) for n in one.tensors)


def test_each_step_is_restored_bit_for_bit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trajectory = open_trajectory(run)
    assert trajectory.numbers == list(STEPS)
    for record in trajectory.steps:
        assert record.num_bytes == (run / "trajectory" / record.file).stat().st_size
        assert record.num_bytes < 1.3 * record.changed_bytes
        assert same_tensors(trajectory.at(record.step), open_checkpoint(run.parent / f"after-{record.step}"))
    (run / "final").mkdir(exist_ok=True)
    (run / "final" / "rollout.json").write_text('{"engine": "own"}')
    main(words(run, tmp_path / "out", 10))
    checkpoint = tmp_path / "out" / "checkpoint"
    assert f"checkpoint: {checkpoint}" in capsys.readouterr().out
    expected = tmp_path / "expected"
    expected.mkdir()
    write_like(expected, start=open_checkpoint(run.parent / "start"), weights=open_checkpoint(run.parent / "after-10"))
    (expected / "rollout.json").write_text('{"engine": "own"}')
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == {
        path.name: path.read_bytes() for path in expected.iterdir()
    }
    main(words(run, tmp_path / "out", 10))  # finished: does nothing


def test_a_step_that_was_not_kept_and_a_run_without_steps_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not kept step 7; kept are 5, 10"):
        main(words(run, tmp_path / "out", 7))
    with pytest.raises(ValueError, match=r"expected the output directory of a run of train\.grpo or train\.sft with"):
        main(words(run.parent / "start", tmp_path / "out"))
    with pytest.raises(ValueError, match="are nested"):
        main(words(run, run / "restored"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "lost", "index"])
def test_a_damaged_trajectory_is_refused(run: Path, tmp_path: Path, damage: str) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "run"))
    path = broken / "trajectory" / "step-5.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-1000])
    elif damage == "bit":
        content[-1000] ^= 0x08
        path.write_bytes(content)
    elif damage == "lost":
        path.unlink()
    else:
        index = broken / "trajectory" / "trajectory.json"
        state = json.loads(index.read_text())
        own = next(iter(state["steps"][0]["tensors"].values()))
        own["sha256"] = "0" * 64
        index.write_text(json.dumps(state))
    expected = {"cut": "truncated", "bit": "damaged", "lost": "the step is lost", "index": "does not restore"}[damage]
    with pytest.raises(ValueError, match=expected):
        main(words(broken, tmp_path / "out"))
    assert not (tmp_path / "out" / "checkpoint").exists() and not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize("change", ["sampled", "between", "file"])
def test_a_start_that_has_changed_is_refused(run: Path, tmp_path: Path, change: str) -> None:
    """In bytes that the fingerprint samples, in others, and in a file beside the weights."""
    start = Path(shutil.copytree(run.parent / "start", tmp_path / "start"))
    if change == "file":
        path = start / "tokenizer_config.json"
        path.write_text(path.read_text() + " ")
        expected = "tokenizer_config.json has changed since the run"
    else:
        opened = open_checkpoint(start)
        largest = max(opened.tensors.values(), key=lambda stored: stored.num_bytes)
        assert largest.num_bytes > 20_000
        content = bytearray(largest.file.read_bytes())
        content[largest.offset + (1 if change == "sampled" else 6_001)] ^= 1
        largest.file.write_bytes(content)
        expected = "not the start of the run" if change == "sampled" else f"'{largest.name}' has changed since"
    with pytest.raises(ValueError, match=f"{expected}.*name it with --start"):
        main(words(run, tmp_path / "out", start=start))
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_continued_trajectory_drops_what_is_trained_again(run: Path, tmp_path: Path) -> None:
    """A later attempt keeps the steps up to its checkpoint, and writes the same bytes as an undisturbed run."""
    start, ends = run.parent / "start", {step: run.parent / f"after-{step}" for step in STEPS}
    again = tmp_path / "run"
    keep(again, start, {5: ends[5], 10: ends[5]})  # 10 with other weights, and a file cut off by a kill
    (again / "trajectory" / ".partial-step-15.safetensors").write_bytes(b"cut")
    keep(again, start, {10: ends[10]}, resume_step=5)
    files = {path.name: path.read_bytes() for path in (again / "trajectory").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (run / "trajectory").iterdir()}


def test_a_stored_tied_head_follows_the_embeddings(pocket_checkpoint: Path, tmp_path: Path) -> None:
    """Training changes the one tensor of both; a start whose files have it twice is restored with it twice."""
    shutil.copytree(pocket_checkpoint, tmp_path / "start")
    tensors = read_tensors(tmp_path / "start")
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    after = tensors[embedding] + 1
    steps = {3: {embedding: after}}
    run = keep_steps(tmp_path, {**tensors, "lm_head.weight": tensors[embedding].clone()}, steps)
    main(words(run, tmp_path / "out", 3))
    restored = read_tensors(tmp_path / "out" / "checkpoint")
    assert restored.keys() == {*tensors, "lm_head.weight"}
    assert torch.equal(restored["lm_head.weight"], after) and torch.equal(restored[embedding], after)
