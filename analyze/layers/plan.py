"""Which arms of a study train or freeze one place of the decoder? Their names, and the evaluations of their models."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.statistics.pairing import Entry
from models.blocks import Partition, make_partition
from tracking.run import is_finished, read_run

SUFFICIENCY, NECESSITY = "sufficiency", "necessity"
DIRECTIONS = {"only": SUFFICIENCY, "freeze": NECESSITY}
"""How an arm's name begins -> what it measures."""
LAYER = "layer"
PARTS = (LAYER, "attn", "mlp")
"""A whole layer, its attention, its MLP."""
START, FULL = "sft", "full"
MIN_PLACES = 3
STUDY = "train.necessity"
_ARM = re.compile(r"(?P<kind>only|freeze)-llm(?P<first>\d+)(?:-(?P<last>\d+))?(?:\.(?P<part>attn|mlp))?")


@dataclass(frozen=True, kw_only=True)
class Place:
    """What an arm of a layer sweep trains alone, or freezes."""

    direction: str
    part: str
    first: int
    last: int

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """For sorting: sufficiency first, then whole layers, then by depth."""
        return self.direction != SUFFICIENCY, PARTS.index(self.part), self.first, self.last

    @property
    def middle(self) -> float:
        """The place over depth, in layers."""
        return (self.first + self.last) / 2


def read_place(arm: str) -> Place | None:
    """Returns the place that an arm's name gives, such as `only-llm4.attn`; None for other arms."""
    match = _ARM.fullmatch(arm)
    if match is None:
        return None
    first, last = int(match["first"]), int(match["last"] or match["first"])
    return Place(direction=DIRECTIONS[match["kind"]], part=match["part"] or LAYER, first=first, last=last)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A study with arms of single places, as far as its models have been evaluated."""

    directory: Path
    entries: list[Entry]
    places: dict[str, Place]
    """Arm -> its place, in order of direction, part and depth."""
    missing: list[str]
    """Runs that were planned and have not been evaluated."""
    partition: Partition


def read_sweep(directory: Path) -> Sweep:
    """Reads a study's plan and finds its evaluations.

    Raises:
        ValueError: if the folder is no study, has no evaluation of sft and full, or too few arms of single places.
    """
    run = read_run(directory)
    if run["command"] != STUDY:
        raise ValueError(f"{directory} is an output of {run['command']}; expected a study of {STUDY}")
    settings: dict[str, Any] = run["settings"]
    names = [text.partition("=")[0].replace(":", "") for text in settings["arms"]]
    found = {name: place for name in names if (place := read_place(name)) is not None}
    if not found:
        raise ValueError(
            f"{directory} has no arm of a single layer, only {', '.join(names)}; "
            "expected arms such as each-only, each-freeze or only-llm:4"
        )
    wanted = [(START, None), *((name, seed) for name in (FULL, *found) for seed in settings["seeds"])]
    entries, missing = [], []
    for name, seed in wanted:
        label = name if seed is None else f"{name}-seed{seed}"
        folder = directory / "eval" / label
        if is_finished(folder):
            entries.append(Entry(name, seed, folder))
        else:
            missing.append(label)
    evaluated = {entry.name for entry in entries}
    for needed in (START, FULL):
        if needed not in evaluated:
            raise ValueError(
                f"{directory} has no evaluation of {needed}, with which every arm is compared; add it to the arms"
            )
    places = {name: found[name] for name in sorted(found, key=lambda name: found[name].rank) if name in evaluated}
    if len(places) < MIN_PLACES:
        raise ValueError(
            f"{directory} has {len(places)} evaluated arms of single layers; expected at least {MIN_PLACES}"
        )
    return Sweep(
        directory=directory,
        entries=[entry for entry in entries if entry.name in (START, FULL, *places)],
        places=places,
        missing=missing,
        partition=make_partition(num_layers(directory), partition=settings["partition"], cuts=settings["cuts"] or None),
    )


def num_layers(directory: Path) -> int:
    """Returns the number of decoder layers of a study's models, from a trained arm."""
    from models.layout import layout_of

    for folder in sorted((directory / "arms").glob(f"{FULL}-seed*/final")):
        return layout_of(folder).num_layers
    raise ValueError(f"{directory}/arms has no trained model of {FULL}; expected one at full-seed0/final")
