"""Does a splice still match its recipe? Compares every tensor and file with its donor, byte for byte.

    python -m merge.verify outputs/in-rl-rl [--donor in=NEW_PATH]

The plan is recomputed from the recipe in `splice.json`, so the source of each tensor is checked against the recipe and
not only against the recorded list. Transplants are computed again. Exit status 0: intact; 1: a breach, with the tensors
listed.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merge.recipes.companions import SPLICE_FILE, companion_names
from merge.recipes.plan import ShardEntry, SplicePlan, make_plan
from merge.recipes.recipe import check_donor, owner_dict, parse_donors, recipe_from_dict
from merge.splice import CHECKPOINT_DIR, FORMAT_VERSION, source_of
from merge.tensors.copying import ByteRange
from models.checkpoint import Checkpoint, open_checkpoint
from models.fetch import format_size
from models.hub import parse_repository
from tracking.command import did_you_mean, parse_arguments, run_command
from tracking.progress import progress

NUM_NAMED = 10
"""Number of breaches printed."""
PIECE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Verdict:
    """What was compared, and the mismatches found."""

    num_tensors: int
    num_bytes: int
    num_files: int
    breaches: list[str]


def read_splice(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the folder of a splice's checkpoint and the content of its `splice.json`.

    Raises:
        ValueError: if the file is missing or not readable.
    """
    folder = directory / CHECKPOINT_DIR if (directory / CHECKPOINT_DIR).is_dir() else directory
    path = folder / SPLICE_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a folder that merge.splice wrote and finished")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has the format version {version!r}; expected {FORMAT_VERSION}")
    if not isinstance(description.get("recipe"), dict) or not isinstance(description.get("tensors"), dict):
        raise ValueError(f"{path} has no recipe and tensors; expected a file written by merge.splice")
    return folder, description


def plan_again(description: dict[str, Any], moved: dict[str, str]) -> SplicePlan:
    """Recomputes the plan of a splice from its recipe, with the donors' current folders and recorded commits."""
    recipe = recipe_from_dict(description["recipe"])
    for name in moved:
        if name not in recipe.donors:
            raise ValueError(
                f"--donor names {name!r}, which is not a donor of this splice{did_you_mean(name, recipe.donors)} "
                f"(donors are {', '.join(recipe.donors)})"
            )
    places = {}
    for name, checkpoint in recipe.donors.items():
        repository = parse_repository(checkpoint)
        revision = description.get("donors", {}).get(name, {}).get("revision")
        pinned = f"{repository.repo}@{revision}" if repository and revision else checkpoint
        places[name] = moved.get(name, pinned)
    try:
        return make_plan(replace(recipe, donors=places))
    except ValueError as error:
        raise ValueError(f"{error} (if a donor has moved, pass --donor NAME=CHECKPOINT)") from error


def verify(folder: Path, description: dict[str, Any], plan: SplicePlan) -> Verdict:
    """Compares a written splice with its recipe, its record and its donors.

    Raises:
        RuntimeError: if its weights cannot be opened.
    """
    try:
        written = open_checkpoint(folder)
    except ValueError as error:
        raise RuntimeError(f"BREACH: the splice cannot be opened: {error}") from error
    recorded = description["tensors"]
    expected = {written.family.canonical(entry.name_on_disk): entry for shard in plan.shards for entry in shard.entries}
    breaches = [f"{name}: missing" for name in expected if name not in written.tensors]
    breaches += [f"{name}: extra, the recipe has no such tensor" for name in written.tensors if name not in expected]
    names_on_disk = {stored.name_on_disk for stored in written.tensors.values()}
    breaches += [f"{name}: recorded, and in no file" for name in recorded if name not in names_on_disk]

    def check(name: str) -> list[str]:
        return [f"{name}: {found}" for found in _check_tensor(written, name, expected[name], recorded, plan)]

    shared = [name for name in written.tensors if name in expected]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for found in progress(threads.map(check, shared), label="verify", total=len(shared), unit="tensor"):
            breaches += found
    breaches += _check_files(written, description.get("files", {}), plan)
    return Verdict(
        num_tensors=len(written.tensors),
        num_bytes=sum(stored.num_bytes for stored in written.tensors.values()),
        num_files=len(plan.files),
        breaches=breaches,
    )


def _check_tensor(
    written: Checkpoint, name: str, entry: ShardEntry, recorded: dict[str, Any], plan: SplicePlan
) -> list[str]:
    stored = written.tensors[name]
    note = recorded.get(stored.name_on_disk)
    if note is None:
        return [f"{SPLICE_FILE} does not list it"]
    owner = plan.owners[entry.name]
    breaches = [
        f"{SPLICE_FILE} says {key} {note.get(key)!r}, {whose} says {value!r}"
        for key, value, whose in (
            ("name", entry.name, "the recipe"),
            ("owner", owner_dict(owner), "the recipe"),
            ("file", stored.file.name, "the splice"),
            ("dtype", stored.dtype, "the splice"),
            ("shape", list(stored.shape), "the splice"),
        )
        if note.get(key) != value
    ]
    if (stored.dtype, stored.shape) != (entry.dtype, entry.shape):
        breaches.append(f"{stored.dtype} {list(stored.shape)}, the recipe gives {entry.dtype} {list(entry.shape)}")
    sha256 = written.sha256(name)
    if sha256 != note.get("sha256"):
        breaches.append(f"its bytes are not those {SPLICE_FILE} records")
    if sha256 != _source_sha256(plan, entry):
        breaches.append(f"its bytes are not those of {owner}")
    return breaches


def _source_sha256(plan: SplicePlan, entry: ShardEntry) -> str:
    """Returns the sha256 of a tensor's bytes as its owner provides them now."""
    source = source_of(plan, entry)
    if isinstance(source, ByteRange):
        return plan.donors[str(plan.owners[entry.name])].sha256(entry.name)
    digest = hashlib.sha256()
    for piece in source:
        digest.update(piece)
    return digest.hexdigest()


def _check_files(written: Checkpoint, recorded: dict[str, Any], plan: SplicePlan) -> list[str]:
    """Compares the files other than weights with the donor's; an extra file that a model would read is a breach."""
    folder = written.directory
    breaches = []
    for file in plan.files:
        path = folder / file.name
        if not path.is_file():
            breaches.append(f"{file.name}: missing, {file.donor} has it")
            continue
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 != recorded.get(file.name, {}).get("sha256"):
            breaches.append(f"{file.name}: not the file {SPLICE_FILE} records")
        if sha256 != file.sha256:
            breaches.append(f"{file.name}: not the file of {file.donor}")
    known = {file.name for file in plan.files}
    breaches += [
        f"{name}: extra, {SPLICE_FILE} does not list it" for name in companion_names(folder) if name not in known
    ]
    weights = {stored.file.name for stored in written.tensors.values()}
    breaches += [
        f"{path.name}: extra weights, which belong to no splice"
        for path in sorted(folder.glob("*.safetensors"))
        if path.name not in weights
    ]
    return breaches


@dataclass(frozen=True, kw_only=True)
class VerifyArguments:
    """The splice to compare with its recipe and donors."""

    splice: str = field(metadata={"help": "output directory of merge.splice, or its checkpoint/", "positional": True})
    donor: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=CHECKPOINT: new location of a donor that was moved", "check": check_donor},
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, VerifyArguments, description=__doc__, check_inputs=True)
    folder, description = read_splice(Path(arguments.splice))
    plan = plan_again(description, parse_donors(arguments.donor))
    verdict = verify(folder, description, plan)
    for breach in verdict.breaches[:NUM_NAMED]:
        print(f"breach: {breach}")
    if verdict.breaches:
        raise RuntimeError(f"BREACH: {len(verdict.breaches)} in {folder}; the splice is not what its recipe says")
    print(
        f"proof: {verdict.num_tensors} tensors ({format_size(verdict.num_bytes)}) equal their owners byte for byte and "
        f"{verdict.num_files} files those of {plan.recipe.files_donor}"
    )


if __name__ == "__main__":
    run_command(main)
