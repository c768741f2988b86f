"""Does frozen mean bit-identical in every training mode? Trains every mode and arm on two CPU processes.

    python -m benchmarks.freezing [--modes zero3 lora] [--output docs/freezing.md]

Each case is a GRPO run of two steps of a small Qwen2.5-VL through `train.grpo` itself, with checkpoints after both.
Precision, gradient checkpointing and resuming are spread over the cases so that every pair of their values occurs, and
each value occurs with every mode and every arm. A resumed case gets SIGTERM in one of its processes during the first
step, saves itself, and is continued. One launch runs all cases that share an engine.
"""

import argparse
import contextlib
import gc
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracking.command import REPOSITORY_ROOT, Preempted, is_main_process, quiet_libraries
from tracking.product import write_text

ARMS: dict[str, tuple[str, ...]] = {
    "full": (),
    "freeze-early": ("--freeze", "early"),
    "freeze-mid": ("--freeze", "mid"),
    "freeze-late": ("--freeze", "late"),
    "train-only late.attn": ("--train_only", "late.attn"),
    "freeze vision+projector": ("--freeze", "vision", "projector"),
}
MASKS: dict[str, tuple[str, ...]] = {"elements": ("--train_elements", "changed", "{start}", "{start}-changed")}
"""Arms with a mask of elements, between the start and a checkpoint beside it; not part of the table."""
MODES: dict[str, dict[str, Any] | None] = {
    "one process": None,
    "LoRA": None,
    "DDP": None,
    "ZeRO-1": {"stage": 1},
    "ZeRO-1, offload": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
    "ZeRO-2": {"stage": 2},
    "ZeRO-2, offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "ZeRO-3": {"stage": 3},
    "ZeRO-3, offload": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
}
"""Mode -> DeepSpeed's `zero_optimization`."""
LAUNCHES = {
    "one": ("one process", "LoRA"),
    "ddp": ("DDP",),
    "zero": tuple(mode for mode, zero in MODES.items() if zero),
}
"""Modes that share processes: one for the first launch, two for the others (where there is one GPU, one)."""
FACTORS = tuple(itertools.product(("fp32", "bf16"), ("off", "reentrant", "non-reentrant"), ("one run", "resumed")))
NUM_STEPS = 2
LAUNCH_TIMEOUT_S = 900
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training run."""

    mode: str
    arm: str
    precision: str
    checkpointing: str
    run: str

    @property
    def name(self) -> str:
        return "-".join(asdict(self).values()).replace(" ", "").replace(",", "-").replace("+", "-")


def all_cases() -> list[Case]:
    """Returns every mode with every arm, the further factors spread evenly over them."""
    cases = []
    for (m, mode), (a, arm) in itertools.product(enumerate(MODES), enumerate(ARMS)):
        precision, checkpointing, run = FACTORS[(m + 5 * a) % len(FACTORS)]
        cases.append(Case(mode=mode, arm=arm, precision=precision, checkpointing=checkpointing, run=run))
    return cases


def num_processes(launch: str, device: str) -> int:
    """Returns how many processes a launch has."""
    if launch == "one":
        return 1
    if device == "cpu":
        return 2
    import torch

    return min(2, torch.cuda.device_count())


def arguments_of(case: Case, work: Path, device: str) -> list[str]:
    """Returns the command line of `train.grpo` for a case."""
    zero = MODES[case.mode]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    bf16_engine = bool(zero) and case.precision == "bf16"
    values: dict[str, Any] = {
        "model_name_or_path": work / ("start-bf16" if bf16_engine else "start"),
        "dtype": "bfloat16" if bf16_engine else "float32",
        "bf16": case.precision == "bf16",
        "prompts": work / "prompts", "split": "rl", "output_dir": work / "runs" / case.name, "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 8 // processes, "num_generations": 4, "max_completion_length": 8, "beta": 0.0,
        "learning_rate": 1e-3, "weight_decay": 0.1, "temperature": 1.0, "logging_steps": 1, "save_steps": 1,
        "report_to": "none", "use_cpu": device == "cpu", "use_peft": case.mode == "LoRA", "lora_r": 4,
        "gradient_checkpointing": case.checkpointing != "off", "ddp_timeout": 300,
    }  # fmt: skip
    if case.mode == "LoRA":
        values["lora_dropout"] = 0  # with dropout, prompts are not shared
    else:
        values["keep_trajectory"] = 1
    if case.checkpointing == "reentrant":
        values["gradient_checkpointing_kwargs"] = '{"use_reentrant": true}'
    if case.mode == "DDP" and case.checkpointing == "reentrant":
        values["abilities"] = "vision"  # reentrant checkpointing under DDP needs every weight in every step
    if zero:
        values["deepspeed"] = work / f"{case.mode}.json"
    words = ARMS[case.arm] if case.arm in ARMS else MASKS[case.arm]
    chosen = [word.format(start=values["model_name_or_path"]) for word in words]
    return [word for name, value in values.items() for word in (f"--{name}", str(value))] + chosen


def deepspeed_settings(zero: dict[str, Any]) -> dict[str, Any]:
    """Returns a configuration that cuts even the smallest tensors, which the default threshold would leave whole."""
    cut = {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    return {
        "zero_optimization": {**zero, **(cut if zero["stage"] == 3 else {})},
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def prepare(work: Path, *, num_layers: int = 6) -> None:
    """Writes prompts and a small model that answers in form, so that rewards differ, in fp32 and in bf16."""
    from PIL import Image

    from data_builders.prompt_sets.prompts import Prompt, write_prompts
    from models.checkpoint import open_checkpoint
    from models.pocket import PocketShape, write_pocket_checkpoint

    (work / "prompts" / "images").mkdir(parents=True)
    prompts = []
    for index, (colour, rgb) in enumerate([("red", (214, 40, 40)), ("blue", (40, 80, 210))] * 4):
        Image.new("RGB", (56, 56), rgb).save(work / "prompts" / "images" / f"{index}.png")
        prompts.append(
            Prompt(
                id=f"i{index}", ability="vision", question="What colour is it ?", answer=colour, answer_kind="text",
                images=(f"images/{index}.png",), response=f"<answer>{colour}</answer>",
            )
        )  # fmt: skip
    for index in range(4):
        prompts.append(
            Prompt(
                id=f"t{index}", ability="reasoning", question=f"What is {index} + 2 ?", answer=str(index + 2),
                answer_kind="number", response=f"<answer>{index + 2}</answer>",
            )
        )  # fmt: skip
    for split in ("sft", "rl"):
        write_prompts(work / "prompts", split, prompts)
    shape = PocketShape(
        num_layers=num_layers, hidden_size=64, mlp_size=96, num_heads=4, num_kv_heads=2, vision_hidden_size=32
    )
    write_pocket_checkpoint(work / "untrained", shape=shape, seed=0)
    from train.sft import main

    with contextlib.redirect_stdout(io.StringIO()):
        main(
            f"--model_name_or_path {work}/untrained --prompts {work}/prompts --split sft --output_dir {work}/warm "
            "--max_steps 30 --per_device_train_batch_size 12 --learning_rate 2e-3 --lr_scheduler_type constant "
            "--save_strategy no --report_to none --bf16 false --gradient_checkpointing false --use_cpu true".split()
        )
    shutil.copytree(work / "warm" / "final", work / "start")
    _write_in_bf16(open_checkpoint(work / "start"), work / "start-bf16")
    for mode, zero in MODES.items():
        if zero:
            (work / f"{mode}.json").write_text(json.dumps(deepspeed_settings(zero)))


def _write_in_bf16(start: Any, directory: Path) -> None:
    from models.checkpoint import WEIGHTS_FILE, cast_bytes
    from models.shards import write_safetensors

    shutil.copytree(start.directory, directory)
    entries = [(name, "BF16", start.tensors[name].shape) for name in start.tensors]
    write_safetensors(directory / WEIGHTS_FILE, entries, lambda name: cast_bytes(start, name, "BF16"))


def run_cases(cases: Sequence[Case], work: Path, device: str) -> None:
    """Runs cases one after the other in this process, which is one of a launch, and records what each shows."""
    from train.running.callbacks import Preemption

    gc.freeze()  # the collection after each case leaves the libraries out
    resumed = False
    watch = Preemption.on_step_end

    def signalled(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if resumed and last and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        watch(self, args, state, control, **kwargs)

    Preemption.on_step_end = signalled  # type: ignore[method-assign]
    for case in cases:
        resumed = case.run == "resumed"
        arguments = arguments_of(case, work, device)
        with released():
            try:
                _train(arguments)
                assert not resumed, f"{case.name}: was not stopped"
            except Preempted:
                assert resumed, f"{case.name}: stopped without a signal"
        if resumed:
            with released():
                _train(arguments)
        gc.freeze()  # what the first cases have imported too
        if is_main_process():
            print(f"done: {case.name}", flush=True)


def _train(arguments: list[str]) -> None:
    from train.grpo import main

    with contextlib.redirect_stdout(io.StringIO()):
        main(arguments)


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Gives back, after a run, what Accelerate and Transformers hold on to for a whole process."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations import deepspeed

    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
        deepspeed._hf_deepspeed_config_weak_ref = None
        gc.collect()


def launch(cases: Sequence[Case], work: Path, device: str) -> None:
    """Starts the processes for each engine and waits for their cases.

    Raises:
        RuntimeError: with the end of the log where a case fails.
    """
    paths = os.pathsep.join([str(REPOSITORY_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": device, "PYTHONPATH": paths}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for name, modes in LAUNCHES.items():
        chosen = [asdict(case) for case in cases if case.mode in modes]
        if not chosen:
            continue
        (work / f"{name}.cases.json").write_text(json.dumps(chosen))
        starter = [sys.executable]
        if name != "one":
            processes = num_processes(name, device)
            starter += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*starter, "-m", "benchmarks.freezing", "--worker", name, "--work", str(work), "--device", device]
        log = work / f"{name}.log"
        with log.open("w") as file:
            done = subprocess.run(
                command,
                cwd=REPOSITORY_ROOT,
                env=environment,
                stdout=file,
                stderr=file,
                timeout=LAUNCH_TIMEOUT_S,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"the launch {name} failed:\n" + "\n".join(log.read_text().splitlines()[-60:]))


def read_case(case: Case, work: Path) -> dict[str, Any]:
    """Returns what a finished case shows, read from its files alone."""
    directory = work / "runs" / case.name
    report = json.loads((directory / "freeze_report.json").read_text())
    run = json.loads((directory / "run.json").read_text())
    trainable = [tensor for tensor in report["tensors"] if not tensor["frozen"]]
    return {
        **asdict(case),
        "directory": directory,
        "num_attempts": len(run["attempts"]),
        "checkpoints": report["checkpoints"],
        "num_frozen": report["num_frozen_tensors"],
        "num_identical": sum(row["num_frozen_identical"] for row in report["blocks"]),
        "num_trainable_elements": report["engine"][0]["num_trainable_elements"],
        "num_state_elements": report["engine"][0]["num_state_elements"],
        "decoder_layers": report["engine"][0]["decoder_layers"],
        "vision_blocks": report["engine"][0]["vision_blocks"],
        "never_moved": report["never_moved"],
        "changed_frac": sum(t["num_changed"] for t in trainable) / sum(t["num_elements"] for t in trainable),
    }


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the measured cases as a Markdown table."""
    lines = [
        "| mode | arm | weights | gradient checkpointing | run | frozen tensors identical | in checkpoints "
        "| elements that train | in optimizer state | backward reaches | changed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['mode']} | {row['arm']} | {row['precision']} | {row['checkpointing']} | {row['run']} "
            f"| {row['num_identical']} of {row['num_frozen']} | {len(row['checkpoints'])} "
            f"| {row['num_trainable_elements']:,} | {row['num_state_elements']:,} | {_reach(row)} "
            f"| {row['changed_frac']:.1%} |"
        )
    return "\n".join(lines)


def _reach(row: dict[str, Any]) -> str:
    vision = f", vision {row['vision_blocks']}" if row["vision_blocks"] else ""
    return f"layers {row['decoder_layers']}{vision}"


def format_page(rows: Sequence[dict[str, Any]], device: str, seconds: float) -> str:
    """Returns the page with the table, its command and where it was measured."""
    from tracking.run import git_state, hardware

    git, machine = git_state(), hardware()
    processor = ", ".join(machine["gpus"]) or f"{machine['num_cpus']} CPU cores"
    num_frozen, identical = (sum(row[key] for row in rows) for key in ("num_frozen", "num_identical"))
    return f"""# Frozen means bit-identical, in every training mode

Written by `python -m benchmarks.freezing --output docs/freezing.md` at commit {git["commit"]}\
{" (with uncommitted changes)" if git["dirty"] else ""}, on {processor}, in {seconds / 60:.0f} min.

Each row is a GRPO run of {NUM_STEPS} steps of a small Qwen2.5-VL (weight decay 0.1) through `train.grpo`; DDP and
ZeRO run on {num_processes("zero", device)} processes with the real engines. {identical:,} of {num_frozen:,} frozen
tensors are bit-identical to the start checkpoint in every saved checkpoint and in `final/`. Prompts are shared: each
is read once for all its replies in a pass ([design.md](design.md#how-a-group-shares-its-prompt)).

- *weights*: bf16 is autocast over fp32 weights, and under ZeRO the bf16 engine with fp32 masters.
- *resumed*: one process got SIGTERM in the first step; the run saved itself, stopped, and was continued.
- *in optimizer state*: elements of Adam's first moment, over all processes, read from the engine.
- *backward reaches*: decoder layers and vision blocks whose activations carried a graph.
- *changed*: share of the trainable elements that differ between start and `final/`.

{format_table(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    parser.add_argument("--worker", choices=list(LAUNCHES), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="folder for the runs; by default a temporary one")
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.worker:
        cases = json.loads((arguments.work / f"{arguments.worker}.cases.json").read_text())
        run_cases([Case(**case) for case in cases], arguments.work, arguments.device)
        return
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases = [case for case in all_cases() if case.mode in arguments.modes]
        begin = time.monotonic()
        prepare(work)
        launch(cases, work, arguments.device)
        page = format_page([read_case(case, work) for case in cases], arguments.device, time.monotonic() - begin)
        print(page)
        if arguments.output:
            write_text(arguments.output, page)


if __name__ == "__main__":
    main()
