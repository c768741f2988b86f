"""Telemetry with two processes, DDP and DeepSpeed ZeRO-1 to 3 over gloo: the same checks, by the real engines.

All cases share one launch of this file; each process asserts, and an assertion that fails ends the launch.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tracking.command import REPOSITORY_ROOT

NUM_STEPS = 2
CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero1_bf16": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero3_offload": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "stage3_param_persistence_threshold": 5000},
    "zero3_lora": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


@pytest.mark.slow
def test_telemetry_holds_in_two_processes_under_every_engine(
    shallow_checkpoint: Path, tiny_prompts: Path, warm_python: Path, tmp_path: Path
) -> None:
    write_engine_files(tmp_path)
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY_ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(warm_python), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(
        [*command, str(shallow_checkpoint), str(tiny_prompts), str(tmp_path)],
        cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert (tmp_path / "held.txt").read_text().split() == list(CASES)


def write_engine_files(directory: Path) -> None:
    """Writes each case's DeepSpeed configuration; DDP needs none."""
    for case, settings in CASES.items():
        if settings:
            sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
            content = {
                "zero_optimization": settings,
                "zero_force_ds_cpu_optimizer": False,
                "bf16": {"enabled": "auto"},
                **dict.fromkeys((*sizes, "gradient_clipping"), "auto"),
            }
            (directory / f"{case}.json").write_text(json.dumps(content))


@contextmanager
def whole(parameter: Any) -> Iterator[Any]:
    """Yields a parameter's weights, gathered where ZeRO-3 has cut them."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.detach().double()
    else:
        yield parameter.detach().double()


def copies(model: Any) -> dict[str, Any]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with whole(parameter) as weights:
                found[name] = weights.clone()
    return found


def run_case(case: str, checkpoint: Path, prompts_dir: Path, directory: Path, every: int) -> tuple[Any, Any, Any]:
    """Trains a few steps and returns the trainer, its trained weights and what each step did to them."""
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig

    from models.layout import layout_of
    from models.loading import load_model, load_processor
    from train.freezing.freeze import FreezeArguments, apply_freeze, plan_freeze
    from train.running.data import DataArguments, build_dataset, load_prompts, training_order
    from train.running.telemetry import Telemetry, block_of
    from train.running.telemetry_arguments import TelemetryArguments
    from train.running.trainers import WatchedGRPOTrainer

    class Watched(WatchedGRPOTrainer):
        pass

    def variety(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(set(reply[-1]["content"]))) for reply in completions]

    config = GRPOConfig(
        output_dir=str(directory / case), max_steps=NUM_STEPS,
        deepspeed=str(directory / f"{case}.json") if CASES[case] else None,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4, max_completion_length=6,
        learning_rate=1e-3, beta=0.0, logging_steps=1, save_strategy="no", report_to="none", bf16=case.endswith("bf16"),
        gradient_checkpointing=False, use_cpu=True, seed=3, shuffle_dataset=False, disable_tqdm=True,
    )  # fmt: skip
    plan = plan_freeze(layout_of(checkpoint), FreezeArguments(freeze=["mid"]))
    data = DataArguments(prompts=str(prompts_dir), split="rl", abilities=["vision"])
    prompts = load_prompts(data)
    model, peft_config = load_model(checkpoint), None
    if case.endswith("lora"):
        from peft import LoraConfig

        peft_config = LoraConfig(r=3, target_modules=r".*language_model\.layers\.(0|2)\.self_attn\.(q|v)_proj")
    else:
        apply_freeze(model, plan)

    class Compare(TrainerCallback):
        rows: list[dict[str, float]] = []  # noqa: RUF012 (one instance)
        before: dict[str, Any]

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.before = copies(model)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            sums: dict[str, list[float]] = {}
            for name, after in copies(model).items():
                delta = after - self.before[name]
                block = sums.setdefault(block_of(name, plan), [0.0, 0.0, 0.0])
                block[0] += float((delta**2).sum())
                block[1] += int((delta != 0).sum())
                block[2] += delta.numel()
            self.rows.append(
                {f"update_norm/{b}": values[0] ** 0.5 for b, values in sums.items()}
                | {f"changed_frac/{b}": values[1] / values[2] for b, values in sums.items()}
            )

    trainer = Watched(
        model,
        reward_funcs=[variety],
        args=config,
        train_dataset=build_dataset(prompts, training_order(len(prompts), 16, seed=3), data, with_response=False),
        processing_class=load_processor(checkpoint),
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.watch(Telemetry(plan, TelemetryArguments(telemetry_steps=every, telemetry_elements=10**6)))
    compare = Compare()
    trainer.add_callback(compare)
    trainer.train()
    return trainer, copies(trainer.model), compare.rows


def check_case(case: str, *places: Path) -> None:
    """Asserts that a case's numbers are right and that telemetry changed no weight."""
    import torch

    trainer, measured, expected = run_case(case, *places, every=1)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == len(expected) == NUM_STEPS
    for row, changes in zip(rows, expected, strict=True):
        squares = sum(value**2 for name, value in row.items() if name.startswith("grad_norm/"))
        assert squares**0.5 == pytest.approx(row["grad_norm"], rel=1e-4) and row["grad_norm"] > 0, (case, row)
        found = {name: value for name, value in row.items() if name.startswith(("update_norm/", "changed_frac/"))}
        assert found == pytest.approx(changes, rel=1e-5), case
    if CASES[case]:
        assert "step" not in vars(trainer.model_wrapped), "the engine's own step is back in its place"
    del trainer
    forget()
    _, plain, _ = run_case(case, *places, every=0)
    assert all(torch.equal(plain[name], measured[name]) for name in measured), case


def forget() -> None:
    """Lets go of one engine before the next is built."""
    import transformers.integrations.deepspeed
    from accelerate.state import AcceleratorState, GradientState

    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref = None


def main() -> None:
    import deepspeed

    from tracking.command import quiet_libraries
    from train.running.collectives import skip_shared_memory

    quiet_libraries()
    skip_shared_memory()
    gc.freeze()  # the collection after each case leaves the libraries out
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    places = [Path(argument) for argument in sys.argv[1:]]
    for case in CASES:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = str(bool(CASES[case])).lower()
        check_case(case, *places)
        forget()
        if os.environ["RANK"] == "0":
            with (places[-1] / "held.txt").open("a") as file:
                file.write(f"{case}\n")


if __name__ == "__main__":
    main()
