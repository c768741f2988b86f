"""Were these models asked the same in the same way? What differs between their evaluations, and how to mend it.

Models of a comparison must share prompts, prompt style, generation limits, dtype and attention implementation. A
refusal names every setting that differs, with the arguments of `eval.run` that would make the second evaluation match.
"""

import hashlib
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from eval.replies.conditions import BY_ABILITY
from eval.replies.outcomes import GIVEN
from eval.statistics.pairing import Entry
from tracking.run import RUN_FILE, read_run

RECORDS_FILE = "records.jsonl"

EVALUATION, IMPORT = "eval.run", "eval.import"
PER_MODEL_SETTINGS = ("model", "model_fingerprint", "box_space")
"""Settings of an evaluation in which the models of a comparison may differ."""
PER_MODEL_TOKENS = ("eos_token_id", "pad_token_id")
"""Of the generation's settings: where a model ends its turn is its own."""
FLAGS = {
    "prompt_style": "prompt-style", "system_prompt": "system-prompt", "max_new_tokens": "max-new-tokens",
    "repetition_window": "repetition-window", "engine": "engine", "batch_size": "batch-size", "dtype": "dtype",
    "attn_implementation": "attn-implementation", "judge": "judge-model", "pixels.min_pixels": "min-pixels",
    "pixels.max_pixels": "max-pixels", "sampling.num_samples": "num-samples", "sampling.temperature": "temperature",
    "sampling.top_p": "top-p", "sampling.seed": "seed",
}  # fmt: skip
"""Setting -> the argument of `eval.run` that sets it."""
FOLLOWING = {"generation.max_new_tokens": "max_new_tokens"}
"""Setting -> the one that it follows, which is named in its place."""


def identify(entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns what a comparison records of its evaluations: their settings, and the sha256 of their records."""
    return {
        "models": {entry.label: read_run(entry.directory)["settings"] for entry in entries},
        "records_sha256": {
            entry.label: hashlib.sha256((entry.directory / RECORDS_FILE).read_bytes()).hexdigest() for entry in entries
        },
    }


def read_evaluation(directory: Path) -> dict[str, Any]:
    """Reads the `run.json` of a finished evaluation.

    Raises:
        ValueError: where the folder is not the output directory of `eval.run`, or the run is not finished.
    """
    if not (directory / RUN_FILE).is_file():
        what = "has no run.json" if directory.is_dir() else "does not exist"
        near = [place for place in (*_folders(directory), directory.parent) if _is_evaluation(place)]
        meant = f"; did you mean {' or '.join(map(str, near[:3]))}?" if near else ""
        raise ValueError(f"{directory} {what}; expected an output directory of {EVALUATION}{meant}")
    run = read_run(directory)
    if run["command"] not in (EVALUATION, IMPORT):
        way_out = ""
        if (directory / "final").is_dir():
            way_out = f"; evaluate its checkpoint first: {EVALUATION} --model {directory / 'final'}"
        raise ValueError(
            f"{directory} was written by {run['command']}; expected an output directory of {EVALUATION}{way_out}"
        )
    if run["status"] != "finished":
        raise ValueError(f"{directory} is {run['status']}; run its evaluation to the end first")
    return run


def _folders(directory: Path) -> list[Path]:
    return sorted(place for place in directory.iterdir() if place.is_dir()) if directory.is_dir() else []


def _is_evaluation(directory: Path) -> bool:
    return (directory / RUN_FILE).is_file() and read_run(directory)["command"] in (EVALUATION, IMPORT)


def check_alike(entries: Sequence[Entry]) -> None:
    """Refuses a comparison of models that were not asked the same in the same way.

    Raises:
        ValueError: naming every setting that differs between the first model and another, and the way out.
    """
    labels = sorted(entry.label for entry in entries)
    repeated = [label for label, group in itertools.groupby(labels) if len(list(group)) > 1]
    if repeated:
        raise ValueError(f"model {repeated[0]!r} is named twice; expected each model and seed once, as NAME@SEED=DIR")
    first, *others = [(entry.label, read_evaluation(entry.directory)) for entry in entries]
    for label, run in others:
        _check_same_command(first, (label, run))
        differing = list(_differing(shared_settings(first[1]["settings"]), shared_settings(run["settings"])))
        if differing:
            found = "; ".join(f"{name}: {ours!r} and {theirs!r}" for name, ours, theirs in differing)
            raise ValueError(
                f"{first[0]} and {label} were evaluated with different {found}{_way_out(first, label, differing)}"
            )


def _check_same_command(first: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]]) -> None:
    """Refuses to compare replies of this suite with those of another harness, or of two harnesses."""
    (label, _), (other_label, _) = first, other
    ours, theirs = (run["settings"].get("harness", EVALUATION) for _, run in (first, other))
    if ours != theirs:
        raise ValueError(
            f"{label} was asked by {ours} and {other_label} by {theirs}, which write prompts differently; compare "
            "models that the same harness asked"
        )


def shared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of an evaluation that every model of a comparison must share."""
    shared = {key: value for key, value in settings.items() if key not in PER_MODEL_SETTINGS}
    if "generation" in shared:
        shared["generation"] = {
            key: value for key, value in shared["generation"].items() if key not in PER_MODEL_TOKENS
        }
    return shared


def _differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, of the first, of the other) of each setting that differs, those inside of others by their own."""
    names = dict.fromkeys([*first, *other])
    for name in names:
        ours, theirs = first.get(name), other.get(name)
        if ours == theirs:
            continue
        if not (isinstance(ours, dict) and isinstance(theirs, dict)):
            yield name, ours, theirs
            continue
        for key in dict.fromkeys([*ours, *theirs]):
            followed = FOLLOWING.get(f"{name}.{key}")
            if ours.get(key) != theirs.get(key) and not (followed and first.get(followed) != other.get(followed)):
                yield f"{name}.{key}", ours.get(key), theirs.get(key)


def _way_out(first: tuple[str, Mapping[str, Any]], other: str, differing: Sequence[tuple[str, Any, Any]]) -> str:
    label, run = first
    if run["command"] == IMPORT:
        if any(name.startswith("tasks.") for name, _, _ in differing):
            return f"; they were asked different prompts: import replies of {other} to the prompts of {label}"
        return f"; import replies of {other} that were generated as those of {label}"
    if any(name.startswith("tasks.") for name, _, _ in differing):
        tasks = run["attempts"][-1].get("tasks", {}).values()
        as_first = f", as {label}: --tasks {shlex.join(tasks)}" if tasks else f" as {label}"
        return f"; they were asked different prompts: evaluate {other} on the same{as_first}"
    flags = [flag for name, ours, _ in differing if (flag := _flag(name, ours))]
    dropped = [f"--{FLAGS[name]}" for name, ours, _ in differing if name in FLAGS and ours is None]
    if not flags and not dropped:
        return f"; evaluate {other} as {label} was evaluated"
    asked = " and ".join(
        [*([f"with {' '.join(flags)}"] if flags else []), *([f"without {' '.join(dropped)}"] if dropped else [])]
    )
    words = [str(word) for word in run["attempts"][-1]["argv"]]
    config = next((value for word, value in pairwise(words) if word == "--config"), None)
    by_file = f", or with --config {config} as {label} was" if config else ""
    return f"; run {EVALUATION} for {other} again {asked}{by_file} (--overwrite replaces what it wrote)"


def _flag(name: str, value: Any) -> str:
    """Returns the argument that gives `eval.run` this value of a setting; empty where there is none."""
    if name == "conditions":
        return "--abilities true" if value == BY_ABILITY else f"--conditions {shlex.join(value or [GIVEN])}"
    return f"--{FLAGS[name]} {shlex.quote(str(value))}" if name in FLAGS and value is not None else ""
