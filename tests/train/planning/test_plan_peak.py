"""The peak of memory in a step, planned and measured: on the CPU from allocations, on a GPU by its own count."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from models.pocket import PocketShape, write_pocket_checkpoint
from train.planning.forecast import CONTEXT_BYTES
from train.planning.memory import BACKWARD
from train.planning.plan import Plan, make_plan

LOWER = ["embed", "early", "mid"]
PASS = ("--gradient_accumulation_steps", 2, "--use_vllm", "true", "--vllm_mode", "server", "--image_tokens", 0)
"""A step of two passes, and no sampling here."""


def write_grpo(directory: Path) -> Path:
    path = directory / "grpo.yaml"
    path.write_text(yaml.safe_dump({"split": "rl", "dtype": "float32", "bf16": True, "num_generations": 4}))
    return path


def plan_of(*words: object) -> Plan:
    return make_plan([str(word) for word in words])


def two_passes(model: Any, *, device: str, num_rows: int, length: int, autocast: bool) -> None:
    """Log-probabilities and their gradients, as TRL's GRPO trainer computes them."""
    import torch

    tokens = torch.randint(0, 300, (num_rows, length), device=device)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            output = model(input_ids=tokens, attention_mask=mask, labels=tokens, fused_lm_head=True)
        output.log_probs.sum().backward()
        del output


def trained_model(checkpoint: Path, of_run: Plan, *, device: str) -> tuple[Any, Any]:
    """Returns the planned model, frozen as planned, and its optimizer."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from models.loading import load_model

    model: Any = load_model(checkpoint, dtype=torch.float32).train().to(device)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.enable_input_require_grads = lambda: None  # as train/freezing/backward.py has it
    (needs,) = of_run.forecasts.values()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in set(needs.plan.frozen))
    if of_run.recipe.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bf16", "checkpointing", "frozen"),
    [(True, False, []), (True, True, LOWER), (False, True, []), (False, False, LOWER)],
)
def test_the_peak_of_a_step_on_the_cpu_is_predicted(
    tmp_path: Path, bf16: bool, checkpointing: bool, frozen: list[str]
) -> None:
    from torch.profiler import ProfilerActivity, profile

    shape = PocketShape(num_layers=6, hidden_size=256, num_heads=8, num_kv_heads=2, mlp_size=1024)
    write_pocket_checkpoint(tmp_path / "checkpoint", shape=shape, seed=0)
    of_run = plan_of(
        *("--config", write_grpo(tmp_path), "--model_name_or_path", tmp_path / "checkpoint"),
        *("--freeze", "vision", "projector", *frozen), *PASS, "--gradient_checkpointing", checkpointing, "--bf16", bf16,
        *("--prompt_tokens", 40, "--max_completion_length", 88, "--per_device_train_batch_size", 8),
    )  # fmt: skip
    model, optimizer = trained_model(tmp_path / "checkpoint", of_run, device="cpu")
    shown = {"device": "cpu", "num_rows": 8, "length": 128, "autocast": bf16}
    two_passes(model, **shown)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        two_passes(model, **shown)
    # The only list of allocations in their order (torch 2.15).
    events = recorded.profiler.kineto_results.events()
    allocated = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    (needs,) = of_run.forecasts.values()
    held = sum(item.num_bytes for item in needs.items if item.name in ("weights", "optimizer state"))
    predicted = needs.phase_bytes(BACKWARD) - CONTEXT_BYTES - held
    # Without Triton, TRL's backward pass over a tile makes seven more of it in fp32, as wide as the vocabulary.
    predicted += 7 * 4 * 8 * 128 * of_run.model.vocabulary
    assert predicted == pytest.approx(peak, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_step_on_a_gpu_is_predicted_within_15_percent(tmp_path: Path, checkpointing: bool) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    shape = PocketShape(num_layers=12, hidden_size=1024, num_heads=8, num_kv_heads=2, mlp_size=4096)
    write_pocket_checkpoint(tmp_path / "checkpoint", shape=shape, seed=0)
    of_run = plan_of(
        *("--config", write_grpo(tmp_path), "--model_name_or_path", tmp_path / "checkpoint"),
        *("--freeze", "vision", "projector"),
        *PASS, "--gradient_checkpointing", checkpointing,
        *("--prompt_tokens", 192, "--max_completion_length", 320, "--per_device_train_batch_size", 8),
    )  # fmt: skip
    model, optimizer = trained_model(tmp_path / "checkpoint", of_run, device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        two_passes(model, device="cuda", num_rows=8, length=512, autocast=True)
        measured = torch.cuda.max_memory_allocated()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    (needs,) = of_run.forecasts.values()
    assert needs.phase_bytes(BACKWARD) - CONTEXT_BYTES == pytest.approx(measured, rel=0.15)
