"""How much memory do activations and rollouts need? An estimate from shapes.

Counted as in Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1): the tensors that each operation of a layer saves
for its gradient. Their layer has GELU and explicit attention matrices; here grouped-query attention runs in SDPA (which
saves queries, keys, values, its output and a log-sum-exp), the MLP is SwiGLU, and norms are RMSNorm computed in fp32
(as in Transformers 5.23's Qwen2.5-VL). With t tokens of width h, MLP width f, and e bytes per element:

    norm           4·h + 4 per token; its scaled input as well if its weight trains
    projections    their input, e·h, if one of them trains; a separate bf16 copy for each under autocast
    SDPA           e·(q + k + v + output), 4 per head; with a mask, keys and values are repeated for all heads, and
                   each layer keeps the mask with e bytes per token pair
    linear attention  (Qwen3.5) e·(2·convolution + 2·value width), and per value head 8 and e for each of the 64
                   tokens of a chunk: what fused kernels save; PyTorch's own fallback saves several times as much
    SwiGLU         3·e·f, and the product e·f if `down_proj` trains
    autocast       bf16 copies of the weights through which a gradient passes
    Gemma 4        two more norms, and a third term: 3·e·p for per-layer embeddings of width p, its maps and norm

A layer below the lowest trainable parameter saves nothing (train/freezing/backward.py); a frozen layer above it does
not save the inputs of its projections. With gradient checkpointing a layer saves its input, and one layer at a time is
recomputed. TRL (1.16) computes log-probabilities in tiles of 4,096 tokens by 32,768 vocabulary entries, so full
[tokens, vocabulary] logits never exist.

Tests count the saved tensors of the pocket model on the CPU; sizes on a GPU are untested.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from models.layout import Layout, Parameter

NORM_BYTES = 4
"""Norms are computed in fp32 for every dtype."""
GATED = 3
"""Saved tensors of the MLP's width before its output projection: SwiGLU saves gate, its activation and up."""

FUSED = "attn.qkv"
ATTENTION_INPUTS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", FUSED, "attention.q_proj", "attention.k_proj",
    "attention.v_proj", "linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.in_proj_b",
    "linear_attn.in_proj_a",
)  # fmt: skip
ATTENTION_OUTPUTS = ("self_attn.o_proj", "attn.proj", "attention.projection_layer", "linear_attn.out_proj")
STATE_HEADS = "linear_attn.A_log"
"""One element for each value head of linear attention."""
CHUNK_TOKENS = 64
MLP_INPUTS = ("mlp.gate_proj", "mlp.up_proj", "mlp.fc1", "mlp.linear_fc1")
MLP_OUTPUTS = ("mlp.down_proj", "mlp.fc2", "mlp.linear_fc2")
WITHIN = ("", ".linear")
"""A linear map's weight is its own, or that of the map inside it (Gemma 4's clipped ones)."""
HEAD_NORMS = {
    "self_attn.q_norm": "self_attn.q_proj", "self_attn.k_norm": "self_attn.k_proj",
    "attention.q_norm": "attention.q_proj", "attention.k_norm": "attention.k_proj",
}  # fmt: skip
INPUT_NORMS = (
    ("input_layernorm", "norm1", "layernorm_before"),
    ("pre_feedforward_layernorm", "post_attention_layernorm", "norm2", "layernorm_after"),
)
"""Norms of what the attention and the MLP read; the first name that a layer has counts."""
OUTPUT_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
"""Gemma 4's norms of what the attention and the MLP add; it has all four."""
PLE_GATE, PLE_OUTPUT, PLE_NORM = "per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"
"""Gemma 4's third term, from the per-layer embeddings."""
"""Parameter names within a layer, for decoder and vision tower."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes per element of the residual stream, and of inputs and outputs of matrix products."""

    stream_bytes: int
    compute_bytes: int
    autocast: bool = False
    weight_copies: bool = False
    """True if autocast makes bf16 copies of fp32 weights."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear map of a layer: trained directly, by an adapter, or not at all."""

    num_in: int
    num_out: int
    trains: bool = False
    adapter_rank: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The properties of a decoder layer or vision block that determine its activation memory."""

    width: int
    num_heads: int
    attention_inputs: tuple[Linear, ...]
    attention_output: Linear
    mlp_inputs: tuple[Linear, ...]
    mlp_output: Linear
    norms_train: tuple[bool, bool]
    head_norm_width: int = 0
    """Norms of queries and keys, if any (Qwen3, InternVL's largest tower)."""
    head_norms_train: bool = False
    output_norms_train: tuple[bool, bool] | None = None
    """Of the norms of what attention and MLP add, if any."""
    ple: tuple[Linear, Linear, bool] | None = None
    """Gate and output of the per-layer embeddings' term, and whether its norm trains."""
    fused_qkv: bool = False
    num_state_heads: int = 0
    """Value heads of linear attention; 0 for attention with weights."""
    ungated_saves: int = 0
    """Saved tensors of the MLP's width before its output projection, if the MLP has no gate."""

    @property
    def gated(self) -> bool:
        """True if the attention's output is multiplied by a gate, which the query's projection gives (Qwen3.5)."""
        queries = self.attention_inputs[0].num_out
        return not self.fused_qkv and not self.num_state_heads and queries == 2 * self.attention_output.num_in

    @property
    def key_width(self) -> int:
        if self.fused_qkv:
            return self.width
        return self.attention_inputs[1].num_out if len(self.attention_inputs) > 1 else 0  # an earlier layer keeps them

    @property
    def mlp_width(self) -> int:
        return self.mlp_output.num_in

    @property
    def linears(self) -> tuple[Linear, ...]:
        ple = () if self.ple is None else self.ple[:2]
        return (*self.attention_inputs, self.attention_output, *self.mlp_inputs, self.mlp_output, *ple)

    @property
    def trains(self) -> bool:
        return (
            self.head_norms_train
            or any((*self.norms_train, *(self.output_norms_train or ())))
            or (self.ple is not None and self.ple[2])
            or any(linear.trains or linear.adapter_rank for linear in self.linears)
        )


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of one pass through a stack of layers."""

    num_tokens: int
    sequence_length: int
    masked: bool = True
    """True if SDPA gets a mask, because batches are padded."""
    attention: str = "sdpa"
    lora_dropout: float = 0.0


def layers_of(
    layout: Layout, region: str, num_heads: int, trainable: set[str], *, adapter_rank: int = 0
) -> list[Layer]:
    """Returns the layers of `llm` or `vision` with their trainable parts."""
    by_index: dict[int, dict[str, Parameter]] = {}
    for parameter in layout:
        if parameter.region == region and parameter.index is not None and not parameter.carried:
            by_index.setdefault(parameter.index, {})[parameter.rest] = parameter

    def linears(parameters: dict[str, Parameter], names: tuple[str, ...]) -> tuple[Linear, ...]:
        inside = (f"{name}{within}.weight" for name in names for within in WITHIN)
        found = [parameters[name] for name in inside if name in parameters]
        return tuple(
            Linear(
                num_in=parameter.shape[1],
                num_out=parameter.shape[0],
                trains=parameter.name in trainable and not adapter_rank,
                adapter_rank=adapter_rank if parameter.name in trainable else 0,
            )
            for parameter in found
        )

    layers = []
    for _, parameters in sorted(by_index.items()):

        def norm_trains(names: Sequence[str], parameters: dict[str, Parameter] = parameters) -> bool:
            """True if the first of these norms that the layer has trains."""
            found = [parameters[f"{name}.weight"].name for name in names if f"{name}.weight" in parameters]
            return bool(found) and found[0] in trainable and not adapter_rank

        (attention_output,) = linears(parameters, ATTENTION_OUTPUTS)
        (mlp_output,) = linears(parameters, MLP_OUTPUTS)
        attention_inputs = linears(parameters, ATTENTION_INPUTS)
        head_norms = [norm for norm in HEAD_NORMS if f"{norm}.weight" in parameters]
        head_norm_width = sum(linears(parameters, (HEAD_NORMS[norm],))[0].num_out for norm in head_norms)
        four_norms = all(f"{name}.weight" in parameters for name in OUTPUT_NORMS)
        if four_norms and len(attention_inputs) > 1:  # values have a norm without a weight
            head_norm_width += attention_inputs[-1].num_out
        gate = linears(parameters, (PLE_GATE, PLE_OUTPUT))
        layers.append(
            Layer(
                width=attention_output.num_out,
                num_heads=num_heads,
                attention_inputs=attention_inputs,
                attention_output=attention_output,
                mlp_inputs=linears(parameters, MLP_INPUTS),
                mlp_output=mlp_output,
                norms_train=(norm_trains(INPUT_NORMS[0]), norm_trains(INPUT_NORMS[1])),
                head_norm_width=head_norm_width,
                head_norms_train=any(norm_trains((norm,)) for norm in head_norms),
                output_norms_train=(norm_trains(OUTPUT_NORMS[:1]), norm_trains(OUTPUT_NORMS[1:]))
                if four_norms
                else None,
                ple=(gate[0], gate[1], norm_trains((PLE_NORM,))) if gate else None,
                fused_qkv=f"{FUSED}.weight" in parameters,
                num_state_heads=parameters[STATE_HEADS].shape[0] if STATE_HEADS in parameters else 0,
                ungated_saves=layout.family.ungated_saves,
            )
        )
    return layers


def layer_bytes(layer: Layer, tokens: Tokens, precision: Precision, *, reached: bool) -> int:
    """Returns the bytes that one layer saves for its backward pass.

    Args:
        layer: its shapes and trainable parts.
        tokens: the tokens of the pass.
        precision: bytes per element.
        reached: True if its input requires a gradient, since something below it trains.
    """
    compute, num_tokens = precision.compute_bytes, tokens.num_tokens
    total = 0
    after = layer.output_norms_train or (None, None)
    halves = (
        (layer.norms_train[0], layer.attention_inputs, layer.attention_output, after[0]),
        (layer.norms_train[1], layer.mlp_inputs, layer.mlp_output, after[1]),
    )
    for norm_trains, inputs, output, output_norm_trains in halves:
        is_attention = output is layer.attention_output
        if reached:
            total += num_tokens * (NORM_BYTES * layer.width + 4)
        if norm_trains:
            total += num_tokens * precision.stream_bytes * layer.width
        reached = reached or norm_trains
        total += _projections(inputs, tokens, precision, reached=reached, from_norm=True, kept=False)
        reached = reached or any(linear.trains or linear.adapter_rank for linear in inputs)
        if is_attention and reached:
            total += _attention(layer, tokens, precision) + _head_norms(layer, tokens, precision)
        elif reached:
            total += num_tokens * (GATED if len(inputs) == 2 else layer.ungated_saves) * compute * layer.mlp_width
        # SDPA saves its output, which is the next input; a vision block concatenates its windows in another tensor.
        kept = is_attention and reached and not layer.fused_qkv and tokens.attention != "eager"
        kept = kept and not layer.gated and not layer.num_state_heads
        total += _projections((output,), tokens, precision, reached=reached, from_norm=False, kept=kept)
        reached = reached or output.trains or bool(output.adapter_rank)
        if output_norm_trains is not None:
            total += _norm(layer, tokens, precision, reached=reached, trains=output_norm_trains)
            reached = reached or output_norm_trains
    if layer.ple is not None:
        total += _ple(layer, tokens, precision, reached=reached)
    return total


def _norm(layer: Layer, tokens: Tokens, precision: Precision, *, reached: bool, trains: bool) -> int:
    a_token = (NORM_BYTES * layer.width + 4) * reached + precision.stream_bytes * layer.width * trains
    return tokens.num_tokens * a_token


def _ple(layer: Layer, tokens: Tokens, precision: Precision, *, reached: bool) -> int:
    """Returns the bytes of the per-layer embeddings' term: gate, activation, product, output, norm."""
    assert layer.ple is not None
    gate, output, norm_trains = layer.ple
    total = _projections((gate,), tokens, precision, reached=reached, from_norm=False, kept=False)
    reached = reached or gate.trains or bool(gate.adapter_rank)
    if reached:  # the gate before and after its activation, and the embedding that it multiplies
        total += tokens.num_tokens * GATED * precision.compute_bytes * gate.num_out
    total += _projections((output,), tokens, precision, reached=reached, from_norm=False, kept=False)
    reached = reached or output.trains or bool(output.adapter_rank)
    return total + _norm(layer, tokens, precision, reached=reached, trains=norm_trains)


def _projections(
    linears: tuple[Linear, ...], tokens: Tokens, precision: Precision, *, reached: bool, from_norm: bool, kept: bool
) -> int:
    """Returns the bytes saved by linear maps with the same input: inputs, adapter tensors, bf16 copies of weights.

    Args:
        linears: maps that read the same input.
        tokens: the tokens of the pass.
        precision: bytes per element.
        reached: True if the input requires a gradient.
        from_norm: True if autocast casts the input, once for each map.
        kept: True if another operation saves the input anyway.
    """
    num_in, compute = linears[0].num_in, precision.compute_bytes
    training = [linear for linear in linears if linear.trains]
    adapted = [linear for linear in linears if linear.adapter_rank]
    dropout = tokens.lora_dropout > 0
    shared = 0 if kept else min(1, len(training))
    num_inputs = len(training) if precision.autocast and from_norm else shared
    if precision.autocast or dropout:  # PEFT casts or applies dropout separately for each adapter
        num_inputs += len(adapted)
    elif not training and not kept:
        num_inputs += min(1, len(adapted))
    a_token = num_inputs * compute * num_in + sum(compute * linear.adapter_rank for linear in adapted)
    a_token += len(adapted) * num_in if dropout else 0  # the mask, one byte per element
    num_copied = 0
    if precision.weight_copies and reached:
        num_copied += sum(linear.num_in * linear.num_out for linear in linears)
    if precision.autocast:
        num_copied += sum(a.adapter_rank * (a.num_out + (a.num_in if reached else 0)) for a in adapted)
    return tokens.num_tokens * a_token + compute * num_copied


def _attention(layer: Layer, tokens: Tokens, precision: Precision) -> int:
    compute = precision.compute_bytes
    query = layer.attention_output.num_in
    if layer.num_state_heads:
        convolved = layer.attention_inputs[0].num_out
        a_head = 8 + compute * CHUNK_TOKENS
        return tokens.num_tokens * (2 * compute * (convolved + query) + a_head * layer.num_state_heads)
    gate = tokens.num_tokens * compute * query if layer.gated else 0
    key = query if tokens.masked else layer.key_width
    values = 3 * layer.width if layer.fused_qkv else key  # a view keeps all of q, k and v
    pairs = tokens.num_tokens * tokens.sequence_length
    if tokens.attention == "eager":
        weights = layer.num_heads * pairs * (4 + (compute if compute != 4 else 0))
        return weights + gate + tokens.num_tokens * compute * (query + 2 * query)
    mask = pairs * compute if tokens.masked and not layer.fused_qkv else 0
    return mask + gate + tokens.num_tokens * (compute * (query + key + values + query) + 4 * layer.num_heads)


def _head_norms(layer: Layer, tokens: Tokens, precision: Precision) -> int:
    if not layer.head_norm_width:
        return 0
    head_size = layer.attention_output.num_in // layer.num_heads
    a_token = NORM_BYTES * layer.head_norm_width + 4 * (layer.head_norm_width // head_size)
    a_token += precision.compute_bytes * layer.head_norm_width if layer.head_norms_train else 0
    return tokens.num_tokens * a_token


def stack_bytes(layers: list[Layer], tokens: Tokens, precision: Precision, *, reached: bool) -> list[int]:
    """Returns the bytes that each layer of a stack saves, from the lowest up; 0 below the lowest trainable layer.

    Args:
        layers: from the lowest up.
        tokens: the tokens of the pass.
        precision: bytes per element.
        reached: True if the input of the stack requires a gradient.
    """
    kept = []
    for layer in layers:
        takes_part = reached or layer.trains
        kept.append(layer_bytes(layer, tokens, precision, reached=reached) if takes_part else 0)
        reached = takes_part
    return kept


def input_bytes(layer: Layer, tokens: Tokens, precision: Precision) -> int:
    """Returns the bytes that a layer saves under gradient checkpointing: its input."""
    return tokens.num_tokens * precision.stream_bytes * layer.width


def flowing_bytes(layers: list[Layer], tokens: Tokens, precision: Precision) -> int:
    """Returns an upper bound on the gradients within one layer: three of the MLP's width, two of the stream's."""
    widest = max(layers, key=lambda layer: layer.mlp_width)
    a_token = 3 * precision.compute_bytes * widest.mlp_width + 2 * precision.stream_bytes * widest.width
    return tokens.num_tokens * a_token
