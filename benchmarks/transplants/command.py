"""How much faster is a sweep of transplants than evaluating each written checkpoint? Both on this machine, in turns.

    python -m benchmarks.transplants      # after make pocket

The sweep is one `python -m analyze.transplant`: every decoder layer with five factors, on 500 prompts. The other way is
what a user would do without it, one model after another: `python -m merge.splice` with a recipe, then `python -m
eval.run` on the written checkpoint. In every round the whole sweep runs, and a sample of its models is written and
evaluated. A third way has no checkpoints and no new processes, but shares nothing between models either: the sample is
answered by the engine of `eval.run` in one process with edited weights. It shows what sharing prefixes gives by itself.

A model's seconds are those of the sweep divided by its number of models, START and END included. Ratios are taken
within a round, of wall-clock time and of CPU time (which other work on the machine disturbs less); medians with 95 %
bootstrap intervals. Every reply of the sample must equal the sweep's. Writes `benchmarks/results/transplants.json`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyze.layers.plan import SUFFICIENCY
from analyze.transplant.plan import START, Variant, expand_units
from benchmarks.transplants.recipe import recipe_of
from merge.recipes.recipe import recipe_dict
from models.blocks import make_partition
from models.layout import Layout, layout_of
from tracking.command import REPOSITORY_ROOT
from tracking.product import write_text
from tracking.records import read_records
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "transplants.json"
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5)
TARGET = 4.0
END = "full"
SAME = ("response", "finish_reason", "num_tokens", "status")
"""What has to be equal in two records of one reply."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a command cost."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(wall_s=self.wall_s + other.wall_s, cpu_s=self.cpu_s + other.cpu_s)


def timed(*command: str) -> Spent:
    """Runs a command of the suite and returns its cost.

    Raises:
        RuntimeError: if it fails, with the end of what it printed.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=REPOSITORY_ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{command[0]} failed with exit status {process.returncode}: {log.read()[-2000:]}")
    return Spent(wall_s=time.perf_counter() - begin, cpu_s=usage.ru_utime + usage.ru_stime)


def asking(arguments: argparse.Namespace) -> list[str]:
    """Returns the arguments that `eval.run` and `analyze.transplant` share."""
    return [
        "--tasks", f"{arguments.data}:{arguments.split}", "--limit", str(arguments.num_prompts), "--batch_size",
        str(arguments.batch_size), "--max_new_tokens", str(arguments.max_new_tokens), "--dtype", arguments.dtype,
    ]  # fmt: skip


def run_sweep(arguments: argparse.Namespace, output: Path) -> Spent:
    """Runs the whole sweep in one process."""
    return timed(
        "analyze.transplant", "--start", arguments.start, "--ends", f"{END}={arguments.end}", "--units", "each",
        "--alphas", *map(str, ALPHAS), "--directions", SUFFICIENCY, "--output_dir", str(output), *asking(arguments),
    )  # fmt: skip


def run_written(arguments: argparse.Namespace, variant: Variant, layout: Layout, directory: Path) -> Spent:
    """Writes one model and evaluates it, in two processes."""
    import yaml

    directory.mkdir(parents=True)
    recipe = directory / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_dict(recipe_of(variant, layout, arguments.start, arguments.end))))
    written = timed("merge.splice", "--recipe", str(recipe), "--output_dir", str(directory / "splice"))
    checkpoint = str(directory / "splice" / "checkpoint")
    return written + timed(
        "eval.run", "--model", checkpoint, "--output_dir", str(directory / "eval"), *asking(arguments)
    )


def replies(records: Sequence[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Returns what is compared of each prompt's reply."""
    return {f"{record['task']}/{record['id']}": tuple(record[name] for name in SAME) for record in records}


def measure_unshared(arguments: argparse.Namespace, variants: Sequence[Variant]) -> dict[str, Any]:
    """Answers all prompts with some models in this process, without sharing anything; returns seconds and replies."""
    from analyze.transplant.edits import LiveModel
    from eval.replies.answering import answer_batch, make_query_batches
    from eval.replies.conditions import make_queries
    from eval.replies.engines import EngineOptions, HuggingFace
    from eval.replies.generation import render_prompt, resolved_settings
    from eval.replies.pictures import pixel_limits
    from eval.replies.sampling import SamplingArguments
    from eval.replies.subject import open_subject
    from eval.tasks import open_task
    from models.adapters.opening import open_model
    from models.loading import load_processor

    subject = open_subject(arguments.start)
    processor: Any = load_processor(subject.directory)
    options = EngineOptions(
        settings=resolved_settings(subject.directory, processor, arguments.max_new_tokens),
        sampling=SamplingArguments(),
        limits=pixel_limits(processor, min_pixels=None, max_pixels=None),
        repetition_window=128,
        dtype=arguments.dtype,
        attn_implementation="sdpa",
    )
    engine = HuggingFace(subject, processor, options)
    live = LiveModel(engine.model, {START: open_model(arguments.start), END: open_model(arguments.end)})
    task = open_task(f"{arguments.data}:{arguments.split}").limited(arguments.num_prompts)
    queries = make_queries(task, lambda _: ("given",), {}, 1)
    texts = {query.key: render_prompt(processor, query.prompt, style="plain", system_prompt=None) for query in queries}
    batches = make_query_batches(queries, texts, arguments.batch_size)
    for _ in answer_batch(engine, batches[0], texts, arguments.batch_size, 0):  # what the first batch alone pays for
        pass
    spent, found = [], {}
    for variant in variants:
        begin, cpu = time.perf_counter(), time.process_time()
        with live.edited(variant):
            records = [
                record
                for batch in batches
                for part in answer_batch(engine, batch, texts, arguments.batch_size, 0)
                for record in part
            ]
        spent.append({"wall_s": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu})
        found[variant.prefix] = replies(records)
    return {"spent": spent, "replies": found}


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Runs all rounds and returns what is published.

    Raises:
        RuntimeError: if a reply differs.
    """
    from benchmarks.freeze_cost import ratio

    layout = layout_of(Path(arguments.start))
    units = expand_units(["each"], layout, make_partition(layout.num_layers))
    variants = [Variant(end=END, direction=SUFFICIENCY, unit=unit, alpha=alpha) for unit in units for alpha in ALPHAS]
    draws = random.Random(0)
    num_models = len(variants) + 2
    rounds: list[dict[str, Any]] = []
    num_compared = num_equal = 0
    for number in range(arguments.rounds):
        sample = draws.sample(variants, arguments.sampled)
        folder = directory / f"round-{number}"
        sweep = Spent(wall_s=0, cpu_s=0)
        written: list[Spent] = []
        for first in (number % 2 == 0, number % 2 == 1):  # the order alternates
            if first:
                sweep = run_sweep(arguments, folder / "sweep")
            else:
                written = [
                    run_written(arguments, variant, layout, folder / f"written-{place}")
                    for place, variant in enumerate(sample)
                ]
        unshared = measure_unshared(arguments, sample)
        records = read_records(folder / "sweep" / "records.jsonl")
        for place, variant in enumerate(sample):
            own = replies([one for one in records if one["key"].startswith(f"{variant.prefix}/")])
            for other in (
                replies(read_records(folder / f"written-{place}" / "eval" / "records.jsonl")),
                unshared["replies"][variant.prefix],
            ):
                num_compared += len(other)
                num_equal += sum(own[key] == reply for key, reply in other.items())
        rounds.append(
            {
                "sweep_wall_s": sweep.wall_s,
                "sweep_cpu_s": sweep.cpu_s,
                "written_wall_s": [one.wall_s for one in written],
                "written_cpu_s": [one.cpu_s for one in written],
                "unshared_wall_s": [one["wall_s"] for one in unshared["spent"]],
                "unshared_cpu_s": [one["cpu_s"] for one in unshared["spent"]],
            }
        )
        print(f"round {number + 1}: {json.dumps(rounds[-1])}", flush=True)
    if num_equal < num_compared:
        raise RuntimeError(f"{num_compared - num_equal} of {num_compared} replies differ")
    ratios = {
        f"{way}_to_sweep_{kind}": ratio(
            [sum(each[f"{way}_{kind}_s"]) / len(each[f"{way}_{kind}_s"]) for each in rounds],
            [each[f"sweep_{kind}_s"] / num_models for each in rounds],
        )
        for way in ("written", "unshared")
        for kind in ("wall", "cpu")
    }
    return {
        "num_models": num_models, "num_layers": layout.num_layers, "alphas": list(ALPHAS),
        "num_prompts": arguments.num_prompts, "batch_size": arguments.batch_size,
        "max_new_tokens": arguments.max_new_tokens, "dtype": arguments.dtype, "num_replies_compared": num_compared,
        "num_replies_equal": num_equal, "ratios": ratios, "target": TARGET, "rounds": rounds,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--start", default="outputs/pocket/sft/final", help="START: folder or hub id")
    parser.add_argument("--end", default="outputs/pocket/arms/full-seed0/final", help="END: folder or hub id")
    parser.add_argument("--data", default="outputs/pocket/data/data", help="folder of a prompt set")
    parser.add_argument("--split", default="test", help="split of it")
    parser.add_argument("--num-prompts", type=int, default=500, help="number of prompts")
    parser.add_argument("--batch-size", type=int, default=128, help="replies generated together")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="maximum length of a reply, in tokens")
    parser.add_argument("--dtype", default="float32", help="dtype of the models")
    parser.add_argument("--rounds", type=int, default=5, help="number of sweeps")
    parser.add_argument("--sampled", type=int, default=2, help="models that are written and evaluated in each round")
    arguments = parser.parse_args(argv)
    for name in ("start", "end", "data"):  # the commands run in the repository
        path = Path(getattr(arguments, name))
        setattr(arguments, name, str(path.resolve()) if path.exists() else str(path))
    with tempfile.TemporaryDirectory() as directory:
        found = measure(arguments, Path(directory))
    shown = [os.path.relpath(word) if Path(word).is_absolute() else word for word in argv or sys.argv[1:]]
    result = {
        "command": " ".join(["python -m benchmarks.transplants", *shown]),
        "date": datetime.now(UTC).date().isoformat(),
        "git": git_state(),
        "hardware": hardware(),
        **found,
    }
    write_text(arguments.output, json.dumps(result, indent=2) + "\n")
    print(json.dumps(found["ratios"], indent=2))
