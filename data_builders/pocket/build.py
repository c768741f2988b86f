"""Minimal pairs in the pocket world: two pictures that are equal to the pixel but for the one thing asked about.

    counting   How many red objects are there ?       one object of that colour more, or fewer
    sum        What is red + 2 * blue ?               one object of these colours more, or fewer
    colour     What colour is the object in the … ?   the colour of that object
    shape      What shape is the object in the … ?    the shape of that object
    place      Where is the red circle ?              that object stands in another cell
    blank      Is there a red circle ?                a scene, and a canvas without any object

Sums count as the task `counting` (a number is asked for), colour and shape as `ocr` (one word read off the picture).
Place counts as `grounding` and is judged by the name of the place: its pairs have no boxes, since the pocket vocabulary
has neither letters to read nor coordinates. The pictures of a pair, with its question, fall by their hash into the part
of the pocket world that `SPLITS` names: those of the split `test` were seen by no pocket model in training. Two
pairs of a set may hold the same objects in the same cells; then their places inside the cells differ.

All but `blank` ask what the pocket model is trained on. Blank is the paper's task `recognition`, and there the pocket
model only shows that everything runs: its vocabulary has no Is, Yes and No, so the byte-level tokenizer spells them
letter by letter, and the model has seen neither the question nor a canvas without objects.

Only counting is built unless others are asked for: the pocket model counts well, works sums out after reinforcement
learning, and hardly knows one cell from another; an answer that was a guess does not follow the picture.

    python -m data_builders.build pocket_pairs --seed 0 --num-pairs 100 --output-dir outputs/pocket/pairs
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

from data_builders.pairs.pair import Pair
from data_builders.pairs.sets import Drawing, DrawnPair, DrawPair, PairTask, image_names, pair_id
from data_builders.pocket.draw import (
    CELL_PIXELS,
    GRID,
    Scene,
    Thing,
    count_colours,
    draw_scene,
    render,
    things_by_place,
)
from data_builders.pocket.world import content_of, draw_expression, split_of
from models.pocket import COLOURS, PLACES, SHAPES
from tracking.command import did_you_mean

SPLITS = {"train": "base", "validation": "validation", "test": "test"}
"""Split of a pair set -> the split of the pocket world that it draws from."""
MIN_THINGS = 2
"""No scene of the pocket world holds fewer."""
BLANK_SCENE: Scene = (None,) * len(PLACES)


@dataclass(frozen=True, kw_only=True)
class PocketPairArguments:
    """Which kinds of pairs are built."""

    kinds: list[str] = field(
        default_factory=lambda: ["counting"], metadata={"help": "some of counting, sum, colour, shape, place and blank"}
    )

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(
                    f"kind {kind!r} is unknown; expected some of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
                )
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds are {self.kinds}; expected at least one, and none twice")


class Scenes(NamedTuple):
    """Two scenes with one question and its answers."""

    question: str
    target: Scene
    source: Scene
    target_answer: str
    source_answer: str


def with_cells(scene: Scene, changes: dict[int, Thing | None]) -> Scene:
    """Returns the scene with other contents in some of its cells."""
    return tuple(changes.get(cell, thing) for cell, thing in enumerate(scene))


def draw_counting(scene: Scene, rng: random.Random) -> Scenes | None:
    """Takes one object away; half of the time the fuller scene is the target. None where too few would be left."""
    things = {cell: thing for cell, thing in enumerate(scene) if thing is not None}
    if len(things) <= MIN_THINGS:
        return None
    cell, thing = rng.choice(sorted(things.items()))
    target, source = scene, with_cells(scene, {cell: None})
    if rng.random() < 0.5:
        target, source = source, target
    target_answer, source_answer = (str(count_colours(drawn)[thing.colour]) for drawn in (target, source))
    return Scenes(f"How many {thing.colour} objects are there ?", target, source, target_answer, source_answer)


def draw_sum(scene: Scene, rng: random.Random) -> Scenes | None:
    """Takes one object of an expression away, as `draw_counting`; None where too few or a negative value is left."""
    things = {cell: thing for cell, thing in enumerate(scene) if thing is not None}
    expression = draw_expression(count_colours(scene), rng)
    named = [cell for cell, thing in things.items() if thing.colour in (expression.first, expression.second)]
    if len(things) <= MIN_THINGS or not named:
        return None
    target, source = scene, with_cells(scene, {rng.choice(named): None})
    if rng.random() < 0.5:
        target, source = source, target
    values = [expression.value(count_colours(drawn)) for drawn in (target, source)]
    if min(values) < 0:
        return None
    return Scenes(f"What is {expression} ?", target, source, str(values[0]), str(values[1]))


def draw_colour(scene: Scene, rng: random.Random) -> Scenes:
    """Gives one object another colour."""
    place, thing = rng.choice(list(things_by_place(scene).items()))
    other = rng.choice([colour for colour in COLOURS if colour != thing.colour])
    changed = with_cells(scene, {PLACES.index(place): replace(thing, colour=other)})
    return Scenes(f"What colour is the object in the {place} ?", scene, changed, thing.colour, other)


def draw_shape(scene: Scene, rng: random.Random) -> Scenes:
    """Gives one object another shape."""
    place, thing = rng.choice(list(things_by_place(scene).items()))
    other = rng.choice([shape for shape in SHAPES if shape != thing.shape])
    changed = with_cells(scene, {PLACES.index(place): replace(thing, shape=other)})
    return Scenes(f"What shape is the object in the {place} ?", scene, changed, thing.shape, other)


def draw_place(scene: Scene, rng: random.Random) -> Scenes | None:
    """Moves the only object of its colour and shape to a free cell.

    None where the scene has no such object, or where its edges are rounded otherwise in the other cell (1 in 500).
    """
    things = things_by_place(scene)
    names = [f"{thing.colour} {thing.shape}" for thing in things.values()]
    unique = [(place, name) for place, name in zip(things, names, strict=True) if names.count(name) == 1]
    if not unique:
        return None
    place, name = rng.choice(unique)
    other = rng.choice([free for free in PLACES if free not in things])
    moved = with_cells(scene, {PLACES.index(place): None, PLACES.index(other): things[place]})
    if cell_pixels(scene, place) != cell_pixels(moved, other):
        return None
    return Scenes(f"Where is the {name} ?", scene, moved, place, other)


def cell_pixels(scene: Scene, place: str) -> bytes:
    """Returns what a cell shows."""
    row, column = divmod(PLACES.index(place), GRID)
    left, top = column * CELL_PIXELS, row * CELL_PIXELS
    return render(scene).crop((left, top, left + CELL_PIXELS, top + CELL_PIXELS)).tobytes()


def draw_blank(scene: Scene, rng: random.Random) -> Scenes:
    """Asks for an object of the scene; the other picture is a canvas of the background alone."""
    thing = rng.choice(list(things_by_place(scene).values()))
    return Scenes(f"Is there a {thing.colour} {thing.shape} ?", scene, BLANK_SCENE, "Yes", "No")


class Kind(NamedTuple):
    """One kind of pair."""

    task: str
    """Of the paper's tasks, the nearest."""
    draw: Callable[[Scene, random.Random], Scenes | None]


KINDS: dict[str, Kind] = {
    "counting": Kind("counting", draw_counting),
    "sum": Kind("counting", draw_sum),
    "colour": Kind("ocr", draw_colour),
    "shape": Kind("ocr", draw_shape),
    "place": Kind("grounding", draw_place),
    "blank": Kind("recognition", draw_blank),
}


def draw_scenes(kind: str, split: str, rng: random.Random) -> Scenes:
    """Draws until both scenes, with the question, fall into a split of the pocket world, which has no blank canvas."""
    while True:
        drawn = KINDS[kind].draw(draw_scene(rng), rng)
        if drawn is not None and all(
            split_of(content_of(scene, drawn.question)) == split
            for scene in (drawn.target, drawn.source)
            if scene != BLANK_SCENE
        ):
            return drawn


def open_pocket_pairs(arguments: PocketPairArguments, drawing: Drawing) -> DrawPair:
    """Returns what draws the pair of a number; the kinds take turns."""

    def draw(index: int) -> DrawnPair:
        kind = arguments.kinds[index % len(arguments.kinds)]
        scenes = draw_scenes(kind, SPLITS[drawing.split], drawing.rng(index, kind))
        names = image_names(drawing.task, index)
        pair = Pair(
            id=pair_id(drawing.task, index),
            task=KINDS[kind].task,
            prompt=scenes.question,
            target_image=names[0],
            source_image=names[1],
            target_answer=scenes.target_answer,
            source_answer=scenes.source_answer,
            meta={
                "kind": kind,
                "target_cells": describe_cells(scenes.target),
                "source_cells": describe_cells(scenes.source),
            },
        )
        return DrawnPair(pair, {names[0]: render(scenes.target), names[1]: render(scenes.source)})

    return draw


def describe_cells(scene: Scene) -> list[str]:
    """Returns what the nine cells hold, row by row: `red circle 9.7 0.3 -1.2` (radius and offsets), or nothing."""
    return [
        f"{thing.colour} {thing.shape} {thing.radius} {thing.offset_x} {thing.offset_y}" if thing else ""
        for thing in scene
    ]


POCKET_PAIRS = PairTask(PocketPairArguments, open_pocket_pairs, asdict)
