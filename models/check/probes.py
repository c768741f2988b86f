"""Do the probes and the evaluation measure what they say for a family? Each against its definition, on the small copy.

skip        rows that leave parts out, against models in which these parts are really gone
attention   masses, against the matrices of eager attention
swap        the fast swap, against hidden states replaced by hooks, one pass per swap
batch       replies in a padded batch, against Transformers' `generate`, one by one
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from analyze.attention.controls import TEACHER_FORCED
from analyze.attention.mass import KEY_SEGMENTS
from analyze.attention.plan import Unit
from analyze.attention.records import MEASURES, PARTS, Label
from analyze.attention.replies import PromptedReply, make_inputs, measure
from analyze.attention.run import Loaded, Reading
from analyze.probes.inputs import Problem
from analyze.skip.generation import Rows, answer_rows
from analyze.skip.layers import RowwiseSkip
from analyze.skip.plan import Configuration, make_configurations
from analyze.skip.reference import rebuilt_without
from analyze.swap.pairs import PairOptions, ReadyPair, open_pair
from analyze.swap.plan import swapped_layers
from analyze.swap.reference import generate_swapped, model_inputs, picture_states, swapped
from analyze.swap.run import run_variants, trimmed
from data_builders.pairs.pair import Pair
from eval.replies.generation import generate, greedy_settings, tokenizer_of
from models.blocks import make_partition
from models.check.outcome import Outcome, absent, fails, within
from models.check.small import QUESTIONS, Small
from models.layout import first_reading_layer, read_model_config

LOGITS_TOLERANCE = 1e-4
"""Relative to the largest logit, in fp32."""
MASS_TOLERANCE = 1e-5
NUM_NEW_TOKENS = 8
TIE = 1e-4
"""Logits closer than this may be ordered by rounding, so replies may part there."""
REPLY = "It is the red one , and there are two of them ."


def check_skip(small: Small) -> Outcome:
    """Leaves out layers, blocks, attentions and MLPs, in logits and in replies."""
    if small.no_prompts is not None:
        return absent("skip", small.no_prompts)
    model, layout = small.another(), small.layout
    texts, paths = small.prompts(seeing=not small.family.text_only)
    inputs = small.inputs(texts, paths)
    seen = inputs["attention_mask"].bool()
    configurations = make_configurations(["layers", "blocks", "attn", "mlp"], layout, make_partition(layout.num_layers))
    plain, worst = _logits(model, inputs), 0.0
    for configuration in configurations:
        plan = _plan([configuration, configurations[0]], layout.num_layers)
        with RowwiseSkip(model) as skip:
            skip.leave_out(plan)
            skipped = _logits(model, inputs)
        expected = _logits(rebuilt_without(model, configuration), inputs)
        worst = max(worst, _distance(skipped[0], expected[0], seen[0]), _distance(skipped[1], plain[1], seen[1]))
        if configuration.omitted and _distance(skipped[0], plain[0], seen[0]) <= 10 * LOGITS_TOLERANCE:
            return fails("skip", f"leaving out {configuration.name} changes nothing")
        if not worst <= LOGITS_TOLERANCE:
            detail = f"logits without {configuration.name}, against a model without it"
            return within("skip", worst, LOGITS_TOLERANCE, detail)
    chosen = [configurations[0], configurations[1], next(c for c in configurations if c.name == "mid")]
    parted = _skip_replies(small, model, chosen)
    if parted is not None:
        return fails("skip", parted)
    detail = f"{len(configurations)} configurations have the logits and replies of models rebuilt without the parts"
    return within("skip", worst, LOGITS_TOLERANCE, detail)


def _skip_replies(small: Small, model: Any, configurations: list[Configuration]) -> str | None:
    """Compares replies of rows with those of rebuilt models; returns what differs."""
    texts, paths = small.prompts(seeing=not small.family.text_only)
    settings = greedy_settings(model, small.processor, NUM_NEW_TOKENS)
    plan = _plan(configurations * len(texts), small.layout.num_layers)
    prompts = [number for number in range(len(texts)) for _ in configurations]
    rows = Rows(texts=texts, images=paths, prompts=prompts, plan=plan)
    with RowwiseSkip(model) as skip:
        replies = answer_rows(model, small.processor, skip, rows, settings, repetition_window=0)
    for row, (number, reply) in enumerate(zip(prompts, replies, strict=True)):
        configuration = configurations[row % len(configurations)]
        rebuilt = rebuilt_without(model, configuration)
        tokens = _plain_reply(small, rebuilt, number, settings)
        text = tokenizer_of(small.processor).decode(tokens, skip_special_tokens=True)
        if reply.response != text:
            return f"without {configuration.name} it replies {reply.response!r}, a model without it {text!r}"
    return None


def check_attention(small: Small) -> Outcome:
    """Measures two replies in a padded batch and compares every segment's mass with eager attention's matrices."""
    if small.no_prompts is not None:
        return absent("attention", small.no_prompts)
    model = small.another()
    rows = _prompted_replies(small, model)
    pad_id = tokenizer_of(small.processor).pad_token_id
    mass = measure(model, rows, pad_id=pad_id, top_tokens=2, rebuild_output=True)
    found = mass.result().numpy()  # [rows, parts, layers, heads, measures]
    model.set_attn_implementation("eager")
    worst = max(float(mass.sum_errors.max()), mass.output_error)
    for number, row in enumerate(rows):
        inputs, _, _ = make_inputs([row], model, pad_id=pad_id)
        with torch.inference_mode():
            matrices = model(**inputs, output_attentions=True, use_cache=False).attentions
        for layer, matrix in enumerate(matrices):
            expected = _masses(matrix[0].double().numpy(), row)
            columns = [MEASURES.index(name) for name in expected]
            difference = found[number, PARTS.index("reply"), layer][:, columns] - np.stack([*expected.values()], 1)
            worst = max(worst, float(np.abs(difference).max()))
    num_layers = small.layout.num_layers
    without = f"{num_layers - len(matrices)} of {num_layers} layers have no attention matrix and no masses"
    return within(
        "attention",
        worst,
        MASS_TOLERANCE,
        f"masses of {len(matrices)} layers are eager attention's",
        restriction=without if len(matrices) < num_layers else None,
    )


def _masses(attention: np.ndarray, row: PromptedReply) -> dict[str, np.ndarray]:
    """Returns the mean masses of a reply's tokens, per head, by measure; from the matrix [heads, tokens, tokens]."""
    segments = row.segments.numpy()
    queries = np.flatnonzero(segments == KEY_SEGMENTS.index("reply"))
    found = {}
    for number, name in enumerate(KEY_SEGMENTS[:-1]):
        keys = np.flatnonzero(segments == number)
        if name != "vision" or len(keys):
            found[name] = attention[:, queries][:, :, keys].sum(-1).mean(-1)
    found["self"] = np.stack([attention[:, query, query] for query in queries]).mean(0)
    return found


def _prompted_replies(small: Small, model: Any) -> list[PromptedReply]:
    """Returns a reply to each prompt, as `analyze.attention` reads it."""
    reading = Reading(
        prompt_style="plain",
        system_prompt=None,
        max_new_tokens=NUM_NEW_TOKENS,
        top_tokens=2,
        batch_size=2,
        dtype="float32",
    )
    loaded = Loaded(model, small.processor, reading)
    rows = []
    for prompt in small.questions(seeing=not small.family.text_only):
        problem = Problem(task="check", directory=small.folder, prompt=prompt)
        row = loaded.read(Unit(label=Label("model"), mode=TEACHER_FORCED, problem=problem, reply=REPLY))
        assert row is not None
        rows.append(row)
    return rows


def check_swap(small: Small) -> Outcome:
    """Swaps from every layer on, and every layer alone, with both readings' answers scored and replies decoded."""
    if small.family.text_only:
        return absent("swap", "a text-only family has no pictures")
    if small.no_prompts is not None:
        return absent("swap", small.no_prompts)
    model, num_layers = small.another(), small.layout.num_layers
    names = [path.name for path in small.pictures]
    pair = Pair(
        id="p", task="counting", prompt=QUESTIONS[1], target_image=names[0], source_image=names[1],
        target_answer="2", source_answer="3",
    )  # fmt: skip
    ready = open_pair(model, small.processor, small.folder, pair, PairOptions(box_space="image"))
    settings = greedy_settings(model, small.processor, NUM_NEW_TOKENS)
    modes = (swapped_layers(mode, num_layers, 2) for mode in ("from", "only", "window"))
    swaps = list(dict.fromkeys(layers for mode in modes for layers in mode))
    (variants,) = run_variants(model, [ready], swaps, with_itself=[False] * len(swaps), settings=settings)
    expected = generate_swapped(model, ready.target, ready.source, swaps, settings)
    logprobs = [_hooked_logprobs(model, ready, layers) for layers in swaps]
    worst = 0.0
    for layers, variant, tokens, (of_target, of_source) in zip(swaps, variants, expected, logprobs, strict=True):
        worst = max(worst, abs(variant.logprob_target - of_target), abs(variant.logprob_source - of_source))
        reply = trimmed(tokens, settings["eos_token_id"]).tokens
        place = _first_difference(variant.reply.tokens, reply)
        if place is not None and variant.reply.margins[place] > TIE:
            return fails("swap", f"layers {layers}: the reply differs at token {place} from that with hooks")
    # Layers that read the keys and values of earlier ones see nothing of a swap in them.
    num_own = first_reading_layer(read_model_config(small.directory), small.family) or num_layers
    if len({round(variant.logprob_target, 4) for variant in variants}) < num_own:
        return fails("swap", "the swaps hardly change anything")
    detail = f"{len(swaps)} swaps have the replies and answers' log-probabilities of hidden states replaced by hooks"
    return within("swap", worst, LOGITS_TOLERANCE * 10, detail)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Returns the place of the first token that differs, or where one reply ends before the other."""
    shorter = min(len(one), len(other))
    if (place := next((i for i in range(shorter) if one[i] != other[i]), None)) is not None:
        return place
    return shorter if len(one) != len(other) else None


def _hooked_logprobs(model: Any, ready: ReadyPair, layers: range) -> tuple[float, float]:
    """Returns the log-probabilities of both answers under one swap, from full passes with hooks."""
    own, source = picture_states(model, ready.target), picture_states(model, ready.source)
    found = []
    for answer in ready.answers:
        more = answer[:-1]
        longer = replace(
            ready.target,
            input_ids=torch.cat([ready.target.input_ids, more]),
            token_types=torch.cat([ready.target.token_types, torch.zeros_like(more)]),
        )
        with swapped(model, ready.target, layers, own=own, source=source), torch.inference_mode():
            logits = model(**model_inputs(model, longer), use_cache=False).logits[0, len(ready.target.input_ids) - 1 :]
        found.append(float(logits.log_softmax(-1).gather(1, answer[:, None]).sum()))
    return found[0], found[1]


def check_batch(small: Small) -> Outcome:
    """Answers prompts of different lengths as one batch, padded on the left, and one by one."""
    if small.no_prompts is not None:
        return absent("batch", small.no_prompts)
    model = small.another()
    settings = greedy_settings(model, small.processor, NUM_NEW_TOKENS)
    worst, kinds = 0.0, (False,) if small.family.text_only else (False, True)
    for seeing in kinds:
        texts, paths = small.prompts(seeing=seeing)
        together = small.inputs(texts, paths)
        logits = _logits(model, together)
        replies = generate(model, small.processor, texts, paths, settings)
        for number, reply in enumerate(replies):
            alone = small.inputs(texts[number : number + 1], paths[number : number + 1])
            own = _logits(model, alone)[0]
            worst = max(worst, _distance(logits[number, -len(own) :], own, torch.ones(len(own), dtype=torch.bool)))
            tokens = _plain_reply(small, model, number, settings, seeing=seeing)
            text = tokenizer_of(small.processor).decode(tokens, skip_special_tokens=True)
            if reply.response != text:
                return fails("batch", f"in a batch it replies {reply.response!r}, alone {text!r}")
    detail = "logits and replies in a padded batch are those of one prompt at a time"
    return within("batch", worst, LOGITS_TOLERANCE, detail)


def _plain_reply(
    small: Small, model: Any, number: int, settings: dict[str, Any], *, seeing: bool | None = None
) -> list[int]:
    """Returns the tokens that Transformers' own `generate` gives one prompt alone."""
    texts, paths = small.prompts(seeing=not small.family.text_only if seeing is None else seeing)
    inputs = small.inputs(texts[number : number + 1], paths[number : number + 1])
    model.generation_config = GenerationConfig(**settings)
    with torch.inference_mode():
        written = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
    return list(trimmed(written, settings["eos_token_id"]).tokens)


@torch.inference_mode()
def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits


def _distance(one: torch.Tensor, other: torch.Tensor, seen: torch.Tensor) -> float:
    """Returns the largest difference of logits at the tokens that are no padding, relative to the largest logit."""
    difference = float((one - other)[seen].abs().max() / other[seen].abs().max())
    return math.inf if math.isnan(difference) else difference


def _plan(configurations: list[Configuration], num_layers: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([configuration.plan(num_layers) for configuration in configurations]))
