"""What do forward, backward and the swap cost at 7B? fp32 weights with bf16 arithmetic, log-probabilities as loss."""

import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.probes import run_probe
from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import (
    CONFIG_7B,
    Shapes,
    model_config,
    peak_bytes,
    random_model,
    release_memory,
    synchronise,
)

FREEZES = {"only-late": ["early", "mid"], "full": []}
NUM_RUNS = 3


def passes(model: Any, tokens: Any, device: str) -> dict[str, float]:
    """Returns the seconds of one forward and one backward pass."""
    import torch

    synchronise()
    begin = time.perf_counter()
    with torch.autocast(device, torch.bfloat16):
        output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens, fused_lm_head=True)
    synchronise()
    middle = time.perf_counter()
    output.log_probs.sum().backward()
    synchronise()
    end = time.perf_counter()
    model.zero_grad(set_to_none=True)
    return {"forward_s": middle - begin, "backward_s": end - middle}


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `shapes_7b`."""
    import numpy as np
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from models.layout import layout_from_config
    from models.pocket import build_tokenizer
    from train.freezing.backward import stop_backward_early
    from train.freezing.freeze import FreezeArguments, apply_freeze, plan_freeze

    config = model_config(CONFIG_7B, shapes, build_tokenizer())
    for name, frozen in FREEZES.items():
        release_memory()
        model = random_model(config, shapes.device, torch.float32).train()
        plan = plan_freeze(layout_from_config(config.to_dict()), FreezeArguments(freeze=frozen))
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        stop_backward_early(model, plan)
        apply_freeze(model, plan)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        tokens = torch.randint(10, 200, (1, shapes.length_7b), device=shapes.device)
        row: dict[str, Any] = {"contender": name, "num_tokens": shapes.length_7b, "out_of_memory": None}
        try:
            runs = [passes(model, tokens, shapes.device) for _ in range(1 + NUM_RUNS)][1:]
            row |= {key: float(np.median([one[key] for one in runs])) for key in runs[0]}
        except torch.OutOfMemoryError as error:
            row["out_of_memory"] = str(error).splitlines()[0]
        row["peak_bytes"] = peak_bytes()
        figures.add("passes", row)
        del model
    run_probe(figures, shapes, shape=shapes.probe_shape_7b, probe="swap", num_problems=1)
