"""What a forward pass keeps, against the tensors autograd saves: the pocket model's own, counted once a storage."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from models.layout import Layout, layout_from_config
from models.pocket import PocketShape, build_config, build_tokenizer
from train.planning.activations import (
    Precision,
    Tokens,
    input_bytes,
    layers_of,
    stack_bytes,
)
from train.planning.ends import ends_bytes, patches_bytes, projector_bytes

NUM_ROWS, LENGTH = 4, 48
PRECISIONS = {
    "fp32": (torch.float32, Precision(stream_bytes=4, compute_bytes=4)),
    "autocast": (torch.float32, Precision(stream_bytes=4, compute_bytes=2, autocast=True, weight_copies=True)),
    "bf16": (torch.bfloat16, Precision(stream_bytes=2, compute_bytes=2)),
}
FROZEN = {
    "nothing but the tower": [],
    "the middle": ["layers.1."],
    "the bottom": ["embed_tokens", "layers.0."],
    "the bottom, and one MLP": ["embed_tokens", "layers.0.", "layers.1.mlp", "layers.1.post"],
    "the bottom, and one attention": ["embed_tokens", "layers.0.", "layers.1.self_attn", "layers.1.input"],
}


def saved_bytes(model: Any, forward: Callable[[], Any]) -> int:
    """Returns the bytes of all tensors saved for backward, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.fixture(scope="module")
def pocket_config() -> Any:
    shape = PocketShape(num_layers=3, mlp_size=336, num_vision_blocks=3, vision_mlp_size=144)
    return build_config(shape, build_tokenizer())


def build_model(config: Any, dtype: torch.dtype, frozen: list[str]) -> tuple[Any, Layout, set[str]]:
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(deepcopy(config)).to(dtype).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return model, layout_from_config(config.to_dict()), trainable


def log_probs(model: Any, *, autocast: bool, padded: bool = True) -> Callable[[], Any]:
    """A pass as TRL's GRPO trainer makes it: log-probabilities through its fused head."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 300, (NUM_ROWS, LENGTH), generator=generator)
    mask = torch.ones_like(tokens)
    mask[0, : 5 if padded else 0] = 0

    def forward() -> Any:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            return model(input_ids=tokens, attention_mask=mask, labels=tokens, fused_lm_head=True).log_probs

    return forward


def expected_bytes(
    layout: Layout, trainable: set[str], precision: Precision, *, adapter_rank: int = 0, checkpointing: bool = False,
    num_heads: int = 8, **tokens: Any,
) -> int:  # fmt: skip
    stack = layers_of(layout, "llm", num_heads, trainable, adapter_rank=adapter_rank)
    passing = Tokens(num_tokens=NUM_ROWS * LENGTH, sequence_length=LENGTH, **tokens)
    reached = any("embed_tokens" in name for name in trainable) and not adapter_rank
    norm_trains = any(name.endswith("language_model.norm.weight") for name in trainable)
    kept = stack_bytes(stack, passing, precision, reached=reached)
    if checkpointing:
        kept = [input_bytes(layer, passing, precision) for layer, whole in zip(stack, kept, strict=True) if whole]
    return sum(kept) + ends_bytes(passing, precision, layer=stack[0], norm_trains=norm_trains)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("numbers", PRECISIONS)
def test_the_decoder_keeps_what_the_formulas_say(pocket_config: Any, numbers: str, frozen: str) -> None:
    dtype, precision = PRECISIONS[numbers]
    model, layout, trainable = build_model(pocket_config, dtype, ["visual", *FROZEN[frozen]])
    found = saved_bytes(model, log_probs(model, autocast=precision.autocast))
    assert expected_bytes(layout, trainable, precision) == pytest.approx(found, rel=0.005)


def test_without_padding_keys_are_not_repeated_and_no_mask_is_kept(pocket_config: Any) -> None:
    model, layout, trainable = build_model(pocket_config, torch.float32, ["visual"])
    found = saved_bytes(model, log_probs(model, autocast=False, padded=False))
    precision = PRECISIONS["fp32"][1]
    assert expected_bytes(layout, trainable, precision, masked=False) == pytest.approx(found, rel=0.005)
    assert expected_bytes(layout, trainable, precision) > 1.05 * found


def test_eager_attention_keeps_its_weights(pocket_config: Any) -> None:
    model, layout, trainable = build_model(pocket_config, torch.bfloat16, ["visual"])
    model.set_attn_implementation("eager")
    found = saved_bytes(model, log_probs(model, autocast=False))
    expected = expected_bytes(layout, trainable, PRECISIONS["bf16"][1], attention="eager")
    assert expected == pytest.approx(found, rel=0.005)


@pytest.mark.parametrize("numbers", ["fp32", "autocast"])
def test_adapters_keep_their_inputs(pocket_config: Any, numbers: str) -> None:
    from peft import LoraConfig, get_peft_model

    from train.freezing.adapters import target_pattern

    dtype, precision = PRECISIONS[numbers]
    model, layout, _ = build_model(pocket_config, dtype, [])
    modules = [p.name for p in layout if p.region == "llm" and p.index in (1, 2) and len(p.shape) == 2]
    forward = log_probs(model, autocast=precision.autocast)
    pattern = target_pattern([name.removesuffix(".weight") for name in modules])
    get_peft_model(model, LoraConfig(r=4, lora_dropout=0.0, target_modules=pattern))
    expected = expected_bytes(layout, set(modules), precision, adapter_rank=4)
    assert expected == pytest.approx(saved_bytes(model, forward), rel=0.01)


def test_norms_of_queries_and_keys_are_counted(qwen3_vl_checkpoint: Path) -> None:
    from models.loading import load_model

    model: Any = load_model(qwen3_vl_checkpoint, dtype=torch.float32).train()
    layout = layout_from_config(model.config.to_dict())
    trainable = {name for name in layout.parameters if "visual" not in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    found = saved_bytes(model, log_probs(model, autocast=False))
    assert expected_bytes(layout, trainable, PRECISIONS["fp32"][1], num_heads=4) == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("frozen", [[], ["embed_tokens", "layers.0."]])
@pytest.mark.cases_slow
def test_checkpointed_layers_keep_their_inputs_alone(pocket_config: Any, frozen: list[str]) -> None:
    precision = PRECISIONS["fp32"][1]
    model, layout, trainable = build_model(pocket_config, torch.float32, ["visual", *frozen])
    model.enable_input_require_grads = lambda: None  # as train/freezing/backward.py has it
    model.gradient_checkpointing_enable({"use_reentrant": False})
    forward = log_probs(model, autocast=False)
    before = live_storages()
    output = forward()
    found = sum(num_bytes for place, num_bytes in live_storages().items() if place not in before)
    assert output.requires_grad
    # Beside what is expected: a random state of 5 kB a layer, and the attention mask.
    expected = expected_bytes(layout, trainable, precision, checkpointing=True)
    assert expected == pytest.approx(found, rel=0.08)


def live_storages() -> dict[int, int]:
    gc.collect()
    tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.mark.parametrize("frozen", [[], ["patch_embed", "blocks.0."]])
@pytest.mark.parametrize("numbers", PRECISIONS)
def test_the_vision_tower_keeps_what_the_formulas_say(pocket_config: Any, numbers: str, frozen: list[str]) -> None:
    dtype, decoder = PRECISIONS[numbers]
    width = decoder.compute_bytes  # under autocast the stream has the dtype of the tower's first convolution
    precision = Precision(
        stream_bytes=width, compute_bytes=width, autocast=decoder.autocast, weight_copies=decoder.weight_copies
    )
    model, layout, trainable = build_model(pocket_config, dtype, frozen)
    grid = torch.tensor([[1, 8, 12], [1, 8, 8]])
    num_patches = int(grid.prod(-1).sum())
    pixels = torch.randn(num_patches, 1176, dtype=dtype)

    def forward() -> Any:
        with torch.autocast("cpu", torch.bfloat16) if precision.autocast else nullcontext():
            return model.model.visual(pixels, grid_thw=grid)

    blocks = layers_of(layout, "vision", 4, trainable)
    patches = Tokens(num_tokens=num_patches, sequence_length=0, masked=False)
    expected = sum(stack_bytes(blocks, patches, precision, reached=not frozen))
    if not frozen:
        expected += patches_bytes(precision, num_patches=num_patches, pixels_a_patch=1176, patch_width=64)
    projector = [parameter for parameter in layout if parameter.region == "projector"]
    expected += projector_bytes(projector, trainable, precision, num_patches=num_patches, patch_width=64)
    assert expected == pytest.approx(saved_bytes(model, forward), rel=0.03)


@pytest.mark.parametrize("numbers", ["fp32", "autocast"])
def test_a_tower_that_reads_tiles_keeps_what_the_formulas_say(numbers: str) -> None:
    """Of InternVL, with widths in the published proportion; a norm in bf16 keeps less than the formula for RMSNorm."""
    from transformers import InternVLForConditionalGeneration

    from tests.small_internvl import build_internvl_tokenizer, internvl_config

    dtype, decoder = PRECISIONS[numbers]
    width = decoder.compute_bytes
    precision = Precision(
        stream_bytes=width, compute_bytes=width, autocast=decoder.autocast, weight_copies=decoder.weight_copies
    )
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    config = internvl_config(build_internvl_tokenizer(), image_size=[112, 112], patch_size=[14, 14], **sizes)
    model = InternVLForConditionalGeneration(config).to(dtype).train()
    tiles = torch.randn(3, 3, 112, 112, dtype=dtype)

    def forward() -> Any:
        with torch.autocast("cpu", torch.bfloat16) if precision.autocast else nullcontext():
            return model.model.vision_tower(pixel_values=tiles).last_hidden_state

    layout = layout_from_config(config.to_dict())
    patches = Tokens(num_tokens=3 * 64, sequence_length=0, masked=False)
    blocks = layers_of(layout, "vision", 2, set(layout.parameters))
    expected = sum(stack_bytes(blocks, patches, precision, reached=True))
    expected += patches_bytes(precision, num_patches=patches.num_tokens, pixels_a_patch=588, patch_width=128)
    assert expected == pytest.approx(saved_bytes(model, forward), rel=0.03 if numbers == "fp32" else 0.1)


@pytest.mark.parametrize(("kind", "above"), [("gemma4", 0.02), ("gemma4_large", 0.12)])
def test_gemma4s_norms_and_per_layer_embeddings_are_counted(
    kind: str, above: float, request: pytest.FixtureRequest
) -> None:
    """Where keys serve as values too, as in the large models, they are counted twice."""
    from models.loading import load_model

    model: Any = load_model(request.getfixturevalue(f"{kind}_checkpoint"), dtype=torch.float32).train()
    layout = layout_from_config(model.config.to_dict())
    seeing = ("vision", "projector", "audio")
    trainable = {p.name for p in layout if not p.buffer and p.region not in seeing}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    found = saved_bytes(model, log_probs(model, autocast=False))
    expected = expected_bytes(layout, trainable, PRECISIONS["fp32"][1], num_heads=4)
    assert found <= expected <= (1 + above) * found
