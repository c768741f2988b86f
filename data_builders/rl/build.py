"""Builds prompts for reinforcement learning from upstream rows, and counts dropped rows by reason.

    python -m data_builders.build rl --source FILES, FOLDERS or a HUB ID --seed 0 --output-dir outputs/rl/data
    python -m data_builders.build rl --source hiyouga/geometry3k --schema easyr1 --seed 0 --output-dir outputs/rl/data

Rows have verl's columns, those of another `--schema`, or others that `--columns` names
(`data_builders/sources/columns.py`).

Rows are streamed once: their images are stored on disk without duplicates, and their texts in `records.jsonl`, one
record per row, from which a killed build continues. Then the prompt set is written: `rl.jsonl`, `validation.jsonl`,
`test.jsonl`, `images/` and `build_report.json`, which counts dropped rows by reason and names them.

The reasons are in `upstream.DROPPED`, the notes on kept rows in `upstream.NOTED`. System messages are removed and
listed in the report: models are compared under one `system_prompt`, which training and evaluation set. Questions that
share a text or an image are in the same split. An id is the hash of question and images, and a split is ordered by a
hash of seed and id, so neither depends on the order of the rows or on other rows.

Known limits: one question per prompt, with the images before it; the held-out shares are only approximate, since whole
groups of questions are assigned to splits at random.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.images import place_file
from data_builders.prompt_sets.prompts import ABILITIES, Prompt, write_prompts
from data_builders.rl.kinds import ANSWER_KINDS, INFER, inferred_kind, listed_options
from data_builders.rl.upstream import DROPPED, NOTED, WAYS_OUT, RowRules, examine
from data_builders.sources.rows import Source, open_sources
from tracking.command import did_you_mean
from tracking.progress import progress
from tracking.records import Record, RecordLog

IMAGES_DIR = "images"
WORK_DIR = ".work"
"""Folder for the images of an unfinished build."""
REPORT_FILE = "build_report.json"
SPLITS = ("rl", "validation", "test")
MAX_EXAMPLES = 20
"""Number of rows named per reason in the report."""


@dataclass(frozen=True, kw_only=True)
class RlArguments(RowRules):
    """The rows, and how they become prompts."""

    source: list[str] = field(metadata={"help": "one or more Parquet or JSONL files, folders of them, or hub ids"})
    ability: list[str] = field(
        default_factory=list,
        metadata={
            "help": "ability of the prompts: ABILITY for all rows, DATA_SOURCE=ABILITY for those of one source; "
            "by default reasoning for prompts without images and vision-to-reasoning for those with images"
        },
    )
    answer_kind: list[str] = field(
        default_factory=lambda: ["math"],
        metadata={
            "help": "how answers are graded: KIND for all rows, DATA_SOURCE=KIND for those of one source; the KIND "
            "infer chooses a kind for each row by its answer; a row with an answer_kind of its own keeps it"
        },
    )
    validation_frac: float = field(default=0.02, metadata={"help": "share of the questions held out for validation"})
    test_frac: float = field(default=0.02, metadata={"help": "share of the questions held out for the test"})
    image_root: str | None = field(
        default=None, metadata={"help": "folder that image paths are relative to; by default the folder of each file"}
    )
    hub_config: str | None = field(default=None, metadata={"help": "configuration of the hub data set"})
    hub_split: str = field(default="train", metadata={"help": "split of the hub data set"})
    hub_revision: str | None = field(
        default=None, metadata={"help": "commit, branch or tag of the hub data set; the latest by default"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise ValueError("source is empty; expected at least one file, folder or hub id")
        held_out = (self.validation_frac, self.test_frac)
        if min(held_out) < 0 or sum(held_out) >= 1:
            raise ValueError(
                f"validation_frac {self.validation_frac} and test_frac {self.test_frac}: expected shares from 0 whose "
                "sum is below 1"
            )
        read_rules("ability", self.ability, ABILITIES)
        read_rules("answer_kind", self.answer_kind, (*ANSWER_KINDS, INFER))

    @cached_property
    def opened(self) -> list[Source]:
        """The sources, opened once."""
        return open_sources(
            self.source,
            config=self.hub_config,
            split=self.hub_split,
            revision=self.hub_revision,
            image_root=Path(self.image_root) if self.image_root else None,
            columns=self.names,
        )


def read_rules(name: str, rules: Sequence[str], allowed: Sequence[str]) -> dict[str, str]:
    """Returns data source -> value; the rule without a data source has the empty name."""
    read: dict[str, str] = {}
    for rule in rules:
        data_source, _, value = rule.rpartition("=")
        if value not in allowed:
            raise ValueError(
                f"{name} {rule!r}: {value!r} is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
            )
        if data_source in read:
            raise ValueError(f"{name} {rule!r}: a second rule for {data_source or 'all rows'}")
        read[data_source] = value
    return read


def describe(arguments: RlArguments) -> dict[str, Any]:
    """Returns what determines the product: the arguments, with file contents instead of paths."""
    settings = asdict(arguments)
    del settings["image_root"]
    settings["source"] = {source.label: source.fingerprint for source in arguments.opened}
    return settings


def drop_repeated(records: Sequence[Record]) -> list[Record]:
    """Returns the records, with duplicates of question and images marked as dropped."""
    answers: dict[tuple[str, ...], set[str]] = defaultdict(set)
    first: dict[tuple[str, ...], str] = {}
    for record in records:
        if "dropped" not in record:
            answers[_identity(record)].add(record["answer"])
            first.setdefault(_identity(record), record["key"])

    def repeated(record: Record) -> Record:
        if "dropped" in record:
            return {}
        identity = _identity(record)
        if len(answers[identity]) > 1:
            return {"dropped": "conflicting_answer", "found": f"answers {sorted(answers[identity])}"}
        if first[identity] != record["key"]:
            return {"dropped": "duplicate", "found": f"as {first[identity]}"}
        return {}

    return [{**record, **repeated(record)} for record in records]


def _identity(record: Record) -> tuple[str, ...]:
    return (record["question"], *record["images"])


def to_prompt(record: Record, abilities: Mapping[str, str], kinds: Mapping[str, str]) -> Prompt:
    """Turns the record of a good row into a prompt."""
    data_source, images = record["data_source"], record["images"]
    digest = hashlib.sha256("\0".join(_identity(record)).encode()).hexdigest()[:16]
    by_rule = "vision-to-reasoning" if images else "reasoning"
    kind = record.get("answer_kind") or kinds.get(data_source, kinds.get("", "math"))
    if kind == INFER:
        kind = inferred_kind(record["question"], record["answer"])
    return Prompt(
        id=f"{re.sub('[^A-Za-z0-9._-]+', '-', data_source) or 'rl'}-{digest}",
        ability=abilities.get(data_source, abilities.get("", by_rule)),
        question=record["question"],
        answer=record["answer"],
        answer_kind=kind,
        choices=listed_options(record["question"], record["answer"]) if kind == "choice" else (),
        images=tuple(f"{IMAGES_DIR}/{name}" for name in images),
        meta={
            "row": record["key"],
            "data_source": data_source,
            **({"extra": record["extra"]} if record["extra"] else {}),
        },
    )


def group_prompts(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Groups prompts so that no question and no image is in two groups."""
    parents: dict[str, str] = {}

    def root(node: str) -> str:
        while parents.setdefault(node, node) != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for prompt in prompts:
        for image in prompt.images:
            parents[root(f"image {image}")] = root(f"text {prompt.question}")
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[root(f"text {prompt.question}")].append(prompt)
    return list(groups.values())


def split_prompts(
    groups: Sequence[Sequence[Prompt]], *, seed: int, validation_frac: float, test_frac: float
) -> dict[str, list[Prompt]]:
    """Assigns whole groups to splits by a hash with the seed, and orders each split by another hash.

    A group larger than the intended size of a held-out split stays in `rl`.
    """
    splits: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    num_prompts = sum(map(len, groups))
    for group in groups:
        position = _hash(f"{seed}/split/{min(prompt.id for prompt in group)}") / 2**64
        split, share = ("validation", validation_frac) if position < validation_frac else ("test", test_frac)
        fits = position < validation_frac + test_frac and len(group) <= max(1, share * num_prompts)
        splits[split if fits else "rl"].extend(group)
    return {split: sorted(prompts, key=lambda p: _hash(f"{seed}/order/{p.id}")) for split, prompts in splits.items()}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def build_rl(directory: Path, output_dir: Path, arguments: RlArguments, seed: int) -> None:
    """Writes the prompt set into an existing folder.

    Args:
        directory: where the product is written.
        output_dir: keeps `records.jsonl`, and the images in `WORK_DIR`, between attempts.

    Raises:
        ValueError: if no row could be used.
    """
    records = drop_repeated(read_rows(arguments, output_dir))
    abilities = read_rules("ability", arguments.ability, ABILITIES)
    kinds = read_rules("answer_kind", arguments.answer_kind, (*ANSWER_KINDS, INFER))
    prompts = [to_prompt(record, abilities, kinds) for record in records if "dropped" not in record]
    if not prompts:
        counted = Counter(record["dropped"] for record in records)
        found = "; ".join(f"{reason} {num} ({explain(reason)})" for reason, num in counted.most_common())
        raise ValueError(
            f"none of {len(records)} rows of {', '.join(arguments.source)} can be used: {found or 'empty'}"
        )
    groups = group_prompts(prompts)
    splits = split_prompts(groups, seed=seed, validation_frac=arguments.validation_frac, test_frac=arguments.test_frac)
    for split, chosen in splits.items():
        if chosen:
            write_prompts(directory, split, chosen)
    for image in sorted({image for prompt in prompts for image in prompt.images}):
        place_file(output_dir / WORK_DIR / image, directory / image)
    report = {
        **build_report(records),
        "splits": {split: len(chosen) for split, chosen in splits.items()},
        "abilities": dict(sorted(Counter(prompt.ability for prompt in prompts).items())),
        "answer_kinds": dict(sorted(Counter(prompt.answer_kind for prompt in prompts).items())),
        "num_images": len({image for prompt in prompts for image in prompt.images}),
        "num_groups": len(groups),
        "largest_group": max(map(len, groups)),
        "unused_rules": sorted({*abilities, *kinds} - {"", *(record["data_source"] for record in records)}),
    }
    (directory / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print_report(report)


def read_rows(arguments: RlArguments, output_dir: Path) -> list[Record]:
    """Processes every row without a record; returns all records, in the order of the rows."""
    images_dir = output_dir / WORK_DIR / IMAGES_DIR
    images_dir.mkdir(parents=True, exist_ok=True)
    with RecordLog(output_dir / "records.jsonl") as log:
        num_done = Counter(record["key"].rpartition("#")[0] for record in log)
        for source in arguments.opened:
            start = num_done[source.label]
            rows = enumerate(source.rows(start), start=start)
            for number, row in progress(rows, label=source.label, unit="row"):
                log.append(examine(f"{source.label}#{number}", row, source.image_root, images_dir, arguments))
        return list(log)


def build_report(records: Sequence[Record]) -> dict[str, Any]:
    """Counts the rows by outcome."""
    dropped = [record for record in records if "dropped" in record]
    kept = [record for record in records if "dropped" not in record]
    data_sources = sorted({record["data_source"] for record in records})
    return {
        "num_rows": len(records),
        "num_kept": len(kept),
        "dropped": {
            reason: _entry(meaning, {r["key"]: r["found"] for r in dropped if r["dropped"] == reason})
            for reason, meaning in DROPPED.items()
            if any(record["dropped"] == reason for record in dropped)
        },
        "noted": {
            note: _entry(meaning, {r["key"]: "" for r in kept if note in r["notes"]})
            for note, meaning in NOTED.items()
            if any(note in record["notes"] for record in kept)
        },
        "data_sources": {
            name: {
                "num_rows": sum(record["data_source"] == name for record in records),
                "num_kept": sum(record["data_source"] == name for record in kept),
            }
            for name in data_sources
        },
        "system_prompts": dict(Counter(r["system"] for r in kept if r["system"]).most_common(MAX_EXAMPLES)),
    }


def _entry(meaning: str, found: Mapping[str, str]) -> dict[str, Any]:
    return {"meaning": meaning, "count": len(found), "examples": dict(list(found.items())[:MAX_EXAMPLES])}


def explain(reason: str) -> str:
    """Returns the meaning of a reason why rows are dropped, and the option that helps, if there is one."""
    way_out = WAYS_OUT.get(reason)
    return f"{DROPPED[reason]}; {way_out}" if way_out else DROPPED[reason]


def _print_report(report: Mapping[str, Any]) -> None:
    sizes = ", ".join(f"{split} {num}" for split, num in report["splits"].items())
    print(f"kept {report['num_kept']} of {report['num_rows']} rows ({sizes})")
    for reason, entry in report["dropped"].items():
        example = next(iter(entry["examples"]))
        print(f"dropped, {reason}: {entry['count']} of the rows, such as {example}; {explain(reason)}")
    for split, num in report["splits"].items():
        if not num:
            print(f"no prompt fell into the split {split}: it has no file")
    for data_source in report["unused_rules"]:
        print(f"no row has the data source {data_source!r}: its rule was not used")
