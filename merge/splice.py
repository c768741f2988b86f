"""What if parts came from elsewhere? Builds a checkpoint from several donors by a recipe, copying byte ranges.

    python -m merge.splice --pattern in:rl:rl --donor in=IN --donor rl=RL --rest in --output-dir outputs/in-rl-rl
    python -m merge.splice --recipe recipe.yaml --output-dir outputs/splice [--dry-run]

No tensor is decoded and torch is not imported, except for transplants (`merge/tensors/transplant.py`) and for the
tensors that a donor's adapter changes: a PEFT adapter as a donor stands for its base with the adapter merged in.

OUTPUT/checkpoint/              loadable: the weights, one donor's other files, and
OUTPUT/checkpoint/splice.json   source and sha256 of every tensor, the recipe, the donors
OUTPUT/checkpoint/README.md     the model card
OUTPUT/records.jsonl            one record per finished shard
"""

import errno
import hashlib
import json
import platform
import re
import shutil
import tomllib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from merge.recipes.card import describe_parts, describe_plan, render_card
from merge.recipes.companions import CARD_FILE, SPLICE_FILE
from merge.recipes.plan import ShardEntry, SplicePlan, make_plan
from merge.recipes.recipe import (
    FILES_ARGUMENT,
    OWN_PARTITION_ARGUMENT,
    REST_ARGUMENT,
    Blend,
    Recipe,
    check_donor,
    donors_of,
    owner_dict,
    read_recipe,
    recipe_dict,
    recipe_from_pattern,
)
from merge.tensors.copying import ByteRange, Source, write_shard
from models.adapters.merged import MergedCheckpoint
from models.adapters.opening import place_of
from models.adapters.reading import Replacement
from models.blocks import CUTS_ARGUMENT
from models.checkpoint import INDEX_FILE, Checkpoint
from models.fetch import format_size
from tracking.command import REPOSITORY_ROOT, check_all, parse_arguments, raise_mistakes, run_command
from tracking.product import partial_directory
from tracking.progress import BYTES, Progress
from tracking.records import RecordLog
from tracking.run import OVERWRITE_ARGUMENT, git_state, open_run

COMMAND = "merge.splice"
CHECKPOINT_DIR = "checkpoint"
FORMAT_VERSION = 1
"""Of `splice.json`."""
SUITE = "frankenstein-suite"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SPARE_BYTES = 16 * 2**20
"""Disk space to keep free for the files other than weights."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class RecipeArguments:
    """The source of every part: a recipe file, or a pattern."""

    recipe: str | None = field(default=None, metadata={"help": "YAML file of the recipe: donors, blocks, rest"})
    pattern: str | None = field(
        default=None, metadata={"help": "EARLY:MID:LATE, such as in:rl:rl; used instead of --recipe"}
    )
    donor: list[str] = field(
        default_factory=list,
        metadata={
            "help": "NAME=CHECKPOINT (folder or hub id, or a PEFT adapter), given once per donor",
            "check": check_donor,
        },
    )
    rest: list[str] = field(
        default_factory=list,
        metadata=REST_ARGUMENT,
    )
    partition: str | None = field(
        default=None,
        metadata=OWN_PARTITION_ARGUMENT,
    )
    cuts: list[int] = field(
        default_factory=list,
        metadata=CUTS_ARGUMENT,
    )
    files: str | None = field(
        default=None,
        metadata=FILES_ARGUMENT,
    )

    def __post_init__(self) -> None:
        if (self.recipe is None) == (self.pattern is None):
            raise ValueError("expected either --recipe FILE, or --pattern EARLY:MID:LATE with --donor and --rest")
        if self.recipe is None:
            make_recipe(self)
            return
        names = [name for name in ("donor", "rest", "partition", "cuts", "files") if getattr(self, name)]
        raise_mistakes([f"--{name} requires --pattern; with --recipe, set it in {self.recipe}" for name in names])

    def check_inputs(self) -> None:
        """Refuses a recipe's file that cannot be read."""
        make_recipe(self)


@dataclass(frozen=True, kw_only=True)
class SpliceArguments:
    """Where the splice is written, and how."""

    output_dir: str | None = field(
        default=None, metadata={"help": "output directory; the splice is written to its subfolder checkpoint/"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print the plan and write nothing"})
    max_shard_size: str | None = field(
        default=None,
        metadata={
            "help": "maximum size of a shard, such as 5GB; by default the first donor's division into files is kept"
        },
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(partial(parse_size, self.max_shard_size), self._check_place)

    def _check_place(self) -> None:
        if self.output_dir is None and not self.dry_run:
            raise ValueError("--output-dir is missing; expected a folder for the splice, or --dry-run")


def make_recipe(arguments: RecipeArguments) -> Recipe:
    """Returns the recipe described by the arguments."""
    if arguments.recipe is None:
        assert arguments.pattern is not None
        return recipe_from_pattern(
            arguments.pattern,
            donors=arguments.donor,
            rest=arguments.rest,
            partition=arguments.partition,
            cuts=arguments.cuts,
            files=arguments.files,
        )
    return read_recipe(Path(arguments.recipe))


def parse_size(text: str | None) -> int | None:
    """Parses a size such as `5GB` (decimal, as in Transformers) or `5GiB` into bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2].upper() not in UNITS or float(match[1]) * UNITS[match[2].upper()] < 1:
        raise ValueError(
            f"--max-shard-size {text!r} is not a size; expected a number with MB, GB, MiB or GiB, such as 5GB"
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


def write_splice(plan: SplicePlan, directory: Path, *, max_shard_bytes: int | None, overwrite: bool = False) -> Path:
    """Writes a splice into a run directory, continuing an earlier attempt.

    Returns:
        The folder of the checkpoint.

    Raises:
        ValueError: if the directory is a donor's or another run's, or the disk is too small.
        RuntimeError: if a donor changes or the disk fills up during the copy.
    """
    check_place(directory, plan)
    checkpoint = directory / CHECKPOINT_DIR
    versions = file_versions(plan)
    settings = run_settings(plan, max_shard_bytes)
    with open_run(directory, command=COMMAND, settings=settings, overwrite=overwrite) as run:
        if run.finished or checkpoint.exists():
            return checkpoint
        with RecordLog(directory / "records.jsonl") as log, partial_directory(checkpoint, keep=True) as partial:
            drop_unfinished(partial, log)
            check_room(directory, sum(shard.num_bytes for shard in plan.shards if shard.file not in log))
            try:
                write_weights(plan, partial, log)
                hashes = {name: sha256 for record in log for name, sha256 in record["sha256"].items()}
                write_beside(plan, partial, describe_splice(plan, settings["donors"], hashes))
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                drop_unfinished(partial, log)  # frees space to record the error in run.json
                raise RuntimeError(f"{partial}: the disk is full; free some space and run the command again") from error
            if file_versions(plan) != versions:
                raise RuntimeError(f"a donor of {directory} changed during the copy; start over with --overwrite")
    return checkpoint


def write_weights(plan: SplicePlan, partial: Path, log: RecordLog) -> None:
    """Writes the unfinished shards and appends a record for each once it is on disk."""
    done = sum(shard.num_bytes for shard in plan.shards if shard.file in log)
    with Progress(label=f"writing {partial.parent}", total=plan.num_bytes, unit=BYTES, done=done) as bar:
        for shard in plan.shards:
            if shard.file in log:
                continue
            sources = (source_of(plan, entry) for entry in shard.entries)
            hashes = write_shard(partial / shard.file, shard.header, sources, advance=bar.advance)
            names = [entry.name_on_disk for entry in shard.entries]
            sha256 = dict(zip(names, hashes, strict=True))
            log.append({"key": shard.file, "num_bytes": shard.num_bytes, "sha256": sha256})


def source_of(plan: SplicePlan, entry: ShardEntry) -> Source:
    """Returns where a tensor's bytes come from."""
    owner = plan.owners[entry.name]
    if isinstance(owner, Blend):
        from merge.tensors.transplant import blend_bytes

        return blend_bytes(plan.donors, owner, entry.name, entry.dtype)
    donor = plan.donors[owner]
    if isinstance(donor, MergedCheckpoint) and entry.name in donor.adapter.updates:
        return [donor.data(entry.name)]
    stored = donor.tensors[entry.name]
    return ByteRange(stored.file, stored.offset, stored.num_bytes)


def write_beside(plan: SplicePlan, partial: Path, description: dict[str, Any]) -> None:
    """Writes all files other than weights."""
    if plan.index is not None:
        (partial / INDEX_FILE).write_bytes(plan.index)
    for file in plan.files:
        content = (plan.donors[file.donor].directory / file.name).read_bytes()
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise RuntimeError(f"{file.name} of donor {file.donor} changed meanwhile; start over with --overwrite")
        (partial / file.name).parent.mkdir(exist_ok=True)
        (partial / file.name).write_bytes(content)
    (partial / SPLICE_FILE).write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (partial / CARD_FILE).write_text(render_card(plan), encoding="utf-8")


def describe_splice(plan: SplicePlan, donors: dict[str, Any], hashes: dict[str, str]) -> dict[str, Any]:
    """Returns the content of `splice.json`."""
    tensors = {}
    for shard in plan.shards:
        for entry in shard.entries:
            owner = plan.owners[entry.name]
            stored = {donor: plan.donors[donor].tensors[entry.name] for donor in donors_of(owner)}
            tensors[entry.name_on_disk] = {
                "name": entry.name,
                "file": shard.file,
                "owner": owner_dict(owner),
                "sources": [
                    {"donor": donor, "file": source.file.name, "name": source.name_on_disk}
                    | _describe_update(plan.donors[donor], entry.name)
                    for donor, source in stored.items()
                ],
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "sha256": hashes[entry.name_on_disk],
            }
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe_dict(plan.recipe),
        "cuts": list(plan.partition.cuts),
        "donors": {name: {"checkpoint": plan.recipe.donors[name], **facts} for name, facts in donors.items()},
        "tied": plan.layout.tied,
        "notes": list(plan.notes),
        "files": {
            file.name: {"donor": file.donor, "sha256": file.sha256, "others": file.others} for file in plan.files
        },
        "versions": {SUITE: suite_version(), "python": platform.python_version()},
        "git": git_state(),
        "tensors": tensors,
    }


def _describe_update(donor: Checkpoint, name: str) -> dict[str, Any]:
    """Returns what `splice.json` adds to a merged tensor's source: the base's sha256, and the adapter's tensors."""
    update = donor.adapter.updates.get(name) if isinstance(donor, MergedCheckpoint) else None
    if update is None or not isinstance(donor, MergedCheckpoint):
        return {}
    parts = [update.stored] if isinstance(update, Replacement) else [update.down, update.up, update.magnitude]
    return {
        "base_sha256": donor.base.sha256(name),
        "adapter_tensors": [part.name_on_disk for part in parts if part is not None],
    }


def suite_version() -> str:
    """Returns the version of this source tree, which may run without being installed."""
    project = tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def run_settings(plan: SplicePlan, max_shard_bytes: int | None) -> dict[str, Any]:
    """Returns everything that determines the written bytes."""
    layout = hashlib.sha256()
    for shard in plan.shards:
        layout.update(shard.file.encode() + shard.header)
    return {
        "recipe": recipe_dict(plan.recipe),
        "donors": {
            name: {"revision": plan.revisions[name], "fingerprint": donor.fingerprint()}
            | ({"adapter": donor.facts} if isinstance(donor, MergedCheckpoint) else {})
            for name, donor in plan.donors.items()
        },
        "files": {file.name: file.sha256 for file in plan.files},
        "layout": layout.hexdigest(),
        "max_shard_bytes": max_shard_bytes,
    }


def check_place(directory: Path, plan: SplicePlan) -> None:
    """Rejects an output directory inside a donor or containing one, since starting over would delete the donor."""
    place = directory.resolve()
    for name, donor in plan.donors.items():
        for folder in place_of(donor):
            if place.is_relative_to(folder) or folder.is_relative_to(place):
                raise ValueError(
                    f"--output-dir {directory} and donor {name} ({folder}) are nested; "
                    "choose a folder outside the donors"
                )


def check_room(directory: Path, num_bytes: int) -> None:
    """Checks for sufficient disk space before anything is written."""
    free = shutil.disk_usage(next(path for path in (directory, *directory.absolute().parents) if path.exists())).free
    if num_bytes + SPARE_BYTES > free:
        raise ValueError(
            f"{directory} has {format_size(free)} free, but {format_size(num_bytes)} would be written; "
            "free some space, or choose another disk"
        )


def drop_unfinished(partial: Path, log: RecordLog) -> None:
    """Keeps an earlier attempt's shards that have a record and their full size; removes everything else."""
    log.keep(
        lambda record: (
            (partial / record["key"]).is_file() and (partial / record["key"]).stat().st_size == record["num_bytes"]
        )
    )
    for path in list(partial.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in log:
            path.unlink()


def file_versions(plan: SplicePlan) -> dict[Path, tuple[int, int]]:
    """Returns size and modification time of every donor's weights files."""
    files = {stored.file for donor in plan.donors.values() for stored in donor.tensors.values()}
    files |= {donor.adapter.file for donor in plan.donors.values() if isinstance(donor, MergedCheckpoint)}
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)}


def main(argv: list[str] | None = None) -> None:
    recipe_arguments, arguments = parse_arguments(
        argv, RecipeArguments, SpliceArguments, description=__doc__, check_inputs=True
    )
    max_shard_bytes = parse_size(arguments.max_shard_size)
    plan = make_plan(make_recipe(recipe_arguments), max_shard_bytes=max_shard_bytes)
    if arguments.dry_run:
        print("\n".join(describe_plan(plan)))
        return
    assert arguments.output_dir is not None
    checkpoint = write_splice(
        plan, Path(arguments.output_dir), max_shard_bytes=max_shard_bytes, overwrite=arguments.overwrite
    )
    print(*describe_parts(plan), *(f"note: {note}" for note in plan.notes), sep="\n")
    print(f"to compare every byte with its donor: python -m merge.verify {arguments.output_dir}")
    print(f"checkpoint: {checkpoint}")


if __name__ == "__main__":
    run_command(main)
