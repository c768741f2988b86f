"""A step without images leaves the vision tower and the projector alone, whatever engine runs it.

The slow tests share one launch of this file: runs of `train.grpo` in two processes over gloo. Adam's first moment is
switched off, so that a tensor to which a step gives no gradient may not move at all.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.freezing import deepspeed_settings, released
from data_builders.prompt_sets.prompts import read_prompts, write_prompts
from models.checkpoint import open_checkpoint
from models.layout import layout_of
from tracking.command import REPOSITORY_ROOT

STEPS = ("text", "images", "text", "images")
PROMPTS_PER_STEP = 2
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
ENGINES: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"stage": 1},
    "ZeRO-2, offload": {"stage": 2, **OFFLOAD},
    "ZeRO-3": {"stage": 3},
    "ZeRO-3, offload": {"stage": 3, **OFFLOAD},
}
"""Engine -> DeepSpeed's `zero_optimization`."""
UNMENDED = ("ZeRO-2, offload", "ZeRO-3")
"""Engines that run once more without StaleGradients."""
SETTINGS: dict[str, Any] = {
    "split": "rl", "shuffle": False, "max_steps": len(STEPS), "per_device_train_batch_size": 4, "num_generations": 4,
    "max_completion_length": 12, "temperature": 1.5, "learning_rate": 2e-4, "lr_scheduler_type": "constant",
    "adam_beta1": 0.0, "beta": 0.0, "logging_steps": 1, "save_steps": 1, "telemetry_steps": 0, "report_to": "none",
    "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "seed": 3, "ddp_timeout": 100,
}  # fmt: skip
SAME = 1e-3
"""Of the way that the weights go in a run; ZeRO-3 differs from ZeRO-1 by 2e-5, and by 0.4 with stale gradients."""


@pytest.fixture(scope="module")
def work(
    warm_checkpoint: Path, tiny_prompts: Path, warm_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Trains under every engine, two prompts a step, in the order of `STEPS`."""
    directory = tmp_path_factory.mktemp("stale")
    given = read_prompts(tiny_prompts, "rl")
    left = {kind: [prompt for prompt in given if bool(prompt.images) == (kind == "images")] for kind in STEPS}
    (directory / "prompts").mkdir()
    (directory / "prompts" / "images").symlink_to(tiny_prompts / "images")
    write_prompts(directory / "prompts", "rl", [left[kind].pop() for kind in STEPS for _ in range(PROMPTS_PER_STEP)])
    for engine, zero in ENGINES.items():
        (directory / f"{engine}.json").write_text(json.dumps(deepspeed_settings(zero)))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY_ROOT), "OMP_NUM_THREADS": "1",
                   "ACCELERATE_USE_DEEPSPEED": "true", "TORCH_EXTENSIONS_DIR": str(directory / "compiled")}  # fmt: skip
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(warm_python), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(
        [*command, str(warm_checkpoint), str(directory)],
        cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return directory


def seeing(directory: Path) -> np.ndarray:
    """Returns the weights of vision tower and projector, end to end."""
    checkpoint, layout = open_checkpoint(directory), layout_of(directory)
    names = [parameter.name for parameter in layout if parameter.region in ("vision", "projector")]
    return np.concatenate([np.frombuffer(checkpoint.data(name), "<f4") for name in names]).astype("f8")


def moved(start: Path, run: Path) -> dict[str, list[float]]:
    """Returns how far each step of a kind took the weights that see."""
    ways: dict[str, list[float]] = {kind: [] for kind in STEPS}
    before = seeing(start)
    for step, kind in enumerate(STEPS, start=1):
        after = seeing(run / "checkpoints" / f"checkpoint-{step}")
        ways[kind].append(float(np.linalg.norm(after - before)))
        before = after
    return ways


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_step_without_images_leaves_what_sees_alone(engine: str, work: Path, warm_checkpoint: Path) -> None:
    ways = moved(warm_checkpoint, work / engine)
    assert min(ways["images"]) > 0.01 and max(ways["text"]) == 0, ways
    assert (pd.read_csv(work / engine / "metrics.csv")["grad_norm"] > 0).all(), "every step trained something"


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES)[1:])
def test_every_engine_ends_with_the_same_weights(engine: str, work: Path, warm_checkpoint: Path) -> None:
    start, expected, found = (
        seeing(path) for path in (warm_checkpoint, work / "ZeRO-1/final", work / engine / "final")
    )
    assert np.linalg.norm(found - expected) < SAME * np.linalg.norm(expected - start)


@pytest.mark.slow
def test_no_operator_is_compiled_for_training_on_cpus(work: Path) -> None:
    """It would take a minute on two cores, and a compiler."""
    assert (work / "ZeRO-1" / "final").exists() and not list((work / "compiled").rglob("*.*"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", UNMENDED)
def test_deepspeed_alone_applies_a_gradient_twice(engine: str, work: Path, warm_checkpoint: Path) -> None:
    """Where this fails, DeepSpeed is mended, and StaleGradients can go."""
    first, second = moved(warm_checkpoint, work / f"{engine}, unmended")["text"]
    assert first == 0 and second > 0.01


def test_under_offload_a_step_in_one_process_holds_prompts_of_one_kind(tiny_prompts: Path, tmp_path: Path) -> None:
    """DeepSpeed would lose what the tower learns from a pass with images before one without, in the same step."""
    from accelerate import DeepSpeedPlugin
    from trl import ModelConfig, SFTConfig

    from train.freezing.freeze import FreezeArguments
    from train.running.data import DataArguments, load_prompts
    from train.running.stage import Stage, _order
    from train.running.telemetry_arguments import TelemetryArguments

    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_accumulation_steps=2)
    data = DataArguments(prompts=str(tiny_prompts), split="sft")
    stage = Stage(
        command="train.sft", training=training, model_config=ModelConfig(), data=data, freeze=FreezeArguments(),
        prompts=load_prompts(data), num_needed=20, batch_size=2, supervised=True, telemetry=TelemetryArguments(),
        make_trainer=lambda *_: pytest.fail("nothing is trained"),
    )  # fmt: skip

    def kinds() -> list[set[bool]]:
        order = _order(stage)
        assert len(order) == stage.num_needed
        return [{bool(stage.prompts[i].images) for i in order[at : at + 2]} for at in range(0, len(order), 2)]

    assert {True, False} in kinds()
    training.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_settings({"stage": 2, **OFFLOAD}))
    assert {True} in kinds() and {False} in kinds() and {True, False} not in kinds()


def main() -> None:
    from transformers import TrainerCallback

    import train.grpo
    import train.running.stage
    from tracking.command import quiet_libraries

    quiet_libraries()
    start, directory = (Path(argument) for argument in sys.argv[1:])
    mended = train.running.stage.StaleGradients
    for engine, callback in [(engine, mended) for engine in ENGINES] + [(engine, None) for engine in UNMENDED]:
        train.running.stage.StaleGradients = callback or (lambda plan: TrainerCallback())
        values = {
            **SETTINGS, "model_name_or_path": start, "prompts": directory / "prompts",
            "deepspeed": directory / f"{engine}.json",
            "output_dir": directory / (engine if callback else f"{engine}, unmended"),
        }  # fmt: skip
        with released():
            train.grpo.main([word for name, value in values.items() for word in (f"--{name}", str(value))])


if __name__ == "__main__":
    main()
