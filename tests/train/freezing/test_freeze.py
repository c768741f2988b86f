"""Freezing: which parameters are chosen, and the proof that they stayed, down to one bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.blocks import resolve
from models.checkpoint import Checkpoint, open_checkpoint
from models.layout import Layout
from models.loading import load_model
from models.shards import write_safetensors
from train.freezing.freeze import (
    FreezeArguments,
    apply_freeze,
    compare_tensors,
    count_blocks,
    find_breaches,
    format_freeze_table,
    frozen_digests,
    never_moved,
    plan_freeze,
    summarise_changes,
)


def names_of(layout: Layout, *expressions: str) -> set[str]:
    partition = plan_freeze(layout, FreezeArguments()).partition
    return set(resolve(expressions, layout, partition).names)


def rewrite(directory: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Checkpoint:
    """Writes a checkpoint's weights anew, each tensor as `change` returns it, in the dtype it returns."""
    checkpoint = open_checkpoint(directory)
    spelled = {torch.float32: "F32", torch.bfloat16: "BF16"}
    changed = {
        stored.name_on_disk: change(name, checkpoint.tensor(name)) for name, stored in checkpoint.tensors.items()
    }
    entries = [(name, spelled[tensor.dtype], tuple(tensor.shape)) for name, tensor in changed.items()]
    write_safetensors(
        directory / "new.safetensors",
        entries,
        lambda name: changed[name].contiguous().view(torch.uint8).numpy().tobytes(),
    )
    (directory / "new.safetensors").replace(directory / "model.safetensors")
    return open_checkpoint(directory)


def test_freezing_a_block_leaves_everything_else_to_train(pocket_layout: Layout) -> None:
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid"]))
    assert set(plan.frozen) == names_of(pocket_layout, "mid")
    assert set(plan.frozen) | set(plan.trainable) == set(pocket_layout.parameters)
    assert not set(plan.frozen) & set(plan.trainable)


def test_training_only_a_block_freezes_everything_else(pocket_layout: Layout) -> None:
    plan = plan_freeze(pocket_layout, FreezeArguments(train_only=["late.attn", "projector"]))
    assert set(plan.trainable) == names_of(pocket_layout, "late.attn", "projector")


def test_always_frozen_regions_are_frozen_with_either_option(pocket_layout: Layout) -> None:
    always = ["vision", "embed"]
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["early"], always_freeze=always))
    assert set(plan.frozen) == names_of(pocket_layout, "early", *always)
    plan = plan_freeze(pocket_layout, FreezeArguments(train_only=["late", "vision"], always_freeze=always))
    assert set(plan.trainable) == names_of(pocket_layout, "late")
    plan = plan_freeze(pocket_layout, FreezeArguments(always_freeze=always))
    assert set(plan.frozen) == names_of(pocket_layout, *always)


def test_both_options_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match=r"freeze \['mid'\] and train_only \['late'\] are both given"):
        FreezeArguments(freeze=["mid"], train_only=["late"])


@pytest.mark.parametrize(
    "arguments",
    [
        FreezeArguments(freeze=["llm", "vision", "projector", "embed", "norm"]),
        FreezeArguments(train_only=["vision"], always_freeze=["vision"]),
    ],
)
def test_freezing_everything_is_refused(pocket_layout: Layout, arguments: FreezeArguments) -> None:
    with pytest.raises(ValueError, match="leave nothing to train"):
        plan_freeze(pocket_layout, arguments)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("midd", "did you mean 'mid'"),
        ("llm:99", "out of range"),
        ("vision.attn", "only decoder layers"),
        ("", "is unknown"),
    ],
)
@pytest.mark.parametrize("option", ["freeze", "train_only", "always_freeze"])
def test_an_expression_that_names_nothing_is_refused(
    pocket_layout: Layout, option: str, expression: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_freeze(pocket_layout, FreezeArguments(**{option: [expression]}))


def test_the_table_counts_every_parameter_once(pocket_layout: Layout) -> None:
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid", "late.mlp"]))
    counts = {count.block: count for count in count_blocks(plan)}
    assert sum(count.num_elements for count in counts.values()) == pocket_layout.num_elements
    assert sum(count.num_tensors for count in counts.values()) == len(pocket_layout.parameters)
    assert [counts[block].state for block in ("early", "mid", "late")] == ["trains", "frozen", "trains in part"]
    trainable = sum(pocket_layout.parameters[name].num_elements for name in plan.trainable)
    assert sum(count.num_trainable_elements for count in counts.values()) == trainable
    assert f"{trainable:,}" in format_freeze_table(plan).splitlines()[-1]


def test_freezing_a_tied_head_says_that_it_is_the_embedding(pocket_layout: Layout) -> None:
    assert pocket_layout.tied
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["head"]))
    assert set(plan.frozen) == names_of(pocket_layout, "embed")
    assert "note: head: embeddings are tied" in format_freeze_table(plan)
    assert "note" not in format_freeze_table(plan_freeze(pocket_layout, FreezeArguments(freeze=["mid"])))


def test_a_frozen_model_gets_gradients_only_where_it_trains(pocket_checkpoint: Path, pocket_layout: Layout) -> None:
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["early", "vision"]))
    model = load_model(pocket_checkpoint)
    apply_freeze(model, plan)
    tokens = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=tokens, labels=tokens).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not with_gradient & set(plan.frozen)
    assert with_gradient == set(plan.trainable) - names_of(pocket_layout, "projector")  # no picture here
    apply_freeze(model, plan_freeze(pocket_layout, FreezeArguments()))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_identical_checkpoints_hold_no_breach(pocket_checkpoint: Path, copy_of: Callable[[str], Path]) -> None:
    start = open_checkpoint(pocket_checkpoint)
    assert find_breaches(start, open_checkpoint(copy_of("copy")), frozen_digests(start, start.tensors)) == []


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_flipped_bit_is_found_in_exactly_its_tensor(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path], flipped: Callable[..., None],
    place: str, bit: int,
) -> None:  # fmt: skip
    start = open_checkpoint(pocket_checkpoint)
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid"]))
    digests = frozen_digests(start, plan.frozen)
    saved = copy_of("saved")
    victim = plan.frozen[0 if place == "first" else -1]
    flipped(saved, victim, byte=0 if place == "first" else start.tensors[victim].num_bytes - 1, bit=bit)
    flipped(saved, plan.trainable[0])
    assert find_breaches(start, open_checkpoint(saved), digests) == [victim]
    changes = {change.name: change for change in compare_tensors(start, open_checkpoint(saved), plan)}
    assert [name for name, change in changes.items() if change.num_changed] == [
        name for name in pocket_layout.parameters if name in (victim, plan.trainable[0])
    ]
    assert changes[victim].num_changed == 1 and changes[victim].frozen


def test_a_frozen_tensor_that_is_missing_is_a_breach(pocket_checkpoint: Path) -> None:
    start = open_checkpoint(pocket_checkpoint)
    victim = next(iter(start.tensors))
    lacking = Checkpoint(
        directory=start.directory,
        family=start.family,
        config=start.config,
        tensors={name: stored for name, stored in start.tensors.items() if name != victim},
    )
    assert find_breaches(start, lacking, frozen_digests(start, start.tensors)) == [victim]


def test_a_bf16_start_saved_as_fp32_proves_after_casting(copy_of: Callable[[str], Path], pocket_layout: Layout) -> None:
    start = rewrite(copy_of("start"), lambda _, tensor: tensor.bfloat16())
    victim = next(iter(pocket_layout.parameters))
    masters = copy_of("masters")
    (masters / "model.safetensors").write_bytes((start.directory / "model.safetensors").read_bytes())
    saved = rewrite(masters, lambda _, tensor: tensor.float())
    digests = frozen_digests(start, start.tensors)
    assert {stored.dtype for stored in saved.tensors.values()} == {"F32"}
    assert find_breaches(start, saved, digests) == []
    one_step_up = rewrite(masters, lambda name, tensor: tensor * (1 + 2**-7) if name == victim else tensor)
    assert find_breaches(start, one_step_up, digests) == [victim]


def test_changed_shares_are_those_numpy_counts(
    pocket_checkpoint: Path, pocket_layout: Layout, copy_of: Callable[[str], Path]
) -> None:
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid"]))
    moving = names_of(pocket_layout, "early", "vision")
    rng = np.random.default_rng(0)
    masks = {name: rng.random(pocket_layout.parameters[name].shape) < 0.3 for name in pocket_layout.parameters}

    def nudge(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.from_numpy(masks[name]), tensor + 1.0, tensor) if name in moving else tensor

    start, end = open_checkpoint(pocket_checkpoint), rewrite(copy_of("end"), nudge)
    changes = compare_tensors(start, end, plan)
    for change in changes:
        expected = int((start.tensor(change.name).numpy() != end.tensor(change.name).numpy()).sum())
        assert change.num_changed == expected
        assert (expected > 0) == (change.name in moving)
        assert change.changed_frac == expected / pocket_layout.parameters[change.name].num_elements
    assert set(never_moved(changes)) == set(plan.trainable) - moving
    summary = {row["block"]: row for row in summarise_changes(changes)}
    early = [change for change in changes if change.block == "early"]
    assert summary["early"]["changed_frac"] == sum(c.num_changed for c in early) / sum(c.num_elements for c in early)
    assert summary["mid"]["changed_frac"] == 0
    assert summary["mid"]["num_frozen_identical"] == summary["mid"]["num_frozen"] == len(plan.frozen)
    assert sum(row["num_elements"] for row in summary.values()) == pocket_layout.num_elements


def test_minus_zero_is_another_bit_pattern_than_zero(
    pocket_layout: Layout, pocket_checkpoint: Path, copy_of: Callable[[str], Path]
) -> None:
    victim = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid"])).frozen[0]
    start = rewrite(copy_of("start"), lambda name, tensor: tensor * 0 if name == victim else tensor)
    end = rewrite(copy_of("end"), lambda name, tensor: tensor.abs() * -0.0 if name == victim else tensor)
    assert torch.equal(start.tensor(victim), end.tensor(victim))
    assert victim in find_breaches(start, end, frozen_digests(start, start.tensors))
