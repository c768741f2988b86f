"""What do attention masses cost compared with eager attention, and do they agree? One forward pass on a long sequence.

Eager attention computes a [heads, T, T] matrix per layer; its masses are summed in a hook that then frees the matrix,
since keeping all of them would take 74 GB at 8,000 tokens of 3B. Its probabilities are bf16, those of
`analyze.attention` fp32, so differences are of bf16's size. A pass with SDPA alone bounds time and memory from below.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import SFT, Shapes, peak_bytes, prepare, release_memory, synchronise

if TYPE_CHECKING:
    import torch

    from analyze.attention.replies import PromptedReply

TOP_TOKENS = 5
VISION_FRAC = 0.5
"""Of the sequence, counted as vision tokens: what a token is matters to the sums, not to their cost."""


def make_row(vocabulary: int, shapes: Shapes) -> "PromptedReply":
    """Returns a sequence of random tokens, labelled as a prompt with a picture and a reply."""
    import torch

    from analyze.attention.records import PARTS
    from analyze.attention.replies import QUESTION, REPLY, SINK, TEMPLATE, VISION, PromptedReply

    num_tokens, num_reply = shapes.attention_tokens, shapes.attention_reply_tokens
    segments = torch.full((num_tokens,), TEMPLATE)
    num_vision = int(num_tokens * VISION_FRAC)
    segments[2 : 2 + num_vision] = VISION
    segments[2 + num_vision : 30 + num_vision] = QUESTION
    segments[0], segments[-num_reply:] = SINK, REPLY
    weights = torch.zeros(len(PARTS), num_tokens)
    weights[0, -num_reply:] = 1 / num_reply
    tokens = torch.randint(10, 200, (num_tokens,), generator=torch.Generator().manual_seed(0))
    assert vocabulary > 200, vocabulary
    return PromptedReply(input_ids=tokens, segments=segments, weights=weights, images={})


def eager_masses(model: Any, row: "PromptedReply", pad_id: int) -> "torch.Tensor":
    """Returns the mean masses of the reply by segment [layers, heads, segments], from eager attention's matrices."""
    import torch

    from analyze.attention.mass import KEY_SEGMENTS, set_decoder_attention
    from analyze.attention.replies import REPLY, make_inputs

    inputs, segments, _ = make_inputs([row], model, pad_id=pad_id)
    members = torch.stack([segments[0] == number for number in range(len(KEY_SEGMENTS))], -1).float()
    is_reply = segments[0] == REPLY
    found: list[torch.Tensor] = []

    def take(_: Any, __: Any, output: Any) -> Any:
        rows = output[1][0, :, is_reply]  # [heads, queries, tokens]
        found.append((rows.float() @ members).mean(1))
        return output[0], None

    handles = [layer.self_attn.register_forward_hook(take) for layer in model.model.language_model.layers]
    before = model.config.get_text_config()._attn_implementation
    set_decoder_attention(model, "eager")
    try:
        with torch.inference_mode():
            model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        set_decoder_attention(model, before)
        for handle in handles:
            handle.remove()
    return torch.stack(found).cpu()


def timed(work: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Returns seconds, peak memory and result of a second run; the first fills caches."""
    work()
    release_memory()
    synchronise()
    begin = time.perf_counter()
    result = work()
    synchronise()
    return {"seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()}, result


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `attention`."""
    import torch

    from analyze.attention.records import MEASURES
    from analyze.attention.replies import make_inputs, measure
    from eval.replies.generation import tokenizer_of
    from models.loading import load_model, load_processor

    figures.note(**prepare(work_dir, shapes))
    model = load_model(work_dir / SFT, dtype=torch.bfloat16, attn_implementation="sdpa").eval().to(shapes.device)
    pad_id = int(tokenizer_of(load_processor(work_dir / SFT)).pad_token_id)
    row = make_row(model.config.get_text_config().vocab_size, shapes)
    weights_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    figures.note(num_tokens=len(row.input_ids), num_reply_tokens=row.num_reply_tokens, weights_bytes=weights_bytes)

    def plain() -> None:
        inputs, _, _ = make_inputs([row], model, pad_id=pad_id)
        with torch.inference_mode():
            model(**inputs, use_cache=False, logits_to_keep=1)

    figures.note(sdpa_alone=timed(plain)[0])
    cost, mass = timed(lambda: measure(model, [row], pad_id=pad_id, top_tokens=TOP_TOKENS))
    figures.note(masses=cost, largest_departure_from_one=float(mass.sum_errors.max()))
    ours = mass.result()[0, 0]  # [layers, heads, measures]
    reply = ours[..., MEASURES.index("earlier")] + ours[..., MEASURES.index("self")]
    segments = torch.cat([ours[..., :4], reply[..., None]], -1)
    checked = measure(model, [row], pad_id=pad_id, top_tokens=TOP_TOKENS, rebuild_output=True)
    figures.note(relative_distance_of_rebuilt_output=checked.output_error)
    del mass, checked
    try:
        cost, theirs = timed(lambda: eager_masses(model, row, pad_id))
    except torch.OutOfMemoryError as error:
        figures.note(eager={"out_of_memory": str(error).splitlines()[0]})
        return
    figures.note(eager=cost, largest_difference_from_eager=float((segments - theirs).abs().max()))
