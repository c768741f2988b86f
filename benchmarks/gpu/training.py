"""What do a step of GRPO and its memory cost, per arm? Through `train.grpo`, beside plain TRL and the plan's forecast.

One process for all contenders: each draws the same weights, takes a few steps and gives its memory back (an fp32 model
of 3B with gradients and Adam's moments takes 56 GiB, so no two fit one GPU). Plain TRL and `full` come first and last.
Weights are fp32 with bf16 arithmetic, since bf16 alone loses updates and DeepSpeed is not needed on one GPU. Memory is
what PyTorch's allocator held at most, per part of a step; the forecast's is without its allowance for CUDA.
"""

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.freeze_cost import PLAIN, train_ours, train_plain
from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import (
    CONFIG_3B,
    SFT,
    Shapes,
    model_config,
    peak_bytes,
    prepare,
    random_model,
    release_memory,
    synchronise,
    write_checkpoint,
)

ARMS: dict[str, list[str]] = {
    PLAIN: [],
    "full": [],
    "freeze-early": ["--freeze", "early"],
    "freeze-mid": ["--freeze", "mid"],
    "freeze-late": ["--freeze", "late"],
    "only-late": ["--freeze", "early", "mid"],
}
VISITS = (PLAIN, "full", "freeze-mid", "only-late", "freeze-early", "freeze-late", "full", PLAIN)
NUM_GENERATIONS = 4
MAX_MEMORY_FRAC = 0.97
"""Of the free memory, for the forecast of `full`; where it does not fit, the decoder gets fewer layers."""
PROMPT_TEXT_TOKENS = 64
"""Of a prompt beside its picture, in the forecast: more than the pocket template's."""


class MeasuredError(Exception):
    """Ends a run after its last step, before anything is written."""


def grpo_words(shapes: Shapes, start: Path, work_dir: Path, *, num_steps: int) -> list[str]:
    """Returns the command line of `train.grpo`: the 3B recipe on one GPU, short replies of a fixed length."""
    settings: dict[str, Any] = {
        "model_name_or_path": start, "prompts": work_dir / "prompts", "split": "rl",
        "max_steps": num_steps, "dtype": "float32", "bf16": True, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": NUM_GENERATIONS, "num_generations": NUM_GENERATIONS, "temperature": 1.0,
        "max_completion_length": shapes.reply_tokens, "beta": 0.0, "loss_type": "dapo", "learning_rate": 1e-6,
        "weight_decay": 0.1, "gradient_checkpointing": True, "save_strategy": "no", "logging_steps": 1,
        "report_to": "none",
    }  # fmt: skip
    if shapes.device == "cpu":
        settings["use_cpu"] = True
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def fixed_length(shapes: Shapes) -> list[str]:
    """Returns the flags that keep Transformers' replies from ending early."""
    return ["--generation_kwargs", json.dumps({"min_new_tokens": shapes.reply_tokens})]


def forecast_of(words: Sequence[str], shapes: Shapes, arm: str, *, config: Path | None = None) -> dict[str, Any]:
    """Returns the plan's bytes of each phase of a step, without its allowance for CUDA's context."""
    from train.planning.forecast import CONTEXT_BYTES
    from train.planning.memory import PHASES
    from train.planning.plan import make_plan

    chosen = [
        *words,
        *ARMS[arm],
        "--output_dir",
        "unused",
        "--prompt_tokens",
        str(shapes.picture_tokens + PROMPT_TEXT_TOKENS),
    ]
    chosen += ["--image_tokens", str(shapes.picture_tokens)]
    if config is not None:
        place = chosen.index("--model_name_or_path")
        chosen[place : place + 2] = ["--layout_config", str(config)]
    (needs,) = make_plan(chosen).forecasts.values()
    return {phase: needs.phase_bytes(phase) - CONTEXT_BYTES for phase in PHASES}


def deepest(words: Sequence[str], shapes: Shapes, work_dir: Path, free_bytes: int) -> tuple[int, dict[str, Any]]:
    """Returns the largest number of decoder layers with which `full` is forecast to fit, and that forecast."""
    from models.pocket import build_tokenizer

    tokenizer = build_tokenizer()
    num_layers = int(model_config(CONFIG_3B, shapes, tokenizer).text_config.num_hidden_layers)
    path = work_dir / "depth"
    for depth in range(num_layers, 2, -1):
        model_config(CONFIG_3B, shapes, tokenizer, num_layers=depth).save_pretrained(path)
        forecast = forecast_of(words, shapes, "full", config=path / "config.json")
        if max(forecast.values()) <= MAX_MEMORY_FRAC * free_bytes:
            return depth, forecast
    raise RuntimeError(f"three layers are forecast to need {max(forecast.values())} bytes; {free_bytes} are free")


class StepClock:
    """Times the parts of every step of a trainer, and reads the peaks of its memory."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def watch(self, trainer: Any) -> None:
        """Hooks a trainer that has not begun; its run ends with `MeasuredError`."""
        from transformers import TrainerCallback

        clock = self
        row: dict[str, Any] = {}
        begin = 0.0

        def take_peak(name: str) -> None:
            import torch

            found = peak_bytes()
            if found is not None:
                row[name] = max(found["allocated"], row.get(name, 0))
                row["reserved_bytes"] = max(found["reserved"], row.get("reserved_bytes", 0))
                torch.cuda.reset_peak_memory_stats()

        class Parts(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                nonlocal begin
                synchronise()
                take_peak("before_peak_bytes")
                row.clear()
                row.update(generate_s=0.0, backward_s=0.0)
                begin = time.perf_counter()

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                take_peak("backward_peak_bytes")

            def on_optimizer_step(self, *_: Any, **__: Any) -> None:
                take_peak("step_peak_bytes")

            def on_step_end(self, *_: Any, **__: Any) -> None:
                synchronise()
                row["step_s"] = time.perf_counter() - begin
                clock.steps.append(dict(row))

            def on_train_end(self, *_: Any, **__: Any) -> None:
                raise MeasuredError

        def timed(work: Callable[..., Any], name: str, peak: str | None) -> Callable[..., Any]:
            def run(*arguments: Any, **options: Any) -> Any:
                synchronise()
                start = time.perf_counter()
                result = work(*arguments, **options)
                synchronise()
                row[name] += time.perf_counter() - start
                if peak is not None:
                    take_peak(peak)
                return result

            return run

        trainer.accelerator.backward = timed(trainer.accelerator.backward, "backward_s", None)
        turn = trainer._generate_single_turn  # TRL 1.16: with the reading of the prompts
        trainer._generate_single_turn = timed(turn, "generate_s", "rollout_peak_bytes")
        trainer.add_callback(Parts())


@contextmanager
def drawn_weights(directory: Path, shapes: Shapes) -> Iterator[None]:
    """Within it, loading a model draws its weights instead, in fp32 and where they are to train.

    They are random either way; reading them from disk for each contender would take longer than its steps.
    """
    import torch
    from transformers import AutoConfig, GenerationConfig

    import models.loading
    import train.running.stage

    def draw(*_: Any, **__: Any) -> Any:
        model = random_model(AutoConfig.from_pretrained(directory), shapes.device, torch.float32)
        model.generation_config = GenerationConfig.from_pretrained(directory)
        return model

    stage: Any = train.running.stage
    read = models.loading.load_model
    models.loading.load_model = stage.load_model = draw
    try:
        yield
    finally:
        models.loading.load_model = stage.load_model = read


def visit(arm: str, words: Sequence[str], output_dir: Path) -> dict[str, Any]:
    """Lets one contender take its steps; running out of memory is a result, too."""
    import torch

    from benchmarks.freezing import released

    clock = StepClock()
    failure = None
    chosen = [*words, *ARMS[arm], "--output_dir", str(output_dir)]
    with released():
        try:
            (train_plain if arm == PLAIN else train_ours)(chosen, clock.watch)
        except MeasuredError:
            pass
        except torch.OutOfMemoryError as error:
            failure = str(error).splitlines()[0]
    release_memory()
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else None
    return {"contender": arm, "steps": clock.steps, "out_of_memory": failure, "held_afterwards_bytes": held}


def summarise(rows: Sequence[dict[str, Any]], num_warm_up: int) -> list[dict[str, Any]]:
    """Returns a row an arm: medians over its steps, ratios to plain TRL and to `full`, and memory beside the forecast.

    Args:
        rows: of `visit`, with the arm's `forecast_bytes` by phase.
        num_warm_up: steps of each visit that do not count for time.
    """
    import numpy as np

    def median(arm: str, name: str) -> float | None:
        steps = [step for row in rows if row["contender"] == arm for step in row["steps"][num_warm_up:]]
        return float(np.median([step[name] for step in steps])) if steps else None

    found = []
    for arm in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == arm]
        summary: dict[str, Any] = {"contender": arm, "num_steps": sum(len(r["steps"][num_warm_up:]) for r in own)}
        for name in ("step_s", "generate_s", "backward_s"):
            summary[name] = median(arm, name)
            for rival in (PLAIN, "full"):
                theirs = median(rival, name)
                both = summary[name] is not None and theirs is not None and theirs > 0
                summary[f"{name.removesuffix('_s')}_ratio_to_{rival.split()[0]}"] = (
                    summary[name] / theirs if both else None
                )
        peaks = [
            value for row in own for step in row["steps"] for key, value in step.items() if key.endswith("peak_bytes")
        ]
        forecast = own[0]["forecast_bytes"]
        summary["peak_bytes"] = max(peaks, default=None)
        reserved = [step["reserved_bytes"] for row in own for step in row["steps"] if "reserved_bytes" in step]
        summary["reserved_bytes"] = max(reserved, default=None)
        summary["forecast_peak_bytes"] = max(forecast.values())
        summary["forecast_to_peak"] = max(forecast.values()) / max(peaks) if peaks else None
        summary["out_of_memory"] = next((row["out_of_memory"] for row in own if row["out_of_memory"]), None)
        found.append(summary)
    return found


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `grpo`."""
    import torch

    figures.note(**prepare(work_dir, shapes))
    start = work_dir / SFT
    num_steps = shapes.num_warm_up + shapes.num_steps
    words = [*grpo_words(shapes, start, work_dir, num_steps=num_steps), *fixed_length(shapes)]
    free_bytes = torch.cuda.mem_get_info()[0] if shapes.device == "cuda" else 2**40
    depth, forecast = deepest(words, shapes, work_dir, free_bytes)
    figures.note(
        num_decoder_layers=depth, free_bytes=free_bytes, full_forecast_bytes=forecast, peak_bytes_of="allocator"
    )
    if depth < json.loads((start / "config.json").read_text())["text_config"]["num_hidden_layers"]:
        start = work_dir / f"{SFT}-{depth}-layers"
        write_checkpoint(start, shapes, num_layers=depth, changed=None)
        release_memory()
        words[words.index("--model_name_or_path") + 1] = str(start)
    forecasts = {arm: forecast_of(words, shapes, arm) for arm in ARMS}
    rows: list[dict[str, Any]] = []
    gc.freeze()  # what is imported by now stays: the many collections between contenders need not look through it
    with drawn_weights(start, shapes):
        for number, arm in enumerate(VISITS):
            begin = time.perf_counter()
            row = visit(arm, words, work_dir / "runs" / f"{number}")
            rows.append({**row, "visit_s": time.perf_counter() - begin, "forecast_bytes": forecasts[arm]})
            figures.note(visits=rows, arms=summarise(rows, shapes.num_warm_up))
            print(f"{arm}: {row['out_of_memory'] or row['steps'][-1]}", flush=True)
