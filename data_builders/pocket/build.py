"""Minimal pairs in the pocket world: two images that are pixel-identical except for what is asked about.

    counting   How many red objects are there ?       one object of that colour more, or fewer
    sum        What is red + 2 * blue ?               one object of these colours more, or fewer
    colour     What colour is the object in the … ?   the colour of that object
    shape      What shape is the object in the … ?    the shape of that object
    place      Where is the red circle ?              that object is in another cell
    blank      Is there a red circle ?                a scene, and a canvas without any object

Sums belong to the task `counting` (the answer is a number), colour and shape to `ocr` (one word from the image). Place
belongs to `grounding` and is judged by the name of the place: its pairs have no boxes, since the pocket vocabulary has
no coordinates. The images of a pair, with its question, are assigned by hash to the part of the pocket world that
`SPLITS` names: no pocket model has seen those of the split `test` in training. Two pairs of a set may have the same
objects in the same cells; then the positions within the cells differ.

All kinds except `blank` ask questions from the pocket model's training. `blank` is the paper's task `recognition`; for
the pocket model it only shows that everything runs: its vocabulary has no Is, Yes and No, so the byte-level tokenizer
spells them letter by letter, and the model has seen neither the question nor a canvas without objects.

Only counting is built by default: the pocket model counts well, computes sums after reinforcement learning, but can
hardly tell cells apart; guessed answers do not follow the image.

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
"""Split of a pair set -> split of the pocket world."""
MIN_THINGS = 2
"""Minimum number of objects in a scene of the pocket world."""
BLANK_SCENE: Scene = (None,) * len(PLACES)


@dataclass(frozen=True, kw_only=True)
class PocketPairArguments:
    """The kinds of pairs to build."""

    kinds: list[str] = field(
        default_factory=lambda: ["counting"],
        metadata={"help": "tasks to draw, any of counting, sum, colour, shape, place and blank"},
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
    """Returns the scene with some cells replaced."""
    return tuple(changes.get(cell, thing) for cell, thing in enumerate(scene))


def draw_counting(scene: Scene, rng: random.Random) -> Scenes | None:
    """Removes one object; in half of the cases the fuller scene is the target. None if too few would remain."""
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
    """Removes one object of an expression, like `draw_counting`; None if too few or a negative value would remain."""
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

    None if the scene has no such object, or its edges are rounded differently in the other cell (1 in 500).
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
    """Returns the content of a cell."""
    row, column = divmod(PLACES.index(place), GRID)
    left, top = column * CELL_PIXELS, row * CELL_PIXELS
    return render(scene).crop((left, top, left + CELL_PIXELS, top + CELL_PIXELS)).tobytes()


def draw_blank(scene: Scene, rng: random.Random) -> Scenes:
    """Asks for an object of the scene; the other image is an empty canvas."""
    thing = rng.choice(list(things_by_place(scene).values()))
    return Scenes(f"Is there a {thing.colour} {thing.shape} ?", scene, BLANK_SCENE, "Yes", "No")


class Kind(NamedTuple):
    """One kind of pair."""

    task: str
    """The closest of the paper's tasks."""
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
    """Draws until both scenes, with the question, are in a split of the pocket world (a blank canvas has no split)."""
    while True:
        drawn = KINDS[kind].draw(draw_scene(rng), rng)
        if drawn is not None and all(
            split_of(content_of(scene, drawn.question)) == split
            for scene in (drawn.target, drawn.source)
            if scene != BLANK_SCENE
        ):
            return drawn


def open_pocket_pairs(arguments: PocketPairArguments, drawing: Drawing) -> DrawPair:
    """Returns the function that draws a pair, given its number; the kinds alternate."""

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
    """Describes the nine cells, row by row: `red circle 9.7 0.3 -1.2` (radius and offsets), or nothing."""
    return [
        f"{thing.colour} {thing.shape} {thing.radius} {thing.offset_x} {thing.offset_y}" if thing else ""
        for thing in scene
    ]


POCKET_PAIRS = PairTask(PocketPairArguments, open_pocket_pairs, asdict)
