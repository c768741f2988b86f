"""Does backward stop at the lowest parameter that trains? Seen on the activations themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from models.layout import Layout
from models.loading import load_model, load_processor
from train.freezing.backward import GraphWitness, layers_with_graph, stop_backward_early
from train.freezing.freeze import FreezeArguments, apply_freeze, plan_freeze

CHECKPOINTING = {"off": None, "non-reentrant": {"use_reentrant": False}, "reentrant": {"use_reentrant": True}}


@pytest.fixture(scope="module")
def batch(pocket_checkpoint: Path) -> dict[str, torch.Tensor]:
    """One prompt with a picture."""
    from PIL import Image

    processor = load_processor(pocket_checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "What colour is it ?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    values = processor(text=[text], images=[[Image.new("RGB", (56, 56), (214, 40, 40))]], return_tensors="pt")
    return {**values, "labels": values["input_ids"]}


def prepared(
    checkpoint: Path,
    layout: Layout,
    freeze: FreezeArguments,
    checkpointing: str,
    *,
    hold_back: bool = True,
) -> PreTrainedModel:
    """A model frozen as asked, with gradient checkpointing switched on three times, as TRL does between generations."""
    model = load_model(checkpoint).train()
    plan = plan_freeze(layout, freeze)
    if hold_back:
        stop_backward_early(model, plan)
    apply_freeze(model, plan)
    if checkpointing != "off":
        for _ in range(3):
            model.gradient_checkpointing_enable(CHECKPOINTING[checkpointing])
    return model


def graphs(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[list[int], list[int]]:
    """Returns the decoder layers and vision blocks whose output carried a graph in a forward and backward pass."""
    seen: dict[str, set[int]] = {"layers": set(), "blocks": set()}
    hooks = []
    stacks = {"layers": model.model.language_model.layers, "blocks": model.model.visual.blocks}
    for name, stack in stacks.items():
        for index, layer in enumerate(stack):

            def look(_: Any, __: Any, output: Any, name: str = name, index: int = index) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                if hidden.grad_fn is not None:
                    seen[name].add(index)

            hooks.append(layer.register_forward_hook(look))
    model(**batch).loss.backward()
    for hook in hooks:
        hook.remove()
    return sorted(seen["layers"]), sorted(seen["blocks"])


@pytest.mark.parametrize("checkpointing", list(CHECKPOINTING))
@pytest.mark.parametrize(
    ("freeze", "layers", "blocks"),
    [
        (FreezeArguments(), [0, 1, 2, 3, 4, 5], [0, 1]),
        (FreezeArguments(train_only=["late"]), [4, 5], []),
        (FreezeArguments(train_only=["mid.mlp"]), [2, 3, 4, 5], []),
        (FreezeArguments(train_only=["norm"]), [], []),
        (FreezeArguments(train_only=["vision:1"]), [0, 1, 2, 3, 4, 5], [1]),
        (FreezeArguments(train_only=["projector"]), [0, 1, 2, 3, 4, 5], []),
        (FreezeArguments(train_only=["llm:1", "llm:4"]), [1, 2, 3, 4, 5], []),
    ],
)  # fmt: skip
def test_only_what_lies_above_the_lowest_trainable_parameter_carries_a_graph(
    pocket_checkpoint: Path, pocket_layout: Layout, batch: dict[str, torch.Tensor], checkpointing: str,
    freeze: FreezeArguments, layers: list[int], blocks: list[int],
) -> None:  # fmt: skip
    model = prepared(pocket_checkpoint, pocket_layout, freeze, checkpointing)
    assert graphs(model, batch) == (layers, blocks)
    plan = plan_freeze(pocket_layout, freeze)
    assert layers_with_graph(plan) == {*(("llm", i) for i in layers), *(("vision", i) for i in blocks)}
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients == set(plan.trainable)


def test_without_it_the_libraries_carry_the_graph_through_everything(
    pocket_checkpoint: Path, pocket_layout: Layout, batch: dict[str, torch.Tensor]
) -> None:
    """What is worked around is still there; when this fails, the seam can go."""
    late = FreezeArguments(train_only=["late"])
    model = prepared(pocket_checkpoint, pocket_layout, late, "non-reentrant", hold_back=False)
    assert graphs(model, batch)[0] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("freeze", [FreezeArguments(freeze=["early"]), FreezeArguments(train_only=["late.attn"])])
def test_gradients_are_the_same_with_and_without_checkpointing(
    pocket_checkpoint: Path,
    pocket_layout: Layout,
    batch: dict[str, torch.Tensor],
    freeze: FreezeArguments,
) -> None:
    found = []
    for checkpointing in CHECKPOINTING:
        model = prepared(pocket_checkpoint, pocket_layout, freeze, checkpointing)
        model(**batch).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(other[name], found[0][name]) for name in other)


def test_the_witness_sees_where_backward_went_and_what_it_did_not_reach(
    pocket_checkpoint: Path, pocket_layout: Layout, batch: dict[str, torch.Tensor]
) -> None:
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["early", "embed"]))
    model = prepared(pocket_checkpoint, pocket_layout, FreezeArguments(freeze=["early", "embed"]), "off")
    witness = GraphWitness(model, plan, base=model)
    text = {"input_ids": batch["input_ids"][:, -6:], "labels": batch["input_ids"][:, -6:]}
    with torch.no_grad():
        model(**text)
    model(**text).loss.backward()
    witness.check()
    report = witness.report()
    assert report.decoder_layers == (2, 3, 4, 5) and report.vision_blocks == ()
    assert report.without_gradient and all(".visual." in name for name in report.without_gradient)
    model(**batch).loss.backward()
    assert witness.report().without_gradient == ()


def test_a_backward_pass_below_what_trains_fails_the_run(
    pocket_checkpoint: Path, pocket_layout: Layout, batch: dict[str, torch.Tensor]
) -> None:
    late = FreezeArguments(train_only=["late"])
    model = prepared(pocket_checkpoint, pocket_layout, late, "non-reentrant", hold_back=False)
    witness = GraphWitness(model, plan_freeze(pocket_layout, late), base=model)
    model(**batch).loss.backward()
    with pytest.raises(RuntimeError, match="layer 0 took part in the backward pass though"):
        witness.check()


def test_a_layer_that_reentrant_checkpointing_leaves_untrained_fails_the_run(
    pocket_checkpoint: Path, pocket_layout: Layout, batch: dict[str, torch.Tensor]
) -> None:
    late = FreezeArguments(train_only=["late", "norm"])
    model = prepared(pocket_checkpoint, pocket_layout, late, "off", hold_back=False)
    model.enable_input_require_grads = lambda: None
    model.gradient_checkpointing_enable({"use_reentrant": True})
    witness = GraphWitness(model, plan_freeze(pocket_layout, late), base=model)
    model(**batch).loss.backward()
    with pytest.raises(RuntimeError, match=r"layers\.4.* is trainable but received no gradient"):
        witness.check()
