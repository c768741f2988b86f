"""Which files accompany the weights, and do the donors agree on them? Config, tokenizer, processor, chat template."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint import COMPANION_SUFFIXES, Checkpoint

SPLICE_FILE = "splice.json"
ROLLOUT_FILE = "rollout.json"
"""Records what generated the replies that a checkpoint was trained on."""
CARD_FILE = "README.md"
TEMPLATES_DIR = "additional_chat_templates"
"""Folder in which Transformers keeps additional chat templates."""
LEFTOVERS = (
    "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", "adapter_config.json",
    "freeze_report.json", ROLLOUT_FILE, SPLICE_FILE,
)  # fmt: skip
"""Files that describe how a donor was made; they are not part of the model and are not copied."""
MAX_COMPARED_BYTES = 2**20
"""Larger JSON files are compared by bytes only; listing the keys of a tokenizer's vocabulary would not help."""
NUM_KEYS_NAMED = 8
SAME, LACKING = "same", "lacking"


@dataclass(frozen=True, kw_only=True)
class CompanionFile:
    """A file that accompanies the weights, copied byte for byte."""

    name: str
    donor: str
    sha256: str
    others: dict[str, str]
    """Each other donor -> `same`, `lacking`, or `differs` followed by the differing keys."""


def find_companions(owner: str, donors: Mapping[str, Checkpoint]) -> tuple[tuple[CompanionFile, ...], list[str]]:
    """Returns the files to copy along with the weights, and a note for each file on which the donors disagree."""
    source = donors[owner].directory
    names = companion_names(source)
    others = {name: donor.directory for name, donor in donors.items() if name != owner}
    files = tuple(
        CompanionFile(
            name=name,
            donor=owner,
            sha256=hashlib.sha256((source / name).read_bytes()).hexdigest(),
            others={other: _compare(source / name, directory / name) for other, directory in others.items()},
        )
        for name in names
    )
    notes = [
        f"{file.name}: {other}'s copy {found}, {owner}'s is taken"
        for file in files
        for other, found in file.others.items()
        if found not in (SAME, LACKING)
    ]
    notes += [
        f"{name}: {other} has this file, {owner} has not, so the splice has none"
        for other, directory in others.items()
        for name in companion_names(directory)
        if name not in names
    ]
    return files, notes


def companion_names(directory: Path) -> list[str]:
    """Returns the files of a checkpoint that belong to the model, other than its weights."""
    found = [*directory.iterdir(), *directory.glob(f"{TEMPLATES_DIR}/*.jinja")]
    return sorted(
        path.relative_to(directory).as_posix()
        for path in found
        if path.is_file()
        and path.suffix in COMPANION_SUFFIXES
        and path.name not in LEFTOVERS
        and not path.name.startswith(".")
        and not path.name.endswith(".index.json")
    )


def _compare(one: Path, other: Path) -> str:
    if not other.is_file():
        return LACKING
    before, after = one.read_bytes(), other.read_bytes()
    if before == after:
        return SAME
    if one.suffix != ".json" or max(len(before), len(after)) > MAX_COMPARED_BYTES:
        return "differs"
    try:
        keys = list(_differing_keys(json.loads(before), json.loads(after)))
    except ValueError:
        return "differs"
    if not keys:
        return "differs in spelling alone"
    more = f" and {len(keys) - NUM_KEYS_NAMED} more" if len(keys) > NUM_KEYS_NAMED else ""
    return f"differs in {', '.join(keys[:NUM_KEYS_NAMED])}{more}"


def _differing_keys(one: Any, other: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _differing_keys(one.get(key), other.get(key), f"{prefix}.{key}" if prefix else key)
    elif one != other or type(one) is not type(other):
        yield prefix or "its whole content"
