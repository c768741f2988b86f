"""What does each third of the layers contribute? All 2³ splices of two donors by thirds, or the paper's six.

    python -m merge.all --donor in=IN --donor rl=RL --rest in --patterns paper --output-dir outputs/splices

The first donor plays the role of the paper's IN, the second that of its RL.

OUTPUT/in-rl-rl/checkpoint/     and so on, each as `merge.splice` writes it
OUTPUT/records.jsonl            one record per finished pattern
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

from merge.recipes.card import describe_plan
from merge.recipes.plan import SplicePlan, fingerprint, make_plan
from merge.recipes.recipe import (
    FILES_ARGUMENT,
    OWN_PARTITION_ARGUMENT,
    REST_ARGUMENT,
    Recipe,
    check_donor,
    parse_donors,
    recipe_from_pattern,
)
from merge.splice import check_place, check_room, parse_size, run_settings, write_splice
from models.blocks import BLOCKS, CUTS_ARGUMENT
from tracking.command import check_all, parse_arguments, run_command
from tracking.records import RecordLog
from tracking.run import OVERWRITE_ARGUMENT, open_run

PAPER_PATTERNS = ("ABB", "AAB", "BBA", "BAA", "ABA", "BAB")
"""IN:RL:RL, IN:IN:RL, RL:RL:IN, RL:IN:IN, IN:RL:IN and RL:IN:RL, as in Table 2, without the two unmixed patterns."""
ALL_PATTERNS = tuple("".join(letters) for letters in product("AB", repeat=len(BLOCKS)))
PATTERNS = {"paper": PAPER_PATTERNS, "all": ALL_PATTERNS}


@dataclass(frozen=True, kw_only=True)
class AllArguments:
    """The two donors, and the patterns to write."""

    donor: list[str] = field(
        metadata={"help": "NAME=CHECKPOINT (folder or hub id), given exactly twice", "check": check_donor}
    )
    rest: list[str] = field(metadata=REST_ARGUMENT)
    output_dir: str | None = field(
        default=None, metadata={"help": "where the splices are written, one folder per pattern"}
    )
    patterns: str = field(default="paper", metadata={"help": "which patterns: paper (six) or all (eight)"})
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
    dry_run: bool = field(default=False, metadata={"help": "print the plans and write nothing"})
    max_shard_size: str | None = field(
        default=None,
        metadata={
            "help": "maximum size of a shard, such as 5GB; by default the first donor's division into files is kept"
        },
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(partial(make_recipes, self), partial(parse_size, self.max_shard_size), self._check_place)

    def _check_place(self) -> None:
        if self.output_dir is None and not self.dry_run:
            raise ValueError("--output-dir is missing; expected a folder for the splices, or --dry-run")


def make_recipes(arguments: AllArguments) -> dict[str, Recipe]:
    """Returns folder name -> recipe, for every pattern asked for; opens no checkpoint.

    Raises:
        ValueError: for unknown patterns, another number of donors than two, or regions without an owner.
    """
    if arguments.patterns not in PATTERNS:
        raise ValueError(f"--patterns {arguments.patterns!r} is unknown; expected {' or '.join(PATTERNS)}")
    donors = parse_donors(arguments.donor)
    if len(donors) != 2:
        raise ValueError(f"--donor names {len(donors)} donors ({', '.join(donors)}); expected exactly two")
    first, second = donors
    recipes: dict[str, Recipe] = {}
    for letters in PATTERNS[arguments.patterns]:
        pattern = [first if letter == "A" else second for letter in letters]
        used = {first, *pattern, *(entry.rpartition("=")[2] for entry in arguments.rest), arguments.files}
        recipe = recipe_from_pattern(
            ":".join(pattern),
            donors=[entry for name, entry in zip(donors, arguments.donor, strict=True) if name in used],
            rest=arguments.rest,
            partition=arguments.partition,
            cuts=arguments.cuts,
            files=arguments.files,
        )
        folder = "-".join(pattern)
        if folder in recipes:
            raise ValueError(f"two patterns give the same folder {folder!r}; give the donors names without '-'")
        recipes[folder] = recipe
    return recipes


def make_plans(arguments: AllArguments) -> dict[str, SplicePlan]:
    """Returns folder name -> plan, for every pattern asked for."""
    max_shard_bytes = parse_size(arguments.max_shard_size)
    return {
        folder: make_plan(recipe, max_shard_bytes=max_shard_bytes) for folder, recipe in make_recipes(arguments).items()
    }


def _weights(directory: Path) -> list[Path]:
    """Returns the finished shards of an earlier attempt."""
    return list(directory.rglob("*.safetensors")) if directory.is_dir() else []


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, AllArguments, description=__doc__, check_inputs=True)
    plans = make_plans(arguments)
    if arguments.dry_run:
        for folder, plan in plans.items():
            print("\n".join([f"{folder}:", *(f"    {line}".rstrip() for line in describe_plan(plan)), ""]))
        return
    assert arguments.output_dir is not None
    directory = Path(arguments.output_dir)
    max_shard_bytes = parse_size(arguments.max_shard_size)
    settings = {folder: run_settings(plan, max_shard_bytes) for folder, plan in plans.items()}
    for plan in plans.values():
        check_place(directory, plan)
    with open_run(directory, command="merge.all", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished:
            with RecordLog(directory / "records.jsonl") as log:
                todo = {folder: plan for folder, plan in plans.items() if folder not in log}
                written = sum(path.stat().st_size for folder in todo for path in _weights(directory / folder))
                check_room(directory, sum(plan.num_bytes for plan in todo.values()) - written)
                for folder, plan in todo.items():
                    checkpoint = write_splice(plan, directory / folder, max_shard_bytes=max_shard_bytes)
                    log.append({"key": folder, "fingerprint": fingerprint(plan)})
                    print(f"checkpoint: {checkpoint}", flush=True)
    for note in dict.fromkeys(note for plan in plans.values() for note in plan.notes):
        print(f"note: {note}")
    print(f"splices: {directory} ({', '.join(plans)})")


if __name__ == "__main__":
    run_command(main)
