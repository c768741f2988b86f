"""What holds for a checkpoint? Its names and files, and every instrument on a small random copy of its architecture.

    python -m models.check --model CHECKPOINT [--output FILE.json]

First the configuration and the headers of the weights: has every parameter one block or region, are the files' names
and shapes the model's, is the head tied, which dtypes are stored, are tokenizer and processor there? Then the suite's
own instruments, on a small random model of the same configuration class (`small.py`): freezing, LoRA, planned memory,
splices, weight changes, skipped layers, attention masses, swaps, batched replies and shared prompts, each against an
independent computation. One line a check; the numbers are the largest error and its tolerance.

The weights themselves are not read, so this takes under a minute on a CPU for a model of any size. Of a hub id, no
weights are fetched. A family without a record (`models/families.py`) is not checked: the groups of its parameters are
printed, with a record to start from.

Exit status 0: every check holds or does not apply; 1: a check does not hold, or the family has no record.
"""

import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.check.outcome import ABSENT, FAILS, HOLDS, Outcome, fails
from models.families import FAMILIES, OTHER_LAYOUTS, family_of
from models.foreign import CONFIG_FILE
from models.hub import parse_repository, snapshot
from models.layout import layout_of, read_model_config
from models.loading import CHECKPOINT_FILES, CHECKPOINT_IGNORED, check_checkpoint, local_checkpoint
from models.shards import parse_json_object
from tracking.command import REPOSITORY_ROOT, parse_arguments, quiet_libraries
from tracking.product import check_output_file, write_text

if TYPE_CHECKING:
    from models.check.small import Small
    from models.checkpoint import Checkpoint
    from models.layout import Layout

GUIDE = "docs/guides/your_architecture.md"
EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class CheckArguments:
    """The checkpoint, and where the results go."""

    model: str = field(
        metadata={
            "help": "checkpoint: folder or hub id; a folder with config.json alone is enough for most checks",
            "check": check_checkpoint,
        }
    )
    output: str | None = field(
        default=None, metadata={"help": "JSON file to write the results to", "check": check_output_file}
    )


def checkpoint_folder(name: str) -> Path:
    """Returns a checkpoint's folder; of a hub id, everything but the weights is fetched."""
    repository = parse_repository(name)
    if Path(name).is_dir() or repository is None:
        return local_checkpoint(name)
    patterns = [pattern for pattern in CHECKPOINT_FILES if "safetensors" not in pattern]
    return snapshot(repository, patterns=patterns, ignored=CHECKPOINT_IGNORED)


def check_files(directory: Path) -> "tuple[list[Outcome], Layout | None, Checkpoint | None]":
    """Checks a checkpoint's configuration and headers; also returns its layout and the opened files, if they can be."""
    from models.check import files

    config = read_model_config(directory)
    family = family_of(config["model_type"])
    placing, layout = files.check_placing(config, family)
    if layout is None:
        return [placing], None, None
    if family.carried:
        layout = layout_of(directory)  # also with the tensors of the files that no model has in memory
    names, checkpoint = files.check_names(directory, layout)
    others = [
        files.check_tying(config, layout, checkpoint),
        files.check_dtypes(checkpoint),
        files.check_processor_files(directory, family),
    ]
    return [placing, names, *others], layout, checkpoint


def small_checks(small: "Small", checkpoint: "Checkpoint | None") -> dict[str, Callable[[], Outcome]]:
    """Returns the checks on a small copy by name, in the order in which they run."""
    from models.check import probes, training, weights

    return {
        "spellings": lambda: weights.check_spellings(small, checkpoint),
        "precision": lambda: weights.check_precision(small),
        "freezing": lambda: training.check_freezing(small),
        "LoRA": lambda: training.check_lora(small),
        "plan": lambda: training.check_plan(small),
        "splice": lambda: weights.check_splice(small),
        "deltas": lambda: weights.check_deltas(small),
        "skip": lambda: probes.check_skip(small),
        "attention": lambda: probes.check_attention(small),
        "swap": lambda: probes.check_swap(small),
        "batch": lambda: probes.check_batch(small),
        "sharing": lambda: training.check_sharing(small),
    }


def run_check(name: str, check: Callable[[], Outcome]) -> Outcome:
    """Runs a check; one that raises does not hold, whatever the error: an unknown architecture may fail anywhere."""
    try:
        return check()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).splitlines() or [""])[0]
        return fails(name, f"{type(error).__name__}: {reason} ({_short(place.filename)}:{place.lineno})")


def check_small(directory: Path, folder: Path, checkpoint: "Checkpoint | None") -> Iterator[Outcome]:
    """Makes a small random copy of a checkpoint's architecture in a folder and checks it.

    Raises:
        ValueError: if no copy can be made.
    """
    from models.check.small import make_small

    config = read_model_config(directory)
    small = make_small(config, family_of(config["model_type"]), folder, companions=directory)
    for name, check in small_checks(small, checkpoint).items():
        yield run_check(name, check)


def describe_unknown(directory: Path, config: dict[str, Any]) -> list[str]:
    """Returns what a record of a family without one needs."""
    from models.check.guess import guess_groups, names_of, record_text

    model_type = config.get("model_type")
    auto_class, names = names_of(config)
    groups = guess_groups(names)
    return [
        f"family: {model_type} has no record in models/families.py (there are {', '.join(sorted(FAMILIES))})",
        "A record says where the decoder layers, the vision blocks and every other parameter are, and how files spell",
        f"them. Groups of the {len(names)} parameters, with guessed regions (? for none):",
        *map(str, groups),
        "A record to start from:",
        record_text(config, auto_class, groups),
        f"The next steps are in {GUIDE}",
    ]


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, CheckArguments, description=__doc__, check_inputs=True)
    quiet_libraries()
    begin = time.monotonic()
    directory = checkpoint_folder(arguments.model)
    raw = parse_json_object((directory / CONFIG_FILE).read_bytes(), str(directory / CONFIG_FILE))
    print(f"model: {arguments.model}")
    if isinstance(raw.get("model_type"), str) and raw["model_type"] not in (*FAMILIES, *OTHER_LAYOUTS):
        print("\n".join(describe_unknown(directory, raw)))
        raise SystemExit(EXIT_FAILED)
    outcomes, layout, checkpoint = check_files(directory)
    if layout is not None:
        _print_layout(layout)
    print("configuration and files")
    for outcome in outcomes:
        print(outcome)
    if layout is not None:
        print("on a small random copy", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for outcome in check_small(directory, Path(folder), checkpoint):
                print(outcome, flush=True)
                outcomes.append(outcome)
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in (HOLDS, ABSENT, FAILS)}
    print(
        f"{len(outcomes)} checks in {time.monotonic() - begin:.0f} s: "
        f"{counts[HOLDS]} hold, {counts[ABSENT]} do not apply, {counts[FAILS]} do not hold"
    )
    if arguments.output:
        report = {
            "model": arguments.model,
            "family": raw["model_type"],
            "checks": [outcome.as_row() for outcome in outcomes],
        }
        write_text(Path(arguments.output), json.dumps(report, indent=1) + "\n")
        print(f"report: {arguments.output}")
    if counts[FAILS]:
        raise SystemExit(EXIT_FAILED)


def _print_layout(layout: "Layout") -> None:
    from models.check.files import region_table

    print(
        f"family: {layout.family.model_type}, {layout.num_layers} decoder layers, {layout.num_vision_blocks} vision "
        f"blocks, {layout.num_elements:,} parameters"
    )
    print("\n".join(region_table(layout)))


def _short(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(REPOSITORY_ROOT) and ".venv" not in path.parts:
        return str(path.relative_to(REPOSITORY_ROOT))
    return "/".join(path.parts[-2:])
