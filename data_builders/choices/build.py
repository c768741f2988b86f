"""Builds prompts from published tables of questions about medical pictures, and counts dropped rows by reason.

    python -m data_builders.build choices --source PMC-VQA/train.csv PMC-VQA/test.csv --output-dir outputs/pmc_vqa
    python -m data_builders.build choices --source flaviagiammarino/path-vqa --hub_splits train validation test \
        --output-dir outputs/path_vqa

PMC-VQA, SLAKE, VQA-RAD and PathVQA are recognised by their columns (`layouts.py`). Questions with options and those
answered by yes or no become prompts; free answers are dropped unless `--keep_open true`. The published split is kept:
of a file by its name (`train.csv`, `validation.json`), of VQA-RAD by the row. A table whose name has no split goes to
`rl`, and `--split` names the split of all rows.

Writes `rl.jsonl`, `validation.jsonl`, `test.jsonl`, `images/` and `build_report.json`, which counts dropped rows by
reason and names them. A killed build continues from `records.jsonl`. Pictures of more than 8 bits are scaled by their
own range of values or by `--window` (`data_builders/prompt_sets/depth.py`).

Known limit: VQA-RAD's published split has pictures in both parts. The report counts the training prompts that show a
held-out picture; `--drop_shared true` leaves them out.
"""

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data_builders.choices.layouts import (
    DROPPED,
    LAYOUTS,
    PICTURE_SUFFIX,
    SPLITS,
    WAYS_OUT,
    Asked,
    Layout,
    UnusableRowError,
    read_row,
)
from data_builders.choices.tables import Row, Table, open_tables
from data_builders.prompt_sets.choices import LETTERS, ask_with_choices
from data_builders.prompt_sets.images import PixelLimits, UnusableImageError, open_image, place_file, store_image
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from tracking.command import did_you_mean
from tracking.progress import progress
from tracking.records import Record, RecordLog

IMAGES_DIR = "images"
REPORT_FILE = "build_report.json"
ABILITY = "vision"
MAX_EXAMPLES = 20
"""Number of rows named per reason in the report."""


@dataclass(frozen=True, kw_only=True)
class ChoicesArguments(PixelLimits):
    """The tables, and how their rows become prompts."""

    source: list[str] = field(metadata={"help": "one or more CSV, JSON, JSONL, Parquet or .pkl files, or hub ids"})
    layout: str | None = field(
        default=None, metadata={"help": f"layout of all tables: {', '.join(LAYOUTS)}; recognised by default"}
    )
    split: str | None = field(
        default=None, metadata={"help": f"split of all rows: {', '.join(SPLITS)}; the published one by default"}
    )
    image_root: str | None = field(
        default=None,
        metadata={"help": "folder that picture names are relative to; by default the folder of each table"},
    )
    languages: list[str] = field(
        default_factory=lambda: ["en"],
        metadata={"help": "languages of the questions, where a table states them (SLAKE)"},
    )
    keep_open: bool = field(default=False, metadata={"help": "keep questions with free answers, graded as text"})
    shuffle_options: bool = field(
        default=False, metadata={"help": "shuffle the options by the seed instead of keeping their published order"}
    )
    drop_shared: bool = field(
        default=False, metadata={"help": "leave out training prompts whose picture is also in a held-out split"}
    )
    window: list[float] = field(
        default_factory=list,
        metadata={
            "help": "lowest and highest value shown of pictures with more than 8 bits, such as -160 240 for CT in "
            "Hounsfield units; by default each picture's own range"
        },
    )
    hub_config: str | None = field(default=None, metadata={"help": "configuration of hub data sets"})
    hub_splits: list[str] = field(default_factory=lambda: ["train"], metadata={"help": "splits of hub data sets"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, allowed in (("layout", self.layout, tuple(LAYOUTS)), ("split", self.split, SPLITS)):
            if value is not None and value not in allowed:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}")
        if not self.source:
            raise ValueError("source is empty; expected at least one file or hub id")
        if self.window and (len(self.window) != 2 or self.window[0] >= self.window[1]):
            raise ValueError(f"window is {self.window}; expected two values, the lower one first")

    @cached_property
    def opened(self) -> list[Table]:
        """The tables, opened once."""
        return open_tables(self.source, layout=self.layout, config=self.hub_config, hub_splits=self.hub_splits)

    @property
    def range(self) -> tuple[float, float] | None:
        """The window of deep pictures."""
        return (self.window[0], self.window[1]) if self.window else None


def describe(arguments: ChoicesArguments) -> dict[str, Any]:
    """Returns what determines the product: the arguments, with file contents instead of paths."""
    settings = asdict(arguments)
    del settings["image_root"]
    settings["source"] = {table.label: table.fingerprint for table in arguments.opened}
    return settings


def build_choices(directory: Path, output_dir: Path, work_dir: Path, arguments: ChoicesArguments, seed: int) -> None:
    """Writes the prompt set into an existing folder.

    Args:
        directory: where the product is written.
        output_dir: keeps `records.jsonl` between attempts.
        work_dir: keeps the pictures between attempts.
        arguments: the tables.
        seed: seed of the order of prompts and options.

    Raises:
        ValueError: if no row could be used.
    """
    records = mark_repeated(read_tables(arguments, output_dir, work_dir / IMAGES_DIR))
    kept = [record for record in records if "dropped" not in record]
    if not kept:
        counts = Counter(record["dropped"] for record in records)
        found = "; ".join(f"{reason} {num} ({explain(reason)})" for reason, num in counts.most_common())
        raise ValueError(
            f"none of {len(records)} rows of {', '.join(arguments.source)} can be used: {found or 'empty'}"
        )
    held_out = {record["image"] for record in kept if record["split"] != "rl"}
    shared = [record for record in kept if record["split"] == "rl" and record["image"] in held_out]
    if arguments.drop_shared:
        left_out = {record["key"] for record in shared}
        kept = [record for record in kept if record["key"] not in left_out]
    splits = {split: [record for record in kept if record["split"] == split] for split in SPLITS}
    for split, own in splits.items():
        if own:
            prompts = (to_prompt(record, seed if arguments.shuffle_options else None) for record in own)
            write_prompts(directory, split, sorted(prompts, key=lambda prompt: _hash(f"{seed}/order/{prompt.id}")))
    for name in sorted({record["image"] for record in kept}):
        place_file(work_dir / IMAGES_DIR / name, directory / IMAGES_DIR / name)
    report = build_report(records, splits) | {
        "num_sharing_a_held_out_picture": len(shared),
        "these_are": "left out" if arguments.drop_shared else "kept",
    }
    (directory / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print_report(report)


def read_tables(arguments: ChoicesArguments, output_dir: Path, images_dir: Path) -> list[Record]:
    """Processes every row without a record; returns all records."""
    images_dir.mkdir(parents=True, exist_ok=True)
    with RecordLog(output_dir / "records.jsonl") as log:
        for table in arguments.opened:
            for number, row in progress(enumerate(table.rows()), label=table.label, unit="row"):
                key = f"{table.label}#{number}"
                if key not in log:
                    log.append(examine(key, row, table, images_dir, arguments))
        return list(log)


def examine(key: str, row: Row, table: Table, images_dir: Path, arguments: ChoicesArguments) -> Record:
    """Turns one row into a record, and stores its picture; unusable rows are also records."""
    record: Record = {"key": key, "table": table.label}
    root = Path(arguments.image_root) if arguments.image_root else table.folder
    try:
        asked = read_row(row, table.layout, languages=arguments.languages, keep_open=arguments.keep_open)
        entry = find_picture(asked.image, root, table.layout)
        image = open_image(entry, root, arguments, arguments.range)
    except (UnusableRowError, UnusableImageError) as error:
        return {**record, "dropped": error.reason, "found": str(error)}
    split = arguments.split or asked.split or table.split or "rl"
    return {**record, **_fields(asked), "split": split, "image": store_image(image, images_dir)}


def _fields(asked: Asked) -> Record:
    return {
        "question": asked.question,
        "answer": asked.answer,
        "choices": list(asked.choices),
        "answer_kind": asked.answer_kind,
        "meta": asked.meta,
    }


def find_picture(entry: Any, root: Path | None, layout: Layout) -> Any:
    """Returns the path of a named picture below `root` or a folder of the layout; other forms as they are."""
    if isinstance(entry, Mapping) and not entry.get("bytes") and isinstance(entry.get("path"), str):
        entry = entry["path"]
    if not isinstance(entry, str) or root is None or "://" in entry or len(entry) > 1000:
        return entry
    names = [entry] if Path(entry).suffix else [entry, entry + PICTURE_SUFFIX]
    places = [Path(folder) / name for folder in ("", *layout.folders) for name in names]
    return next((str(place) for place in places if (root / place).is_file()), entry)


def mark_repeated(records: Sequence[Record]) -> list[Record]:
    """Returns the records, with repeated questions about one picture in a split marked as dropped."""
    answers: dict[tuple[str, ...], set[str]] = defaultdict(set)
    first: dict[tuple[str, ...], str] = {}
    for record in records:
        if "dropped" not in record:
            answers[_identity(record)].add(record["answer"].lower())
            first.setdefault(_identity(record), record["key"])

    def repeated(record: Record) -> Record:
        if "dropped" in record:
            return {}
        identity = _identity(record)
        if len(answers[identity]) > 1:
            return {"dropped": "conflicting_answer", "found": f"answers {sorted(answers[identity])}"}
        return {"dropped": "duplicate", "found": f"as {first[identity]}"} if first[identity] != record["key"] else {}

    return [record | repeated(record) for record in records]


def _identity(record: Record) -> tuple[str, ...]:
    return (record["split"], record["image"], record["question"].lower(), *sorted(record["choices"]))


def to_prompt(record: Record, seed: int | None) -> Prompt:
    """Returns a record as a prompt.

    Args:
        record: of a usable row.
        seed: seed of the options' order; None for the published order.
    """
    digest = hashlib.sha256("\0".join(_identity(record)).encode()).hexdigest()[:16]
    choices = list(record["choices"])
    if seed is not None:
        random.Random(f"{seed}/options/{digest}").shuffle(choices)
    source = re.sub(r"[^A-Za-z0-9._-]+", "-", record["table"])
    return Prompt(
        id=f"{source}-{digest}",
        ability=ABILITY,
        question=ask_with_choices(record["question"], choices) if choices else record["question"],
        answer=record["answer"],
        answer_kind=record["answer_kind"],
        choices=tuple(choices),
        images=(f"{IMAGES_DIR}/{record['image']}",),
        meta={"row": record["key"], "data_source": record["table"], **record["meta"]},
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def build_report(records: Sequence[Record], splits: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Counts the rows by outcome."""
    dropped: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        if "dropped" in record:
            dropped[record["dropped"]][record["key"]] = record["found"]
    asked = [record for own in splits.values() for record in own]
    letters = Counter(LETTERS[each["choices"].index(each["answer"])] for each in asked if each["choices"])
    return {
        "num_rows": len(records),
        "splits": {split: len(own) for split, own in splits.items()},
        "answer_kinds": dict(sorted(Counter(each["answer_kind"] for each in asked).items())),
        "right_letters": dict(sorted(letters.items())),
        "dropped": {
            reason: {
                "meaning": meaning,
                "count": len(dropped[reason]),
                "examples": dict(list(dropped[reason].items())[:MAX_EXAMPLES]),
            }
            for reason, meaning in DROPPED.items()
            if dropped[reason]
        },
    }


def explain(reason: str) -> str:
    """Returns the meaning of a reason why rows are dropped, and the option that helps, if there is one."""
    return f"{DROPPED[reason]}; {WAYS_OUT[reason]}" if reason in WAYS_OUT else DROPPED[reason]


def _print_report(report: Mapping[str, Any]) -> None:
    sizes = ", ".join(f"{split} {num}" for split, num in report["splits"].items())
    print(f"kept {sum(report['splits'].values())} of {report['num_rows']} rows ({sizes})")
    for reason, entry in report["dropped"].items():
        example = next(iter(entry["examples"]))
        print(f"dropped, {reason}: {entry['count']} of the rows, such as {example}; {explain(reason)}")
    if shared := report["num_sharing_a_held_out_picture"]:
        way_out = "" if report["these_are"] == "left out" else "; --drop_shared true leaves them out"
        print(f"{shared} training prompts show a picture of a held-out split, and are {report['these_are']}{way_out}")
