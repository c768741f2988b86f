"""Does what is frozen stay, and does the rest train? One optimizer step per block of the small random copy.

One process on a CPU. That the same holds under DDP and ZeRO is tested for every family (`docs/families.md`).
"""

import copy
from typing import TYPE_CHECKING, Any

from models.adapters.opening import merge_adapter_of
from models.blocks import BLOCKS
from models.check.outcome import Outcome, absent, fails, holds, within
from models.check.small import PICTURES, QUESTIONS, Small
from models.checkpoint import open_checkpoint, write_like
from models.layout import stored_tensors
from models.loading import load_model
from train.freezing.adapters import adapter_breaches, add_adapters, plan_adapters
from train.freezing.backward import GraphWitness, stop_backward_early
from train.freezing.freeze import (
    FreezeArguments,
    FreezePlan,
    apply_freeze,
    broken_tensors,
    compare_tensors,
    never_moved,
    plan_freeze,
)
from train.planning.memory import Engine, held_items, tensors_in_memory

if TYPE_CHECKING:
    import torch

LEARNING_RATE = 1e-3
LORA_RANK = 4
LOGITS_TOLERANCE = 1e-4
SHARING_TOLERANCE = 1e-5
"""Relative; of a gradient that is a rounding error itself, relative to a hundredth of the largest."""
NUM_REPLIES = 4
NUM_REPLY_TOKENS = 10


def take_step(model: Any, small: Small) -> "torch.optim.Optimizer":
    """Takes one step of AdamW on what requires a gradient, and returns the optimizer, its gradients kept."""
    import torch

    batch = small.batch()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.1)
    model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    optimizer.step()
    return optimizer


def trained_copy(small: Small, plan: FreezePlan) -> tuple[Any, "torch.optim.Optimizer"]:
    """Returns a copy of the model after one step, with everything that a run's first step checks.

    Raises:
        RuntimeError: if the backward pass reached too far or not far enough.
    """
    model = small.another().train()
    stop_backward_early(model, plan)
    apply_freeze(model, plan)
    witness = GraphWitness(model, plan, base=model)
    optimizer = take_step(model, small)
    witness.check()
    return model, optimizer


def check_freezing(small: Small) -> Outcome:
    """Freezes each block and region in turn: frozen tensors must keep their bits, all others must move."""
    import torch

    start = stored_tensors(small.model)
    sees = small.no_prompts is None and not small.family.text_only
    still = {p.name for p in small.layout if p.region in ("vision", "projector")} if not sees else set()
    blocks = [*BLOCKS, *small.regions]
    for block in blocks:
        plan = plan_freeze(small.layout, FreezeArguments(freeze=[block]))
        model, _ = trained_copy(small, plan)
        same = {name for name, tensor in stored_tensors(model).items() if torch.equal(tensor, start[name])}
        if moved := [name for name in plan.frozen if name not in same]:
            return fails("freezing", f"{moved[0]} changed although {block} is frozen ({len(moved)} such)")
        if stuck := [name for name in plan.trainable if name in same and name not in still]:
            return fails("freezing", f"{stuck[0]} did not move although it trains ({len(stuck)} such, {block} frozen)")
    proof = _save_and_compare(small)
    if proof is not None:
        return proof
    without = "" if not still else "; without pictures, since no prompt can be rendered"
    return holds("freezing", f"{', '.join(blocks)} frozen in turn: frozen bits equal, all else moves{without}")


def _save_and_compare(small: Small) -> Outcome | None:
    """Saves a trained model as a run does and proves it from the files; None if the proof succeeds."""
    import torch

    plan = plan_freeze(small.layout, FreezeArguments(freeze=["mid"]))
    model, _ = trained_copy(small, plan)
    raw, final = small.folder / "raw", small.folder / "final"
    model.save_pretrained(raw)
    final.mkdir()
    start = open_checkpoint(small.directory)
    write_like(final, start=start, weights=open_checkpoint(raw))
    changes = compare_tensors(start, open_checkpoint(final), plan)
    if broken := broken_tensors(changes):
        return fails("freezing", f"{broken[0]} is frozen in memory and differs once saved ({len(broken)} such)")
    saved = open_checkpoint(final)
    if wrong := [name for name, held in stored_tensors(model).items() if not torch.equal(saved.tensor(name), held)]:
        return fails("freezing", f"{wrong[0]} is saved otherwise than it is held in memory ({len(wrong)} such)")
    return None


def check_lora(small: Small) -> Outcome:
    """Trains adapters on every decoder layer outside `mid`, merges them, and compares files and logits."""
    import torch
    from trl import ModelConfig

    config = ModelConfig(use_peft=True, lora_r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0)
    freeze = FreezeArguments(freeze=["mid"])
    plan = plan_adapters(plan_freeze(small.layout, freeze), freeze, config)
    base = small.another().train()
    stop_backward_early(base, plan)
    model: Any = add_adapters(base, plan, config, autocast_adapter_dtype=True)
    for _ in range(2):  # the first step moves only B, which begins at zero
        take_step(model, small)
        model.zero_grad()
    adapter, final = small.folder / "adapter", small.folder / "merged"
    model.save_pretrained(adapter)
    if breaches := adapter_breaches(adapter, plan):
        return fails("LoRA", f"the saved adapter has {breaches[0]} against the plan ({len(breaches)} such)")
    start = open_checkpoint(small.directory)
    final.mkdir()
    write_like(final, start=start, weights=merge_adapter_of(adapter, start))
    changes = compare_tensors(start, open_checkpoint(final), plan)
    if broken := broken_tensors(changes):
        return fails("LoRA", f"{broken[0]} has no adapter and changed ({len(broken)} such)")
    if still := never_moved(changes):
        return fails("LoRA", f"{still[0]} has an adapter and did not move ({len(still)} such)")
    batch = small.batch()
    merged = load_model(final, dtype="float32").eval()
    with torch.inference_mode():
        adapted, joined = (each.eval()(**batch, use_cache=False).logits for each in (model, merged))
    error = float(((adapted - joined) * batch["attention_mask"][..., None]).abs().max() / joined.abs().max())
    return within("LoRA", error, LOGITS_TOLERANCE, f"{len(plan.trainable)} adapted weights; merged and adapted logits")


def check_plan(small: Small) -> Outcome:
    """Compares the bytes that `train.plan` reports with those of the weights, gradients and optimizer in memory."""
    without_gradient = _tower(small) if small.no_prompts is not None else []
    plan = plan_freeze(small.layout, FreezeArguments(freeze=["mid", *without_gradient]))
    model, optimizer = trained_copy(small, plan)
    held = {
        "weights": list(model.parameters()),
        "gradients": [parameter.grad for parameter in model.parameters() if parameter.grad is not None],
        "optimizer state": [value for state in optimizer.state.values() for value in state.values()],
    }
    tensors = tensors_in_memory(plan, weight_bytes=4)
    for item in held_items(tensors, Engine(), 0):
        found = sum(tensor.numel() * tensor.element_size() for tensor in held[item.name])
        if found != item.num_bytes:
            return fails("plan", f"{item.name}: planned {item.num_bytes:,} bytes, in memory {found:,}")
    return holds("plan", "weights, gradients and optimizer state have the planned bytes")


def _tower(small: Small) -> list[str]:
    return [region for region in ("vision", "projector") if region in small.regions]


def check_sharing(small: Small) -> Outcome:
    """Compares loss and gradients of a GRPO step that reads each prompt once with TRL's own step."""
    import torch
    from datasets import Dataset
    from PIL import Image
    from trl import GRPOConfig

    from train.running.trainers import WatchedGRPOTrainer
    from train.sharing.models import obstacle

    if small.no_prompts is not None:
        return absent("sharing", small.no_prompts)
    model = small.another()
    if (reason := obstacle(model)) is not None:
        return absent("sharing", reason)
    sees = not small.family.text_only
    pictures = [[Image.open(small.pictures[number]).convert("RGB")] for number in (0, len(PICTURES) - 1)]
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": question}], **({"images": own} if sees else {})}
        for question, own in zip(QUESTIONS, pictures, strict=True)
        for _ in range(NUM_REPLIES)
    ]
    arguments = GRPOConfig(
        output_dir=str(small.folder / "grpo"), per_device_train_batch_size=len(rows), num_generations=NUM_REPLIES,
        max_completion_length=NUM_REPLY_TOKENS, report_to="none", use_cpu=True, bf16=False, beta=0.0,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer: Any = WatchedGRPOTrainer(
        model,
        reward_funcs=_uneven,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=copy.copy(small.processor),
    )
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    torch.manual_seed(0)
    batch = trainer._generate_and_score_completions([dict(row) for row in rows])
    lengths = torch.arange(1, len(rows) + 1) % NUM_REPLY_TOKENS + 1  # as if replies had ended at different places
    batch["completion_mask"] *= torch.arange(batch["completion_mask"].shape[1]) < lengths[:, None]
    batch["advantages"] = torch.linspace(-1, 1, len(rows))
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    found = []
    for reason in ("plain, for comparison", None):
        trainer.not_shared = reason
        model.zero_grad()
        read: list[int] = []
        embeddings = model.get_input_embeddings()
        counting = embeddings.register_forward_hook(lambda _, inputs, __, read=read: read.append(inputs[0].numel()))
        loss = trainer.compute_loss(model, dict(batch))
        counting.remove()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients, sum(read)))
    (plain_loss, plain, num_plain), (shared_loss, shared, num_shared) = found
    if num_shared >= num_plain:
        return fails("sharing", f"{num_shared} tokens were read with shared prompts, and {num_plain} without")
    largest = max(float(gradient.norm()) for gradient in plain.values())
    errors = [abs(shared_loss - plain_loss) / max(abs(plain_loss), 1e-3)]
    for name, expected in plain.items():
        distance = float((shared[name] - expected).norm())
        errors.append(distance / max(float(expected.norm()), 1e-2 * largest))
    detail = f"loss and {len(plain)} gradients of {len(rows)} replies to {len(QUESTIONS)} prompts are TRL's"
    return within("sharing", max(errors), SHARING_TOLERANCE, detail)


def _uneven(completions: list[Any], **_: Any) -> list[float]:
    return [float(number) for number in range(len(completions))]
