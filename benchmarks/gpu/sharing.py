"""What does reading each prompt once save at 3B and 7B? Weights in bf16, gradient checkpointing, eight replies.

The decoders have 28 layers. Replies are generated once by each kind; forward and backward passes of both kinds are then
taken in turn on the same replies. The optimizer is left out, since it costs both the same.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import (
    CONFIG_3B,
    CONFIG_7B,
    Shapes,
    model_config,
    peak_bytes,
    random_model,
    release_memory,
    synchronise,
)
from benchmarks.shared_prompts import PLAIN, SHARED, Case, choose, make_processor, make_rows, make_trainer

MODELS = {"3b": CONFIG_3B, "7b": CONFIG_7B}
NUM_LAYERS = 28
NUM_LAYERS_SMALL = 3
NUM_ROUNDS = 3


def measure(name: str, case: Case, shapes: Shapes, work_dir: Path) -> dict[str, Any]:
    """Returns the seconds and the peaks of both kinds."""
    import torch

    from models.pocket import build_tokenizer

    tokenizer = build_tokenizer()
    num_layers = NUM_LAYERS_SMALL if shapes.small else NUM_LAYERS
    config = model_config(MODELS[name], shapes, tokenizer, num_layers=num_layers)
    model = random_model(config, shapes.device, torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    trainer = make_trainer(
        model, make_processor(tokenizer, case.num_picture_tokens), case, work_dir / "sharing",
        use_cpu=shapes.device == "cpu", bf16=True, gradient_checkpointing=True,
        max_completion_length=shapes.shared_reply_tokens,
        generation_kwargs={"min_new_tokens": shapes.shared_reply_tokens},
    )  # fmt: skip
    row: dict[str, Any] = {"model": name, "num_parameters": model.num_parameters(), "num_rounds": NUM_ROUNDS}
    row |= {"generate_s": {}, "passes_s": {PLAIN: [], SHARED: []}, "peak_bytes": {}}
    logps = {}
    inputs: dict[str, Any] = {}
    for contender in (SHARED, PLAIN):
        choose(trainer, contender)
        torch.manual_seed(0)
        synchronise()
        begin = time.perf_counter()
        inputs = trainer._generate_and_score_completions(make_rows(case))
        synchronise()
        row["generate_s"][contender] = time.perf_counter() - begin
    for number in range(1 + NUM_ROUNDS):
        for contender in (PLAIN, SHARED) if number % 2 else (SHARED, PLAIN):
            choose(trainer, contender)
            release_memory()
            begin = time.perf_counter()
            trainer.compute_loss(trainer.model, dict(inputs)).backward()
            synchronise()
            seconds = time.perf_counter() - begin
            row["peak_bytes"][contender] = peak_bytes()
            trainer.model.zero_grad(set_to_none=True)
            logps[contender] = trainer._scored
            if number:
                row["passes_s"][contender].append(seconds)
    row["largest_logp_difference"] = float((logps[SHARED] - logps[PLAIN]).abs().max())
    return row


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `sharing`."""
    import torch

    case = Case(name="full", picture_cells=shapes.shared_picture_cells, num_rounds=NUM_ROUNDS)
    figures.note(num_picture_tokens=case.num_picture_tokens, reply_tokens=shapes.shared_reply_tokens)
    for name in MODELS:
        release_memory()
        row: dict[str, Any] = {"model": name, "out_of_memory": None}
        try:
            row |= measure(name, case, shapes, work_dir)
        except torch.OutOfMemoryError as error:
            row["out_of_memory"] = str(error).splitlines()[0]
        figures.add("models", row)
