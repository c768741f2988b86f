"""GRPO on a real pocket model: frozen tensors stay unchanged, killed runs continue, breaches are found."""

import hashlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from transformers import TrainerCallback

import train.running.trainers
from eval.replies.rollouts import ROLLOUT_FILE, read_rollout
from models.checkpoint import open_checkpoint
from models.layout import Layout
from tracking.command import REPOSITORY_ROOT
from tracking.records import read_records
from train.freezing.freeze import FreezeArguments, find_breaches, frozen_digests, plan_freeze
from train.grpo import check_save_steps, main
from train.running.callbacks import UNPROVED_DIR, last_checkpoint
from train.verify import main as verify

SETTINGS: dict[str, Any] = {
    "split": "rl", "max_steps": 4, "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 10,
    "temperature": 1.0, "learning_rate": 1.0e-3, "beta": 0.0, "logging_steps": 1, "save_steps": 2, "report_to": "none",
    "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "seed": 3,
}  # fmt: skip
TIMINGS = ("step_time",)
"""Columns of metrics.csv that measure the machine."""


def flags(start: Path, prompts: Path, output_dir: Path, **changes: Any) -> list[str]:
    values = {
        **SETTINGS,
        "model_name_or_path": start,
        "prompts": prompts,
        "output_dir": output_dir,
        "freeze": "mid",
        **changes,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def weights(directory: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(directory)
    return {name: bytes(checkpoint.data(name)) for name in checkpoint.tensors}


def metrics(directory: Path) -> pd.DataFrame:
    return pd.read_csv(directory / "metrics.csv").drop(columns=list(TIMINGS), errors="ignore")


@pytest.fixture(scope="module")
def whole_run(warm_checkpoint: Path, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with `mid` frozen: prompts with and without pictures, checkpoints at steps 2 and 4."""
    directory = tmp_path_factory.mktemp("grpo") / "run"
    main(flags(warm_checkpoint, tiny_prompts, directory))
    return directory


@pytest.mark.slow
def test_what_is_frozen_is_bit_identical_in_every_checkpoint_and_the_rest_trains(
    whole_run: Path, warm_checkpoint: Path, warm_layout: Layout
) -> None:
    start = open_checkpoint(warm_checkpoint)
    plan = plan_freeze(warm_layout, FreezeArguments(freeze=["mid"]))
    digests = frozen_digests(start, plan.frozen)
    saved = [*sorted((whole_run / "checkpoints").glob("checkpoint-*")), whole_run / "final"]
    assert [path.name for path in saved] == ["checkpoint-2", "checkpoint-4", "final"]
    for path in saved:
        assert find_breaches(start, open_checkpoint(path), digests) == []
    final = open_checkpoint(whole_run / "final")
    for block in ("early", "late", "vision", "projector", "embed", "norm"):
        members = plan_freeze(warm_layout, FreezeArguments(freeze=[block])).frozen
        assert any(final.data(name) != start.data(name) for name in members), f"{block} did not train"
    verify(["--start", str(warm_checkpoint), "--end", str(whole_run / "final"), "--frozen", "mid"])


@pytest.mark.slow
def test_final_is_written_as_the_start_is(whole_run: Path, warm_checkpoint: Path) -> None:
    start, final = open_checkpoint(warm_checkpoint), open_checkpoint(whole_run / "final")
    spelled = [(stored.name_on_disk, stored.dtype, stored.shape) for stored in start.tensors.values()]
    assert [(stored.name_on_disk, stored.dtype, stored.shape) for stored in final.tensors.values()] == spelled
    # Beside the start's files, what wrote the replies: here the trainer's own model.
    assert {path.name for path in final.directory.iterdir()} == {
        ROLLOUT_FILE,
        *(path.name for path in start.directory.iterdir()),
    }
    rollout = read_rollout(final.directory)
    assert rollout is not None
    assert rollout["engine"].startswith("transformers ")
    assert (rollout["engine_dtype"], rollout["corrected"], rollout["gap"]) == ("float32", False, {})
    assert not list(whole_run.rglob(".partial-*"))


@pytest.mark.slow
def test_the_report_proves_freezing_tensor_by_tensor(
    whole_run: Path, warm_checkpoint: Path, warm_layout: Layout
) -> None:
    report = json.loads((whole_run / "freeze_report.json").read_text())
    start, final = open_checkpoint(warm_checkpoint), open_checkpoint(whole_run / "final")
    plan = plan_freeze(warm_layout, FreezeArguments(freeze=["mid"]))
    assert report["checkpoints"] == ["checkpoint-2", "checkpoint-4", "final"]
    assert (report["freeze"], report["num_breaches"], report["num_frozen_tensors"]) == (["mid"], 0, len(plan.frozen))
    tensors = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert list(tensors) == list(warm_layout.parameters)
    for name, tensor in tensors.items():
        assert tensor["frozen"] == (name in plan.frozen)
        assert (tensor["sha256_start"], tensor["sha256_end"]) == (start.sha256(name), final.sha256(name))
        changed = int((start.tensor(name) != final.tensor(name)).sum())
        assert tensor["num_changed"] == changed and (changed == 0 or not tensor["frozen"])
    still = [name for name, tensor in tensors.items() if not tensor["frozen"] and not tensor["num_changed"]]
    assert report["never_moved"] == still
    blocks = {row["block"]: row for row in report["blocks"]}
    assert blocks["mid"]["changed_frac"] == 0 and blocks["late"]["changed_frac"] > 0.5


@pytest.mark.slow
def test_a_run_killed_after_a_checkpoint_ends_as_if_it_had_not_been(
    whole_run: Path, warm_checkpoint: Path, tiny_prompts: Path, warm_python: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    command = flags(warm_checkpoint, tiny_prompts, directory)
    process = subprocess.Popen(
        [warm_python, "-m", "train.grpo", *command],
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        proved = directory / "checkpoints" / "checkpoint-2"
        deadline = time.monotonic() + 150
        while not proved.exists():
            assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (directory / "final").exists()
    main(command)
    assert len(json.loads((directory / "run.json").read_text())["attempts"]) == 2
    assert weights(directory / "final") == weights(whole_run / "final")
    pd.testing.assert_frame_equal(metrics(directory), metrics(whole_run))
    proofs = [proof["key"] for proof in read_records(directory / "proofs.jsonl")]
    assert proofs == ["step-1", "checkpoint-2", "step-3", "checkpoint-4"]


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_other_settings_are_refused(
    whole_run: Path, warm_checkpoint: Path, tiny_prompts: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*") if path.is_file() and path.name != ".lock"}
    main(flags(warm_checkpoint, tiny_prompts, whole_run))
    with pytest.raises(ValueError, match=r"was made with freeze = \['mid'\], now it is \['late'\]"):
        main(flags(warm_checkpoint, tiny_prompts, whole_run, freeze="late"))
    with pytest.raises(ValueError, match=r"training\.learning_rate = 0\.001, now it is 0\.002"):
        main(flags(warm_checkpoint, tiny_prompts, whole_run, learning_rate=2e-3))
    assert before == {
        path: path.stat().st_mtime_ns for path in whole_run.rglob("*") if path.is_file() and path.name != ".lock"
    }


@pytest.mark.slow
def test_metrics_of_a_logging_window_that_a_kill_cut_in_two_are_the_same_or_such_settings_are_refused(
    warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    command = flags(warm_checkpoint, tiny_prompts, directory, save_steps=3, logging_steps=2)
    try:
        main(command)
    except ValueError as error:
        assert "logging_steps" in str(error)
        assert not directory.exists()
        return
    undisturbed = metrics(directory)
    for path in (directory / "final", directory / "checkpoints" / "checkpoint-4"):
        shutil.rmtree(path, ignore_errors=True)
    state = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**state, "status": "running"}))
    main(command)
    pd.testing.assert_frame_equal(metrics(directory), undisturbed)


class FlipBeforeSave(TrainerCallback):
    """Changes the last bit of one frozen element at a step, as a stray update would."""

    def __init__(self, name: str, step: int) -> None:
        self.name, self.step = name, step

    def on_step_end(self, args: Any, state: Any, control: Any, model: torch.nn.Module | None = None, **_: Any) -> None:
        assert model is not None
        if state.global_step == self.step:
            parameter = dict(model.named_parameters())[self.name]
            parameter.data.view(-1).view(torch.int32)[0] ^= 1


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Adds the callback to the trainer, which is otherwise the real one."""

    def planted(name: str, step: int) -> None:
        class Sabotaged(train.running.trainers.WatchedGRPOTrainer):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.add_callback(FlipBeforeSave(name, step))

        monkeypatch.setattr(train.running.trainers, "WatchedGRPOTrainer", Sabotaged)

    return planted


@pytest.mark.slow
@pytest.mark.parametrize(("step", "save_strategy"), [(1, "steps"), (2, "no")])
def test_one_changed_bit_of_a_frozen_tensor_fails_the_run(
    warm_checkpoint: Path, warm_layout: Layout, tiny_prompts: Path, tmp_path: Path, plant: Callable[[str, int], None],
    step: int, save_strategy: str,
) -> None:  # fmt: skip
    victim = plan_freeze(warm_layout, FreezeArguments(freeze=["mid"])).frozen[-1]
    plant(victim, step)
    directory = tmp_path / "run"
    with pytest.raises(RuntimeError, match="1 frozen tensors changed.*" + victim.replace(".", r"\.")):
        main(flags(warm_checkpoint, tiny_prompts, directory, max_steps=2, save_strategy=save_strategy))
    assert not (directory / "final").exists() and not (directory / "freeze_report.json").exists()
    assert not list((directory / "checkpoints").glob("checkpoint-*"))
    assert json.loads((directory / "run.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_a_checkpoint_that_was_not_proved_is_removed_and_its_steps_redone(
    whole_run: Path, warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(whole_run, tmp_path / "run"))
    torn = directory / "checkpoints" / "checkpoint-4"
    (torn.parent / UNPROVED_DIR).mkdir()
    torn = torn.rename(torn.parent / UNPROVED_DIR / torn.name)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:1000])
    shutil.rmtree(directory / "final")
    for name in ("freeze_report.json", "metrics.csv"):
        (directory / name).unlink()
    state = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**state, "status": "running"}))
    main(flags(warm_checkpoint, tiny_prompts, directory))
    assert not torn.parent.exists()
    assert weights(directory / "final") == weights(whole_run / "final")
    assert weights(directory / "checkpoints" / "checkpoint-4") == weights(whole_run / "checkpoints" / "checkpoint-4")
    pd.testing.assert_frame_equal(metrics(directory), metrics(whole_run))


class LookAtSave(TrainerCallback):
    """Notes which proved checkpoints stand at the moment the next one is saved, before it is proved."""

    standing: ClassVar[list[list[str]]] = []

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.standing.append(sorted(path.name for path in Path(args.output_dir).parent.glob("checkpoint-*")))


@pytest.mark.slow
def test_the_last_proved_checkpoint_goes_only_once_the_next_is_proved(
    warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(train.running.trainers.WatchedGRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(LookAtSave())

    monkeypatch.setattr(train.running.trainers, "WatchedGRPOTrainer", Watched)
    LookAtSave.standing.clear()
    main(flags(warm_checkpoint, tiny_prompts, tmp_path / "run", max_steps=2, save_steps=1, save_total_limit=1))
    assert LookAtSave.standing == [[], ["checkpoint-1"]]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
def test_every_arm_sees_the_same_prompts_in_the_same_order(
    whole_run: Path, warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, seen: list[list[str]]
) -> None:
    for freeze in ("mid", "late"):
        main(flags(warm_checkpoint, tiny_prompts, tmp_path / freeze, freeze=freeze, max_steps=3, save_strategy="no"))
    half = len(seen) // 2
    assert half == 3
    assert seen[:half] == seen[half:]
    assert all(len(batch) == 16 and len(set(batch)) == 4 for batch in seen)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Collects the questions of every generation batch."""
    batches: list[list[str]] = []

    class Watched(train.running.trainers.WatchedGRPOTrainer):
        def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
            def content(prompt: Any) -> str:
                return json.dumps(prompt[-1]["content"], default=lambda image: hash(image.tobytes()))

            batches.append([content(prompt) for prompt in prompts])
            return super()._tokenize_prompts(prompts)

    monkeypatch.setattr(train.running.trainers, "WatchedGRPOTrainer", Watched)
    yield batches


def test_only_proved_checkpoints_count(tmp_path: Path) -> None:
    for step, proved in ((2, True), (10, True), (4, False), (12, False)):
        path = tmp_path / ("" if proved else UNPROVED_DIR) / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "model.safetensors").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
    assert last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"save_steps": 3}, True),
        ({"save_steps": 2, "steps_per_generation": 2}, True),
        ({"save_steps": 3, "steps_per_generation": 2}, False),
        ({"save_steps": 3, "num_iterations": 2}, False),
        ({"save_steps": 4, "num_iterations": 2, "steps_per_generation": 2}, True),
        ({"save_steps": 3, "gradient_accumulation_steps": 2}, True),
        ({"save_steps": 3, "gradient_accumulation_steps": 2, "steps_per_generation": 4}, False),
        ({"save_steps": 3, "steps_per_generation": 2, "save_strategy": "no"}, True),
    ],
)
def test_a_save_in_the_middle_of_a_generation_batch_is_refused(
    tmp_path: Path, values: dict[str, Any], fits: bool
) -> None:
    from trl import GRPOConfig

    base = {"per_device_train_batch_size": 8, "num_generations": 4, "use_cpu": True, "bf16": False, "report_to": "none"}
    config = GRPOConfig(output_dir=str(tmp_path), **{**base, **values})
    if fits:
        check_save_steps(config)
        return
    with pytest.raises(ValueError, match="falls into the middle of a generation batch") as error:
        check_save_steps(config)
    config.save_steps = int(str(error.value).rpartition("use ")[2])
    check_save_steps(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "midd"}, "'midd' is unknown; did you mean 'mid'"),
        ({"train_only": "late"}, "are both given"),
        ({"rewards": "acuracy"}, "did you mean 'accuracy'"),
        ({"reward_weights": "1.0"}, "reward_weights .* does not match the rewards"),
        ({"split": "lr"}, r"lr\.jsonl does not exist; .* has the splits rl, sft, test"),
        ({"lerning_rate": "1"}, "did you mean '--learning_rate'"),
        ({"model_name_or_path": "no/such/checkpoint"}, "checkpoint no/such/checkpoint does not exist"),
        ({"save_steps": "3", "steps_per_generation": "2"}, "falls into the middle"),
        ({"use_peft": "true", "use_dora": "true"}, "use_dora"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        main(flags(pocket_checkpoint, tiny_prompts, tmp_path / "run", **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_truncated_start_is_refused_before_anything_is_written(
    copy_of: Callable[[str], Path], tiny_prompts: Path, tmp_path: Path
) -> None:
    start = copy_of("start")
    (start / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match="truncated"):
        main(flags(start, tiny_prompts, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_reward_of_ones_own_trains_and_a_resumed_run_refuses_another(
    warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "short_replies.py"
    source.write_text(
        "def short(completions, **columns):\n"
        "    return [-float(len(messages[-1]['content'])) for messages in completions]\n"
    )
    directory = tmp_path / "run"
    argv = [
        *flags(warm_checkpoint, tiny_prompts, directory, max_steps=1, save_steps=1),
        "--rewards", "accuracy", "short_replies:short", "--reward_weights", "1.0", "0.1",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` does
    main(argv)
    (row,) = pd.read_csv(directory / "metrics.csv").to_dict("records")
    assert row["rewards/short/mean"] < 0
    assert row["reward"] == pytest.approx(row["rewards/accuracy/mean"] + 0.1 * row["rewards/short/mean"])
    settings = json.loads((directory / "run.json").read_text())["settings"]
    assert settings["rewards"] == ["accuracy", "short_replies:short"]
    assert settings["reward_sources"] == {"short_replies:short": hashlib.sha256(source.read_bytes()).hexdigest()}
    source.write_text(source.read_text().replace("-float", "float"))
    with pytest.raises(ValueError, match="reward_sources"):
        main(argv)


@pytest.mark.slow
def test_a_run_that_shares_prompts_ends_like_one_that_does_not(
    pocket_checkpoint: Path,
    tiny_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "varied_replies.py").write_text(
        "def varied(completions, **columns):\n"
        "    return [float(len(set(messages[-1]['content']))) for messages in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"max_steps": 2, "save_strategy": "no", "rewards": "varied_replies:varied"}
    for name, share in (("shared", "true"), ("plain", "false")):
        main(flags(pocket_checkpoint, tiny_prompts, tmp_path / name, share_prompts=share, **settings))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("shared prompts: ")]
    assert [line.split()[2] for line in said] == ["yes,", "no,"]
    shared, plain = metrics(tmp_path / "shared"), metrics(tmp_path / "plain")
    assert shared["reward"].tolist() == plain["reward"].tolist()
    assert plain["frac_reward_zero_std"].max() < 1
    assert shared["loss"].tolist() == pytest.approx(plain["loss"].tolist(), rel=1e-3, abs=1e-6)
    moved, apart = 0.0, 0.0
    places = (pocket_checkpoint, tmp_path / "shared" / "final", tmp_path / "plain" / "final")
    checkpoints = [open_checkpoint(place) for place in places]
    for name in checkpoints[0].tensors:
        contents = [bytearray(checkpoint.data(name)) for checkpoint in checkpoints]
        before, one, other = (torch.frombuffer(content, dtype=torch.float32) for content in contents)
        moved += float((other - before).square().sum())
        apart += float((one - other).square().sum())
    assert 0 < apart < 1e-4 * moved  # Adam turns rounding in tiny gradients into steps, in few elements


@pytest.mark.slow
def test_a_run_begun_before_prompts_could_be_shared_continues_as_it_began(
    warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_steps": 2, "save_steps": 1}
    undisturbed = tmp_path / "undisturbed"
    main(flags(warm_checkpoint, tiny_prompts, undisturbed, share_prompts="false", **settings))
    directory = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    for name in ("final", "checkpoints/checkpoint-2"):
        shutil.rmtree(directory / name)
    state = json.loads((directory / "run.json").read_text())
    del state["settings"]["share_prompts"]
    (directory / "run.json").write_text(json.dumps({**state, "status": "running"}))
    command = flags(warm_checkpoint, tiny_prompts, directory, **settings)
    capsys.readouterr()
    main(command)
    said = capsys.readouterr().out
    assert "shared prompts: no, share_prompts is false" in said
    assert said.count(f"note: the run in {directory} was begun before prompts could be shared") == 1
    assert weights(directory / "final") == weights(undisturbed / "final")
    pd.testing.assert_frame_equal(metrics(directory), metrics(undisturbed))
    main(command)
    main([*command, "--share_prompts", "false"])
    assert "note:" not in capsys.readouterr().out
    assert "share_prompts" not in json.loads((directory / "run.json").read_text())["settings"]
    main([*command, "--overwrite", "true", "--max_steps", "1"])
    assert "shared prompts: yes, " in capsys.readouterr().out
    assert json.loads((directory / "run.json").read_text())["settings"]["share_prompts"] is True
