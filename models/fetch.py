"""What does a study need from the hub? Fetches its checkpoints and data into the cache, for nodes without internet.

    python -m models.fetch --config configs/frankenstein_3b/necessity.yaml [--dry-run]

`--config` is a study, the YAML of any command, or a splice's recipe. It is searched, with the YAML files it names
(`grpo_config: …`, `pairs: [ocr:…]`), for checkpoints (`model_name_or_path`, `base_checkpoint`, `sft_checkpoint`,
`model`, `describe_model`, `base`, `sft`, `rl`, `donors`) and data (`prompts`, `source`, `datasets`); local folders are
not fetched. From a checkpoint it fetches safetensors, configuration and tokenizer, never pickled weights or code; from
a dataset all files except code. huggingface_hub determines the location of the cache (HF_HOME). On the nodes, set
HF_HUB_OFFLINE=1.

OUTPUT/fetched.json     per repository: the revision asked for, the commit it stands for, files and bytes
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.checkpoint import open_checkpoint
from models.completeness import check_complete
from models.hub import CODE_FILES, Repository, list_files, parse_repository, snapshot
from models.layout import layout_of
from models.loading import CHECKPOINT_FILES, CHECKPOINT_IGNORED, local_checkpoint
from tracking.command import parse_arguments, read_yaml, run_command
from tracking.product import write_text
from tracking.records import Record, RecordLog
from tracking.run import is_finished, open_run
from tracking.tables import format_columns

FETCHED_FILE = "fetched.json"
CHECKPOINT_KEYS = (
    "model_name_or_path", "base_checkpoint", "sft_checkpoint", "model", "describe_model", "base", "sft", "rl", "donors",
    "encoder",
)  # fmt: skip
DATASET_KEYS = ("prompts", "source", "datasets")
REVISION_KEYS = {"source": "hub_revision"}
"""Key -> the key that gives the revision of its names, for names without `@revision`."""
YAML_SUFFIXES = (".yaml", ".yml")
"""Suffixes of values that name another YAML file, alone or as TASK:FILE."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
DATA_SUFFIXES = (".parquet", ".jsonl", ".json")
"""Suffixes of single files, which cannot be repository names."""


@dataclass(frozen=True, kw_only=True)
class FetchArguments:
    """The checkpoints and data sets to fetch."""

    study: str | None = field(
        default=None, metadata={"help": "YAML that names checkpoints and data sets; the same as --config"}
    )
    checkpoints: list[str] = field(default_factory=list, metadata={"help": "hub ids of further checkpoints"})
    datasets: list[str] = field(default_factory=list, metadata={"help": "hub ids of further data sets"})
    output_dir: str | None = field(
        default=None,
        metadata={"help": f"where {FETCHED_FILE} is written; by default outputs/fetched/FOLDER-NAME of the YAML"},
    )
    dry_run: bool = field(default=False, metadata={"help": "list what would be fetched, with sizes, and fetch nothing"})
    overwrite: bool = field(
        default=False, metadata={"help": "discard earlier results and start over, with the newest revisions"}
    )

    def __post_init__(self) -> None:
        if not (self.study or self.checkpoints or self.datasets):
            raise ValueError("nothing is named; expected --config FILE, --checkpoints or --datasets")

    @property
    def directory(self) -> Path:
        name = f"{Path(self.study).resolve().parent.name}-{Path(self.study).stem}" if self.study else "named"
        return Path(self.output_dir) if self.output_dir else Path("outputs", "fetched", name)


@dataclass(frozen=True)
class Planned:
    """The current state of one repository on the hub."""

    repository: Repository
    commit: str
    files: tuple[str, ...]
    num_bytes: int
    num_bytes_to_fetch: int


def find_repositories(arguments: FetchArguments) -> dict[Repository, str]:
    """Returns every repository named by the configuration and the flags, and where it is named.

    Raises:
        ValueError: if the configuration is missing or malformed, or a flag does not name a repository.
    """
    found: dict[Repository, str] = {}
    for kind, flag, names in (
        ("model", "--checkpoints", arguments.checkpoints),
        ("dataset", "--datasets", arguments.datasets),
    ):
        for name in names:
            repository = parse_repository(name, kind=kind)
            if repository is None:
                raise ValueError(f"{flag} {name!r} is not a hub id; expected owner/name or owner/name@revision")
            found[repository] = flag
    for path, key, name, revision in _named_in(Path(arguments.study)) if arguments.study else ():
        repository = parse_repository(name, kind="dataset" if key in DATASET_KEYS else "model")
        if repository is not None and not (key in DATASET_KEYS and repository.repo.endswith(DATA_SUFFIXES)):
            repository = replace(repository, revision=repository.revision or revision)
            found.setdefault(repository, f"{key} in {path}")
    return found


def _named_in(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, str, str, str | None]]:
    """Yields (file, key, name, revision) of each checkpoint and dataset in a YAML file and in those it names.

    Raises:
        ValueError: if a file is missing or malformed, or if files include each other in a cycle.
    """
    if path in above:
        raise ValueError(f"{above[-1]} names {path}, which names it in turn; expected no cycle")
    values = read_yaml(path)
    for key, value in values.items():
        names = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if key in ("rl", "encoder"):  # NAME@SEED=CHECKPOINT, NAME=MODEL
            names = [str(name).rpartition("=")[2] for name in names]
        if key == "encoder":  # timm's models are on the hub as timm/NAME
            names = [re.sub(r"^timm:(?!.*/)", "timm/", name).removeprefix("timm:") for name in names]
        if key in CHECKPOINT_KEYS + DATASET_KEYS:
            revision = values.get(REVISION_KEYS.get(key, ""))
            for name in map(str, filter(None, names)):
                if not name.endswith(YAML_SUFFIXES):
                    yield path, key, name, str(revision) if revision else None
        for name in map(str, names):
            if name.endswith(YAML_SUFFIXES):
                yield from _named_in(Path(name.rpartition(":")[2]), (*above, path))


def plan_fetch(repositories: dict[Repository, str]) -> tuple[list[Planned], list[str]]:
    """Asks the hub for the content of each repository.

    Returns:
        The repositories that can be fetched, and a line for each dataset that the hub does not provide. Such a dataset
        may be a prompt set that has not been built yet, so it does not stop the others.

    Raises:
        ValueError: if the hub does not provide a checkpoint, or not as safetensors.
    """
    planned: list[Planned] = []
    missing: list[str] = []
    for repository, where in repositories.items():
        try:
            planned.append(_plan(repository))
        except ValueError as error:
            if repository.kind == "model":
                raise ValueError(f"{error} (named as {where})") from error
            missing.append(f"{error} (named as {where}; a prompt set of your own is built before the study)")
    return planned, missing


def _plan(repository: Repository) -> Planned:
    commit, files = list_files(repository, **_wanted(repository))
    names = tuple(file.name for file in files)
    if repository.kind == "model" and not any(name.endswith(".safetensors") for name in names):
        _, everything = list_files(replace(repository, revision=commit))
        pickled = [file.name for file in everything if file.name.endswith(PICKLE_SUFFIXES)]
        if pickled:
            raise ValueError(
                f"checkpoint {repository} contains only pickled weights ({pickled[0]}), which can run code; "
                "if you trust them, load and save them once with Transformers and name that folder"
            )
        raise ValueError(f"checkpoint {repository} contains no safetensors file")
    return Planned(
        repository,
        commit,
        names,
        sum(file.num_bytes for file in files),
        sum(file.num_bytes for file in files if not file.cached),
    )


def _wanted(repository: Repository) -> dict[str, Any]:
    if repository.kind == "model":
        return {"patterns": CHECKPOINT_FILES, "ignored": CHECKPOINT_IGNORED}
    return {"ignored": CODE_FILES}


def format_table(rows: Sequence[Planned]) -> str:
    """Returns one line per repository: commit, number of files, size, and how much remains to be fetched."""
    cells: list[Sequence[str]] = [("repository", "kind", "commit", "files", "size", "to fetch")]
    for row in rows:
        name, kind = str(row.repository), row.repository.kind
        sizes = (format_size(row.num_bytes), format_size(row.num_bytes_to_fetch))
        cells.append((name, kind, row.commit, str(len(row.files)), *sizes))
    sums = (sum(row.num_bytes for row in rows), sum(row.num_bytes_to_fetch for row in rows))
    cells.append(("all", "", "", str(sum(len(row.files) for row in rows)), *map(format_size, sums)))
    return "\n".join(format_columns(cells, right=(3, 4, 5)))


def format_size(num_bytes: int) -> str:
    """Returns `7.00 GiB`, `11.3 MiB` or `0.4 KiB`."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.2f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"


def check_room(planned: Sequence[Planned]) -> None:
    """Checks for sufficient disk space before fetching."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    num_bytes = sum(row.num_bytes_to_fetch for row in planned)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if num_bytes > free:
        raise ValueError(
            f"the cache {cache} has {format_size(free)} free, but {format_size(num_bytes)} would be fetched; "
            "free some space, or set HF_HOME to a larger disk"
        )


def fetch(repository: Repository, *, num_bytes: int | None = None) -> Record:
    """Fetches one repository, checks it, and returns its record.

    Args:
        repository: the repository.
        num_bytes: the bytes still to be fetched, for the remaining time.
    """
    if repository.kind == "model":
        layout_of(local_checkpoint(str(repository), config_only=True))  # is the family supported?
    folder = snapshot(repository, num_bytes=num_bytes, **_wanted(repository))
    if repository.kind == "model":
        check_complete(open_checkpoint(folder), layout_of(folder))
    _, files = list_files(replace(repository, revision=folder.name), **_wanted(repository))
    return {
        "key": f"{repository.kind}/{repository}",
        "repo": repository.repo,
        "kind": repository.kind,
        "asked_for": repository.revision,
        "revision": folder.name,
        "files": [file.name for file in files],
        "bytes": sum(file.num_bytes for file in files),
    }


def check_cache(fetched: Sequence[Record]) -> None:
    """Checks that the cache still contains what was fetched.

    Raises:
        ValueError: if a repository or one of its files is gone, or its branch now points to another commit.
    """
    way_out = "--overwrite fetches again"
    for record in fetched:
        repository = Repository(repo=record["repo"], kind=record["kind"], revision=record["asked_for"])
        try:
            folder = snapshot(repository, patterns=record["files"], ignored=(), cached_only=True)
        except ValueError as error:
            raise ValueError(f"{repository} is no longer in the cache; {way_out}") from error
        if folder.name != record["revision"]:
            raise ValueError(
                f"{repository} now points to {folder.name} in the cache, but {record['revision']} was fetched; "
                f"{way_out}, or name it {record['repo']}@{record['revision']}"
            )
        for name in record["files"]:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is no longer in the cache; {way_out}")


def main(argv: list[str] | None = None) -> None:
    # In other commands --config holds the command's own arguments; here it is the study to read.
    words = [re.sub(r"^--config(?=$|=)", "--study", word) for word in (sys.argv[1:] if argv is None else argv)]
    (arguments,) = parse_arguments(words, FetchArguments, description=__doc__)
    repositories = find_repositories(arguments)
    directory = arguments.directory
    planned: list[Planned] = []
    missing: list[str] = []
    if not repositories:
        print(f"nothing to fetch: {arguments.study} names no checkpoint and no dataset of the hub")
    elif arguments.dry_run or arguments.overwrite or not is_finished(directory):
        planned, missing = plan_fetch(repositories)
        print(format_table(planned), *missing, sep="\n", flush=True)
    if arguments.dry_run:
        return
    check_room(planned)
    settings = {"repositories": sorted(f"{repository.kind}/{repository}" for repository in repositories)}
    with open_run(directory, command="models.fetch", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished:
            with RecordLog(directory / "records.jsonl") as log:
                for row in planned:
                    if f"{row.repository.kind}/{row.repository}" not in log:
                        log.append(fetch(row.repository, num_bytes=row.num_bytes_to_fetch))
                fetched = [{name: value for name, value in record.items() if name != "key"} for record in log]
            if missing:
                raise ValueError(missing[0] + (f"; {len(missing) - 1} more such" if len(missing) > 1 else ""))
            write_text(directory / FETCHED_FILE, json.dumps(fetched, indent=1) + "\n")
    fetched = json.loads((directory / FETCHED_FILE).read_text(encoding="utf-8"))
    check_cache(fetched)
    print(f"fetched: {directory / FETCHED_FILE}")


if __name__ == "__main__":
    run_command(main)
