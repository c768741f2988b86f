"""Which photographs does a set use? Selects a category and a photograph for each pair, once, before drawing.

Categories alternate in rounds, each round in a random order, and each category uses its photographs of the split in a
random order (for the hub, in the order of the rows). A category whose photographs are exhausted drops out. The choice
for pair i is therefore independent of the number of pairs. Unusable photographs are skipped and named on standard
error.

A category is eligible if it has a sufficiently large instance and no crowd region, which cannot be counted as one
instance or painted out. The selection is stored in the work folder, one line per pair, for the drawing processes.
"""

import json
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_builders.pairs.sets import Drawing
from data_builders.prompt_sets.images import UnusableImageError
from data_builders.recognition.coco import (
    ANNOTATIONS_FILE,
    IMAGES_DIR,
    MINI_COCO,
    Annotations,
    Photograph,
    Polygon,
    Presence,
    fingerprint,
    open_photograph,
    read_annotations,
    read_outlines,
    read_photograph,
)
from data_builders.recognition.coco_hub import fetch_hub_annotations, hub_fingerprint
from tracking.command import did_you_mean
from tracking.product import partial_file

CHOSEN_FILE = "chosen.jsonl"
FETCHED_DIR = "photographs"
NUM_NAMED = 10
"""Number of skipped photographs that are named."""
NUM_REASONS = 5


@dataclass(frozen=True, kw_only=True)
class PhotographRules:
    """The selection of photographs."""

    annotations: str | None = field(
        default=None, metadata={"help": "COCO's instances_*.json; by default the mini-COCO of this repository"}
    )
    images: str | None = field(default=None, metadata={"help": "folder of the photographs that the annotations name"})
    hub_dataset: str | None = field(
        default=None,
        metadata={
            "help": "hub id, such as detection-datasets/coco@COMMIT, or its folder; used instead of an annotation file"
        },
    )
    hub_split: str = field(default="val", metadata={"help": "split of the hub data set"})
    hub_rows: int = field(default=5000, metadata={"help": "maximum number of rows read from the hub data set"})
    categories: list[str] = field(default_factory=list, metadata={"help": "categories to use; all by default"})
    min_area_frac: float = field(
        default=0.01, metadata={"help": "minimum share of the photograph that the largest instance covers, 0 to 1"}
    )
    max_area_frac: float = field(
        default=0.5, metadata={"help": "maximum share of the photograph that all instances cover together, 0 to 1"}
    )

    def __post_init__(self) -> None:
        if (self.annotations is None) != (self.images is None):
            raise ValueError(f"annotations is {self.annotations}, images is {self.images}; name both, or neither")
        if self.hub_dataset is not None and self.annotations is not None:
            raise ValueError("annotations and hub_dataset are both named; expected one of them")
        if not 0 <= self.min_area_frac <= self.max_area_frac <= 1:
            raise ValueError(
                f"min_area_frac {self.min_area_frac}, max_area_frac {self.max_area_frac}: expected 0 <= min <= max <= 1"
            )
        if self.hub_rows < 1:
            raise ValueError(f"hub_rows is {self.hub_rows}; it must be at least 1")
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(f"categories are {', '.join(self.categories)}; one appears twice")

    @property
    def annotations_path(self) -> Path:
        return MINI_COCO / ANNOTATIONS_FILE if self.annotations is None else Path(self.annotations)

    def images_dir(self, work_dir: Path) -> Path:
        """The folder of the photographs; for fetched ones the work folder."""
        if self.hub_dataset is not None:
            return work_dir / FETCHED_DIR
        return MINI_COCO / IMAGES_DIR if self.images is None else Path(self.images)

    def describe_source(self) -> dict[str, Any]:
        """Returns what determines the photographs, without paths."""
        if self.hub_dataset is None:
            return {"annotations": fingerprint(self.annotations_path)}
        return {
            "hub_commit": hub_fingerprint(self.hub_dataset),
            "hub_split": self.hub_split,
            "hub_rows": self.hub_rows,
        }


class Chosen(NamedTuple):
    """A photograph and the category of its question."""

    photograph: Photograph
    category_id: int
    category: str
    num_instances: int
    largest_area_frac: float
    outlines: list[list[Polygon]]
    """The polygons of every instance; none unless inpainting is used."""


def choose_photographs(rules: PhotographRules, drawing: Drawing, num_pairs: int, *, with_outlines: bool) -> None:
    """Writes the selection for a number of pairs to the work folder, unless it exists.

    Raises:
        ValueError: if there are too few photographs; the message gives the possible number of pairs.
    """
    path = drawing.work_dir / CHOSEN_FILE
    if path.exists():
        return
    images_dir = rules.images_dir(drawing.work_dir)
    read, usable = read_usable(rules, drawing, num_pairs, images_dir, with_outlines=with_outlines)
    readable: dict[int, bool] = {}

    def is_readable(image_id: int) -> bool:
        if image_id not in readable:
            photograph = read.photographs[image_id]
            try:
                open_photograph(read_photograph(images_dir / photograph.file_name), photograph.size)
            except UnusableImageError as error:
                read.left_out[photograph.file_name] = str(error)
            readable[image_id] = photograph.file_name not in read.left_out
        return readable[image_id]

    places = list(take_turns(usable, is_readable, drawing, num_pairs))
    for line in (*describe_left_out(read.left_out), *describe_dropped_out(usable, places, read.categories)):
        print(line, file=sys.stderr)
    if len(places) < num_pairs:
        raise ValueError(
            f"{num_pairs} pairs of split {drawing.split!r} requested, but there are photographs for {len(places)}"
            f"{explain_unused(read, rules, with_outlines=with_outlines)}; "
            "ask for fewer, lower min_area_frac, or name a larger set"
        )
    outlines = read_outlines(rules.annotations_path, places) if with_outlines else {}
    drawing.work_dir.mkdir(parents=True, exist_ok=True)
    with partial_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for place in places:
            file.write(json.dumps(choice_of(read, place, outlines.get(place, []))) + "\n")


def read_usable(
    rules: PhotographRules, drawing: Drawing, num_pairs: int, images_dir: Path, *, with_outlines: bool
) -> tuple[Annotations, dict[int, list[int]]]:
    """Returns the annotations, and the photographs of each category in order of use."""
    if rules.hub_dataset is not None:
        images_dir.mkdir(parents=True, exist_ok=True)
        read = fetch_hub_annotations(
            rules.hub_dataset,
            rules.hub_split,
            rules.hub_rows,
            drawing.split,
            images_dir,
            enough=lambda read: num_pairs_before_one_drops_out(usable_photographs(read, rules)) >= num_pairs,
        )
        return read, usable_photographs(read, rules)
    if not images_dir.is_dir():
        raise ValueError(f"images {images_dir} is not a folder; expected the photographs that the annotations name")
    read = read_annotations(rules.annotations_path, drawing.split)
    usable = usable_photographs(read, rules, with_outlines=with_outlines)
    for category_id, image_ids in usable.items():
        image_ids.sort()
        drawing.rng("photographs", category_id).shuffle(image_ids)
    return read, usable


def choice_of(read: Annotations, place: tuple[int, int], outlines: list[list[Polygon]]) -> Chosen:
    """Returns a pair's photograph and category."""
    image_id, category_id = place
    photograph, presence = read.photographs[image_id], read.presences[place]
    return Chosen(
        photograph=photograph,
        category_id=category_id,
        category=read.categories[category_id],
        num_instances=presence.num_instances,
        largest_area_frac=round(presence.largest_area / (photograph.width * photograph.height), 6),
        outlines=outlines,
    )


def open_chosen(work_dir: Path) -> Callable[[int], Chosen]:
    """Returns a function that reads a pair's selection; only the offsets of the file's lines are kept in memory."""
    path = work_dir / CHOSEN_FILE
    starts = array("Q", [0])
    with path.open("rb") as file:
        for line in file:
            starts.append(starts[-1] + len(line))

    def read(index: int) -> Chosen:
        with path.open("rb") as file:
            file.seek(starts[index])
            photograph, *others = json.loads(file.readline())
        return Chosen(Photograph(*photograph), *others)

    return read


def usable_photographs(
    read: Annotations, rules: PhotographRules, *, with_outlines: bool = False
) -> dict[int, list[int]]:
    """Returns the eligible photographs of each category, in reading order."""
    wanted = [category_id for category_id, name in read.categories.items() if name in (rules.categories or [name])]
    for name in rules.categories:
        if name not in read.categories.values():
            near = did_you_mean(name, read.categories.values())
            raise ValueError(f"category {name!r} is not one of the {len(read.categories)} in the annotations{near}")
    usable: dict[int, list[int]] = {category_id: [] for category_id in sorted(wanted)}
    for (image_id, category_id), presence in read.presences.items():
        if category_id in usable:
            photograph = read.photographs[image_id]
            is_left_out = photograph.file_name in read.left_out
            if not is_left_out and why_not(photograph, presence, rules, with_outlines=with_outlines) is None:
                usable[category_id].append(image_id)
    return usable


def why_not(photograph: Photograph, presence: Presence, rules: PhotographRules, *, with_outlines: bool) -> str | None:
    """Returns why a photograph cannot be used for a category; None if it can."""
    area = photograph.width * photograph.height
    if presence.num_crowds:
        return "with a crowd region"
    if with_outlines and presence.num_run_lengths:
        return "with masks as run lengths, which inpainting cannot use (it needs polygons)"
    if with_outlines and presence.num_without_outline:
        return "with an instance without valid polygons, which inpainting needs"
    if presence.largest_area < rules.min_area_frac * area:
        return f"with no instance of at least min_area_frac {rules.min_area_frac:g}"
    if presence.total_area > rules.max_area_frac * area:
        return f"with instances of more than max_area_frac {rules.max_area_frac:g} together"
    return None


def explain_unused(read: Annotations, rules: PhotographRules, *, with_outlines: bool) -> str:
    """Returns how many photographs of the wanted categories cannot be used, by reason; empty if all can."""
    reasons: Counter[str] = Counter()
    for (image_id, category_id), presence in read.presences.items():
        photograph = read.photographs[image_id]
        if photograph.file_name in read.left_out:
            reasons[f"that {read.left_out[photograph.file_name].partition(';')[0]}"] += 1
        elif read.categories[category_id] in (rules.categories or [read.categories[category_id]]):
            reason = why_not(photograph, presence, rules, with_outlines=with_outlines)
            reasons.update([reason] if reason else [])
    named = [f"{num} {reason}" for reason, num in reasons.most_common(NUM_REASONS)]
    return f" (not used: {', '.join(named)})" if named else ""


def take_turns(
    usable: dict[int, list[int]], is_readable: Callable[[int], bool], drawing: Drawing, num_pairs: int
) -> Iterator[tuple[int, int]]:
    """Yields photograph and category of each pair; fewer if photographs are exhausted."""
    remaining = {category_id: iter(image_ids) for category_id, image_ids in usable.items()}

    def next_of(category_id: int) -> int | None:
        return next(filter(is_readable, remaining[category_id]), None)

    num_taken = num_rounds = 0
    with ThreadPoolExecutor() as threads:  # Pillow releases the GIL while decoding
        while remaining and num_taken < num_pairs:
            turns = list(usable)
            drawing.rng("round", num_rounds).shuffle(turns)
            turns = [category_id for category_id in turns if category_id in remaining]
            for category_id, image_id in zip(turns, threads.map(next_of, turns), strict=True):
                if image_id is None:
                    del remaining[category_id]
                elif num_taken < num_pairs:
                    num_taken += 1
                    yield image_id, category_id
            num_rounds += 1


def describe_left_out(left_out: dict[str, str]) -> Iterator[str]:
    """Yields lines of text about skipped photographs."""
    for name in sorted(left_out)[:NUM_NAMED]:
        yield f"left out: {name} {left_out[name]}"
    if len(left_out) > NUM_NAMED:
        yield f"left out: {len(left_out) - NUM_NAMED} more photographs that cannot be used"


def describe_dropped_out(
    usable: dict[int, list[int]], places: list[tuple[int, int]], categories: dict[int, str]
) -> Iterator[str]:
    """Yields a line of text if categories have fewer pairs than others because of too few photographs."""
    counts = Counter(category_id for _, category_id in places)
    num_rounds = max(counts.values(), default=1) - 1  # complete rounds
    dropped_out = [f"{categories[each]} ({counts[each]})" for each in usable if counts[each] < num_rounds]
    if dropped_out:
        more = ", …" if len(dropped_out) > NUM_NAMED else ""
        yield f"{len(dropped_out)} categories have too few photographs: {', '.join(dropped_out[:NUM_NAMED])}{more}"


def num_pairs_before_one_drops_out(usable: dict[int, list[int]]) -> int:
    """Returns the number of pairs in rounds that include every category."""
    return min(map(len, usable.values()), default=0) * len(usable)
