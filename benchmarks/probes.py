"""How much faster are the probes than the plain procedure? Swap and skip, each against one `generate` per layer.

    OMP_NUM_THREADS=1 python -m benchmarks.probes
    python -m benchmarks.probes --shape 7b --num-problems 8

The plain procedure is a loop: hooks that change one layer are put on the model, and Transformers' `generate` answers
one prompt, batch 1; then the next layer, then the next prompt (`analyze/swap/reference.py`; for skipping, a hook that
returns the layer's input). Ours are the functions that `analyze.swap` and `analyze.skip` call. Both take turns on the
same model, prompts and pictures, with random weights and replies of a fixed length; the ratio is taken within a turn,
and its median stands with a 95 % bootstrap interval. Every reply is compared: in float32 all must be equal, in lower
precision, in which a row's rounding depends on its batch, the equal ones are counted.

Writes `benchmarks/results/probes.json`. Ours also computes the log-probabilities of both answers in every swap.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.freeze_cost import ratio
from models.pocket import PocketShape, build_config, write_pocket_checkpoint
from tracking.command import REPOSITORY_ROOT, quiet_libraries
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "probes.json"
SHAPES = {
    "tiny": PocketShape(num_layers=3),
    "narrow": PocketShape(num_layers=12, hidden_size=512, mlp_size=1408, num_heads=8, num_kv_heads=4),
    "3b": PocketShape(num_layers=36, hidden_size=2048, mlp_size=11008, num_heads=16, num_kv_heads=2),
    "7b": PocketShape(num_layers=28, hidden_size=3584, mlp_size=18944, num_heads=28, num_kv_heads=4),
}
"""Decoders with random weights, the vocabulary and the vision tower of the pocket model."""
COLOURS = {"red": (214, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 210), "yellow": (230, 200, 40)}

Replies = list[Any]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One probe, in both versions: each returns all replies in the same order."""

    name: str
    num_problems: int
    num_rows: int
    ours: Callable[[], Replies]
    plain: Callable[[], Replies]


def build_model(shape: PocketShape, directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Returns a model with random weights, on the GPU if there is one, and its processor."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from eval.replies.generation import tokenizer_of
    from models.loading import load_processor

    write_pocket_checkpoint(directory, shape=PocketShape(num_layers=1), seed=0)
    processor: Any = load_processor(directory)
    torch.manual_seed(0)
    config = build_config(shape, tokenizer_of(processor))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval(), processor


def draw_picture(path: Path, rng: np.random.Generator) -> None:
    """Writes an image of 16 cells with a few squares."""
    from PIL import Image

    picture = Image.new("RGB", (112, 112), (236, 236, 236))
    for colour in rng.choice(list(COLOURS), size=3):
        x, y = (int(place) for place in rng.integers(0, 84, size=2))
        picture.paste(COLOURS[colour], (x, y, x + 24, y + 24))
    picture.save(path)


def skip_contest(model: Any, processor: Any, settings: dict[str, Any], directory: Path, num_problems: int) -> Contest:
    """Nothing and then every layer skipped, for each of several questions about pictures."""
    from analyze.skip.generation import Rows, answer_rows
    from analyze.skip.layers import RowwiseSkip
    from data_builders.prompt_sets.prompts import Prompt
    from eval.replies.generation import generate, render_prompt

    layers = model.base_model.language_model.layers
    texts, images = [], []
    for number in range(num_problems):
        question = f"There are {number + 2} red and {number + 3} blue objects . What is red + blue * circles ?"
        prompt = Prompt(
            id=str(number), ability="vision-to-reasoning", question=question, answer="5", answer_kind="number",
            images=(f"target-{number}.png",),
        )  # fmt: skip
        texts.append(render_prompt(processor, prompt, style="think", system_prompt=None))
        images.append([directory / prompt.images[0]])
    plan = torch.zeros(len(layers) + 1, len(layers), 2, dtype=torch.bool)
    for number in range(len(layers)):
        plan[1 + number, number] = True

    def ours() -> Replies:
        rows = Rows(
            texts=texts,
            images=images,
            prompts=[number for number in range(num_problems) for _ in plan],
            plan=plan.repeat(num_problems, 1, 1),
        )
        with RowwiseSkip(model) as skip:
            return [row.response for row in answer_rows(model, processor, skip, rows, settings, repetition_window=0)]

    def plain() -> Replies:
        replies = []
        for text, paths in zip(texts, images, strict=True):
            for layer in (None, *layers):
                handles = [layer.register_forward_hook(lambda _, given, __: given[0])] if layer is not None else []
                replies += [row.response for row in generate(model, processor, [text], [paths], settings)]
                for handle in handles:
                    handle.remove()
        return replies

    return Contest(name="skip", num_problems=num_problems, num_rows=num_problems * len(plan), ours=ours, plain=plain)


def swap_contest(model: Any, processor: Any, settings: dict[str, Any], directory: Path, num_problems: int) -> Contest:
    """The picture of each pair swapped from every layer on, and not at all."""
    from analyze.swap.pairs import PairOptions, open_pair
    from analyze.swap.plan import swapped_layers
    from analyze.swap.reference import generate_swapped
    from analyze.swap.run import run_variants, trimmed
    from data_builders.pairs.pair import Pair

    swaps = swapped_layers("from", len(model.base_model.language_model.layers), 1)
    pairs = [
        open_pair(
            model,
            processor,
            directory,
            Pair(
                id=str(number), task="counting", prompt="How many objects are there ?", target_answer="3",
                source_answer="4", target_image=f"target-{number}.png", source_image=f"source-{number}.png",
            ),
            PairOptions(),
        )
        for number in range(num_problems)
    ]  # fmt: skip

    def ours() -> Replies:
        variants = run_variants(model, pairs, swaps, with_itself=[False] * len(swaps), settings=settings)
        return [variant.reply.tokens for own in variants for variant in own]

    def plain() -> Replies:
        return [
            trimmed(tokens, settings["eos_token_id"]).tokens
            for pair in pairs
            for tokens in generate_swapped(model, pair.target, pair.source, swaps, settings)
        ]

    return Contest(name="swap", num_problems=num_problems, num_rows=num_problems * len(swaps), ours=ours, plain=plain)


CONTESTS = {"swap": swap_contest, "skip": skip_contest}


def timed(work: Callable[[], Replies]) -> tuple[float, Replies]:
    """Returns the time of a call, including GPU work, and its result."""
    begin = time.perf_counter()
    replies = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, replies


def run_contest(contest: Contest, *, num_rounds: int, exact: bool) -> dict[str, Any]:
    """Runs both versions in alternation.

    Raises:
        RuntimeError: if replies differ although they should be equal.
    """
    contest.ours()  # warms up; the plain way runs long enough to warm itself
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    replies: dict[str, Replies] = {}
    for number in range(num_rounds):
        for name in ("ours", "plain") if number % 2 else ("plain", "ours"):
            taken, replies[name] = timed(getattr(contest, name))
            seconds[name].append(taken)
        num_equal = sum(a == b for a, b in zip(replies["ours"], replies["plain"], strict=True))
        if exact and num_equal < contest.num_rows:
            raise RuntimeError(f"{contest.name}: only {num_equal} of {contest.num_rows} replies are equal")
    return {
        "probe": contest.name,
        "num_problems": contest.num_problems,
        "num_rows": contest.num_rows,
        "num_rounds": num_rounds,
        "num_equal_replies": num_equal,
        "num_distinct_replies": len(set(replies["ours"])),
        "plain_s": float(np.median(seconds["plain"])),
        "ours_s": float(np.median(seconds["ours"])),
        "speedup": ratio(seconds["plain"], seconds["ours"]),
    }


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row per probe."""
    from eval.replies.generation import greedy_settings

    dtype = getattr(torch, arguments.dtype)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model, processor = build_model(SHAPES[arguments.shape], directory / "checkpoint", dtype)
        rng = np.random.default_rng(0)
        for number in range(arguments.num_problems):
            for role in ("target", "source"):
                draw_picture(directory / f"{role}-{number}.png", rng)
        settings = greedy_settings(model, processor, arguments.num_new_tokens)
        settings["eos_token_id"] = [model.config.vision_start_token_id]  # random weights end their replies at random
        rows = []
        for probe in arguments.probes:
            contest = CONTESTS[probe](model, processor, settings, directory, arguments.num_problems)
            rows.append(run_contest(contest, num_rounds=arguments.num_rounds, exact=dtype == torch.float32))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--shape", choices=list(SHAPES), default="narrow", help="shape of the decoder")
    parser.add_argument("--probes", nargs="+", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument("--num-problems", type=int, default=8, help="prompts or pairs per batch")
    parser.add_argument("--num-new-tokens", type=int, default=64, help="length of a reply, in tokens")
    parser.add_argument("--num-rounds", type=int, default=5, help="number of turns of each way")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args(argv)
    if arguments.num_rounds < 2:
        parser.error(f"--num-rounds is {arguments.num_rounds}; an interval needs at least 2")
    quiet_libraries()
    rows = measure(arguments)
    shape = SHAPES[arguments.shape]
    result = {
        "command": f"python -m benchmarks.probes --shape {arguments.shape}",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "num_threads": torch.get_num_threads(),
        "model": f"Qwen2.5-VL, {shape.num_layers} decoder layers, width {shape.hidden_size}, random weights",
        "dtype": arguments.dtype,
        "num_new_tokens": arguments.num_new_tokens,
        "rows": rows,
    }
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    for row in rows:
        speedup = row["speedup"]
        print(
            f"{row['probe']}: plain {row['plain_s']:.1f} s, ours {row['ours_s']:.1f} s for {row['num_rows']} replies "
            f"({row['num_equal_replies']} equal): {speedup['median']:.1f} x "
            f"[{speedup['low']:.1f}, {speedup['high']:.1f}]"
        )


if __name__ == "__main__":
    main()
