"""What does reading each prompt once save in GRPO? Steps with shared prompts against TRL's own, taken in turn.

    python -m benchmarks.shared_prompts

One model, one batch: a prompt with one picture, eight replies of 64 tokens. Every round takes one step of each kind on
the same weights with the same seed: replies by Transformers, rewards, forward and backward pass, optimizer. Times are
CPU seconds. Ratios are taken within a round; their median is given with a 95 % bootstrap interval. `full` trains
everything; the other arms are compared with themselves without sharing. Before the rounds the loss and the gradients of
both kinds are compared on the same replies; this also warms up. Peak memory is that of a process of its own that takes
one step.

    python -m benchmarks.shared_prompts --case "train-only late"      # one case; the results of the others are kept
    python -m benchmarks.shared_prompts --case "peak memory"          # the peaks alone

Writes `benchmarks/results/shared_prompts.json`.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.freeze_cost import ratio
from tracking.command import REPOSITORY_ROOT, quiet_libraries
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "shared_prompts.json"
NUM_LAYERS = 12
HIDDEN_SIZE = 512
MLP_SIZE = 1408
NUM_GENERATIONS = 8
REPLY_TOKENS = 64
NUM_VISION_BLOCKS = 4
"""Of the decoder's width. A tower as deep as the decoder, as published models have it, would save more."""
CELL = 28
"""Side length in pixels of one vision token."""
PLAIN, SHARED = "plain TRL", "shared prompts"
NOT_SHARED = "the benchmark's contender"
MEMORY = "peak memory"
MEASURES = ("generate_s", "passes_s", "step_s")
"""Replies with rewards, forward and backward pass, and the whole step."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One arm at one size of the picture."""

    name: str
    picture_cells: tuple[int, int]
    """Width and height of the picture in cells; their product is its number of tokens."""
    freeze: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    num_rounds: int
    with_memory: bool = False

    @property
    def num_picture_tokens(self) -> int:
        return math.prod(self.picture_cells)


CASES = (
    Case(name="full", picture_cells=(16, 16), num_rounds=5, with_memory=True),
    Case(name="freeze vision+projector", picture_cells=(16, 16), freeze=("vision", "projector"), num_rounds=3),
    Case(name="train-only late", picture_cells=(16, 16), train_only=("late",), num_rounds=3),
    Case(
        name="full, large picture", picture_cells=(32, 32), gradient_checkpointing=True, num_rounds=3, with_memory=True
    ),
)


def differing(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between replies."""
    return [float(len(set(reply[0]["content"]))) for reply in completions]


def make_model(case: Case) -> tuple[Any, Any]:
    """Returns a random Qwen2.5-VL whose tower is as wide as its decoder, and its processor."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from models.pocket import PocketShape, build_config, build_tokenizer

    tokenizer = build_tokenizer()
    shape = PocketShape(
        num_layers=NUM_LAYERS, hidden_size=HIDDEN_SIZE, mlp_size=MLP_SIZE, num_vision_blocks=NUM_VISION_BLOCKS,
        vision_hidden_size=HIDDEN_SIZE, vision_mlp_size=MLP_SIZE,
    )  # fmt: skip
    config = build_config(shape, tokenizer)
    config.text_config.max_position_embeddings = 4096
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config), make_processor(tokenizer, case.num_picture_tokens)


def make_processor(tokenizer: Any, max_picture_tokens: int) -> Any:
    """Returns a processor for pictures of up to so many tokens."""
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    from models.pocket import CHAT_TEMPLATE

    pixels = {"min_pixels": CELL**2, "max_pixels": max_picture_tokens * CELL**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


def make_trainer(model: Any, processor: Any, case: Case, directory: Path, **settings: Any) -> Any:
    """Returns the suite's trainer with the case's parts frozen."""
    from datasets import Dataset
    from trl import GRPOConfig

    from models.layout import layout_from_config
    from train.freezing.backward import stop_backward_early
    from train.freezing.freeze import FreezeArguments, apply_freeze, plan_freeze
    from train.running.trainers import WatchedGRPOTrainer

    arguments = FreezeArguments(freeze=list(case.freeze), train_only=list(case.train_only))
    plan = plan_freeze(layout_from_config(model.config.to_dict()), arguments)
    stop_backward_early(model, plan)
    apply_freeze(model, plan)
    values: dict[str, Any] = {
        "output_dir": str(directory), "per_device_train_batch_size": NUM_GENERATIONS,
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": REPLY_TOKENS, "generation_kwargs": {"min_new_tokens": REPLY_TOKENS}, "beta": 0.0,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": case.gradient_checkpointing,
        "report_to": "none", "loss_type": "dapo",
    }  # fmt: skip
    trainer: Any = WatchedGRPOTrainer(
        model,
        reward_funcs=differing,
        args=GRPOConfig(**(values | settings)),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows(case)]),
        processing_class=processor,
    )
    assert trainer.not_shared is None, trainer.not_shared
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def make_rows(case: Case) -> list[dict[str, Any]]:
    """Returns a prompt with one picture of noise, once per reply."""
    import numpy as np
    from PIL import Image

    width, height = (cells * CELL for cells in case.picture_cells)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    question = "How many objects are there ? What colour is the object in the centre ? What shape is it ? Where is it ?"
    row = {"prompt": [{"role": "user", "content": question}], "images": [Image.fromarray(noise)]}
    return [row] * NUM_GENERATIONS


def choose(trainer: Any, contender: str) -> None:
    """Makes the trainer compute as TRL does, or with shared prompts."""
    trainer.not_shared = None if contender == SHARED else NOT_SHARED


def take_step(trainer: Any, rows: list[dict[str, Any]], optimizer: Any, seed: int) -> dict[str, float]:
    """Takes one optimizer step and returns the CPU seconds of its parts."""
    import torch

    torch.manual_seed(seed)
    begin = time.process_time()
    inputs = trainer._generate_and_score_completions(rows)
    replied = time.process_time()
    trainer.compute_loss(trainer.model, inputs).backward()
    passed = time.process_time()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "generate_s": replied - begin,
        "passes_s": passed - replied,
        "step_s": time.process_time() - begin,
    }


def compare_results(trainer: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the relative differences of loss and gradients between the two, on the same replies."""
    import torch

    torch.manual_seed(0)
    inputs = trainer._generate_and_score_completions(rows)
    found = {}
    for contender in (PLAIN, SHARED):
        choose(trainer, contender)
        loss = trainer.compute_loss(trainer.model, dict(inputs))
        loss.backward()
        gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
        found[contender] = loss.item(), torch.cat([gradient.reshape(-1) for gradient in gradients])
        trainer.model.zero_grad(set_to_none=True)
    (loss, gradient), (ours, our_gradient) = found[PLAIN], found[SHARED]
    return {
        "loss_difference": abs(ours - loss) / max(abs(loss), 1e-8),
        "gradient_difference": float((our_gradient - gradient).norm() / gradient.norm()),
    }


def compare(trainer: Any, rows: list[dict[str, Any]], num_rounds: int, learning_rate: float = 1e-6) -> dict[str, Any]:
    """Takes steps of both kinds in turn."""
    import numpy as np
    import torch

    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    measured: dict[str, list[dict[str, float]]] = {PLAIN: [], SHARED: []}
    for number in range(num_rounds):
        for contender in (PLAIN, SHARED) if number % 2 else (SHARED, PLAIN):
            choose(trainer, contender)
            measured[contender].append(take_step(trainer, rows, optimizer, seed=number))
    result: dict[str, Any] = {"num_rounds": num_rounds}
    for measure in MEASURES:
        times = {contender: [step[measure] for step in steps] for contender, steps in measured.items()}
        result[measure] = {contender: float(np.median(values)) for contender, values in times.items()}
        result[f"{measure.removesuffix('_s')}_ratio"] = ratio(times[SHARED], times[PLAIN])
    return result


def measure_case(case: Case, directory: Path) -> dict[str, Any]:
    """Measures one case."""
    import torch

    model, processor = make_model(case)
    trainer = make_trainer(model, processor, case, directory)
    rows = make_rows(case)
    found: dict[str, Any] = {
        "case": case.name,
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_threads": torch.get_num_threads(),
        "num_picture_tokens": case.num_picture_tokens,
        "gradient_checkpointing": case.gradient_checkpointing,
        **compare_results(trainer, rows),
    }
    found |= compare(trainer, rows, case.num_rounds)
    return found


def peak_of(case: Case, contender: str) -> float:
    """Returns the peak memory in MiB of a process that takes one step."""
    command = [sys.executable, "-m", "benchmarks.shared_prompts", "--case", case.name, "--worker", contender]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender}, {case.name}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def take_one_step(case: Case, contender: str, directory: Path) -> float:
    """Returns the peak memory in MiB of this process (Linux), which has done nothing else."""
    import torch

    model, processor = make_model(case)
    trainer = make_trainer(model, processor, case, directory)
    choose(trainer, contender)
    optimizer = torch.optim.AdamW([parameter for parameter in trainer.model.parameters() if parameter.requires_grad])
    take_step(trainer, make_rows(case), optimizer, seed=0)
    # Not getrusage, whose maximum a child takes over from its parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["VmHWM"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    names = [*(case.name for case in CASES), MEMORY]
    parser.add_argument("--case", choices=names, help="measure only this case, or only the peak memory")
    parser.add_argument("--worker", choices=[PLAIN, SHARED], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    cases = [case for case in CASES if arguments.case in (None, case.name)]
    with tempfile.TemporaryDirectory() as directory:
        if arguments.worker:
            print(take_one_step(cases[0], arguments.worker, Path(directory)))
            return
        rows = {}
        for case in cases:
            rows[case.name] = measure_case(case, Path(directory))
            print(format_row(rows[case.name]), flush=True)
    memory = {}
    for case in CASES:
        if case.with_memory and arguments.case in (None, MEMORY):
            peaks = memory[case.name] = {contender: peak_of(case, contender) for contender in (PLAIN, SHARED)}
            print(f"{case.name}: peak {peaks[SHARED]:.0f} of {peaks[PLAIN]:.0f} MiB", flush=True)
    if arguments.case is not None:
        kept_rows, kept_memory = read_result(arguments.result)
        rows, memory = kept_rows | rows, kept_memory | memory
    result = {
        "command": "python -m benchmarks.shared_prompts",
        "hardware": hardware(),
        "model": f"random Qwen2.5-VL, {NUM_LAYERS} decoder layers and {NUM_VISION_BLOCKS} vision blocks of width "
        f"{HIDDEN_SIZE}, fp32",
        "num_generations": NUM_GENERATIONS,
        "reply_tokens": REPLY_TOKENS,
        "rows": [rows[case.name] for case in CASES if case.name in rows],
        "peak_memory_mib": memory,
    }
    write_text(arguments.result, json.dumps(result, indent=1) + "\n")


def read_result(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """Returns the rows of a result file by case, and the peaks of memory; nothing without a file."""
    if not path.is_file():
        return {}, {}
    result = json.loads(path.read_text(encoding="utf-8"))
    return {row["case"]: row for row in result["rows"]}, result["peak_memory_mib"]


def format_row(row: dict[str, Any]) -> str:
    parts = [f"{row['case']}, {row['num_picture_tokens']} picture tokens:"]
    for measure, words in zip(MEASURES, ("replies", "forward and backward", "step"), strict=True):
        found = row[f"{measure.removesuffix('_s')}_ratio"]
        seconds = row[measure]
        parts.append(
            f"{words} {seconds[SHARED]:.2f} s of {seconds[PLAIN]:.2f} s, {found['median']:.2f} "
            f"[{found['low']:.2f}, {found['high']:.2f}];"
        )
    parts.append(f"gradients differ by {row['gradient_difference']:.1e}")
    return " ".join(parts)


if __name__ == "__main__":
    main()
