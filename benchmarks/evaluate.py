"""How much faster are batched answers than single ones? The same greedy replies, timed in turns on this machine.

    python -m benchmarks.evaluate --model outputs/pocket/sft/final --data outputs/pocket/data/data   # after make pocket

One by one is Transformers' own `generate`, a prompt at a time, with its processor. Batched is what `eval.run` calls
(`eval/replies/engines.py`), in the batches it makes. Both answer the same prompts of the test split, spread over its
abilities, in turns; a turn's ratio is between neighbours in time. Writes `benchmarks/results/evaluate.json`: commit,
command, hardware, medians, the ratio of every turn, and how many replies are equal, of which all must be.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_builders.prompt_sets.prompts import Prompt, prompts_fingerprint, read_prompts
from eval.replies.engines import EngineOptions, HuggingFace, Request
from eval.replies.generation import make_batches, render_prompt, resolved_settings, tokenizer_of
from eval.replies.pictures import Picture, pixel_limits
from eval.replies.sampling import SamplingArguments
from eval.replies.subject import open_subject
from models.loading import load_processor
from tracking.command import REPOSITORY_ROOT, quiet_libraries, run_command
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "evaluate.json"
TARGET = 6.0
"""Times the throughput of one by one."""


class Contest:
    """One model, its prompts, and two ways to answer them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.subject = open_subject(arguments.model)
        self.processor: Any = load_processor(self.subject.directory)
        self.directory = Path(arguments.data)
        prompts = read_prompts(self.directory, arguments.split)
        step = max(1, len(prompts) // arguments.num_prompts)
        self.prompts: list[Prompt] = prompts[::step][: arguments.num_prompts]
        self.settings = resolved_settings(self.subject.directory, self.processor, arguments.max_new_tokens)
        self.batch_size = arguments.batch_size
        options = EngineOptions(
            settings=self.settings,
            sampling=SamplingArguments(),
            limits=pixel_limits(self.processor, min_pixels=None, max_pixels=None),
            repetition_window=128,
            dtype=arguments.dtype,
            attn_implementation="sdpa",
        )
        self.engine = HuggingFace(self.subject, self.processor, options)
        self.model: Any = self.subject.load(dtype=arguments.dtype, attn_implementation="sdpa")[0]

    def render(self, prompt: Prompt) -> str:
        return render_prompt(self.processor, prompt, style="plain", system_prompt=None)

    def one_by_one(self) -> list[str]:
        from PIL import Image

        replies = []
        for prompt in self.prompts:
            images = [Image.open(self.directory / image).convert("RGB") for image in prompt.images]
            given = {"images": images} if images else {}
            inputs = self.processor(text=[self.render(prompt)], return_tensors="pt", **given).to(self.model.device)
            with torch.inference_mode():
                output = self.model.generate(**inputs, **self.settings)
            written = output[0, inputs["input_ids"].shape[1] :]
            replies.append(tokenizer_of(self.processor).decode(written, skip_special_tokens=True))
        return replies

    def batched(self) -> list[str]:
        texts = [self.render(prompt) for prompt in self.prompts]
        replies: dict[int, str] = {}
        for batch in make_batches(self.prompts, texts, self.batch_size):
            requests = [
                Request(texts[index], tuple(Picture(self.directory / image) for image in self.prompts[index].images))
                for index in batch
            ]
            replies |= dict(zip(batch, (one.response for one in self.engine.answer(requests)), strict=True))
        return [replies[index] for index in range(len(self.prompts))]


def timed(answer: Callable[[], list[str]]) -> tuple[list[str], float]:
    begin = time.perf_counter()
    return answer(), time.perf_counter() - begin


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs all turns and returns what is published of them.

    Raises:
        RuntimeError: where a reply differs.
    """
    contest = Contest(arguments)
    ways: dict[str, Callable[[], list[str]]] = {"one_by_one": contest.one_by_one, "batched": contest.batched}
    for answer in ways.values():  # what the first call alone pays for
        contest.prompts, all_prompts = contest.prompts[:4], contest.prompts
        answer()
        contest.prompts = all_prompts
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    replies: dict[str, list[str]] = {}
    for turn in range(arguments.num_turns):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            replies[name], spent = timed(ways[name])
            seconds[name].append(spent)
    num_equal = sum(ours == theirs for ours, theirs in zip(replies["batched"], replies["one_by_one"], strict=True))
    if num_equal < len(contest.prompts):
        raise RuntimeError(f"{len(contest.prompts) - num_equal} of {len(contest.prompts)} replies differ")
    ratios = np.array(seconds["one_by_one"]) / np.array(seconds["batched"])
    return {
        "model_fingerprint": contest.subject.fingerprint,
        "prompts": prompts_fingerprint(contest.directory, arguments.split),
        "num_prompts": len(contest.prompts),
        "num_equal_replies": num_equal,
        "num_distinct_replies": len(set(replies["batched"])),
        "batch_size": arguments.batch_size,
        "max_new_tokens": arguments.max_new_tokens,
        "one_by_one_s": [round(spent, 2) for spent in seconds["one_by_one"]],
        "batched_s": [round(spent, 2) for spent in seconds["batched"]],
        "one_by_one_replies_per_s": round(len(contest.prompts) / float(np.median(seconds["one_by_one"])), 1),
        "batched_replies_per_s": round(len(contest.prompts) / float(np.median(seconds["batched"])), 1),
        "speedup_per_turn": [round(float(ratio), 2) for ratio in ratios],
        "speedup": round(float(np.median(ratios)), 2),
        "target": TARGET,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--model", default="outputs/pocket/sft/final", help="checkpoint: folder or hub id")
    parser.add_argument("--data", default="outputs/pocket/data/data", help="folder of a prompt set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num-prompts", type=int, default=192, help="replies per turn")
    parser.add_argument("--num-turns", type=int, default=5, help="turns of each way of answering")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args(argv)
    quiet_libraries()
    found = measure(arguments)
    result = {
        "command": "python -m benchmarks.evaluate",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "num_threads": torch.get_num_threads(),
        "dtype": arguments.dtype,
        **found,
    }
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    print(
        f"{found['batched_replies_per_s']} replies a second batched, {found['one_by_one_replies_per_s']} one by one: "
        f"{found['speedup']} x, all {found['num_equal_replies']} equal"
    )


if __name__ == "__main__":
    run_command(main)
