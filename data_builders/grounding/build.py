"""Grounding pairs: the same object, to the pixel, at two positions on one page; the answer is its bounding box.

    Locate the object: red circle. Return bounding box as x1,y1,x2,y2.

The object is drawn once and pasted at integer positions, so shape, colour, size and rotation cannot differ; the two
boxes do not touch. A box is the smallest around the pixels that the object covers at all (right and bottom exclusive),
in image pixels; `data_builders/pairs/sets.py` adds it in the resized image's pixels. Distractors are at the same
positions in both images, and none has the object's name. All names (a colour with a shape) are equally frequent: they
are drawn in rounds, each in a random order.

One mask per pair gives the object's coverage of each pixel (0 to 255), at both positions.

    python -m data_builders.build grounding --num-pairs 100 --seed 0 --output-dir outputs/pairs/grounding
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from data_builders.grounding.draw import BACKGROUNDS, COLOURS, NAMES, SHAPES, Thing
from data_builders.pairs.pair import Pair, box_text
from data_builders.pairs.sets import Drawing, DrawnPair, DrawPair, PairTask, image_names, mask_name, pair_id
from data_builders.pairs.vision_grid import Size, read_size
from tracking.command import did_you_mean

PROMPT = "Locate the object: {name}. Return bounding box as x1,y1,x2,y2."
"""The prompt of the published pairs."""

WholeBox = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels; right and bottom exclusive."""

GAP_PIXELS = 8
"""Minimum distance between two boxes, and from a box to the frame."""
MIN_OBJECT_PIXELS = 12
"""Smaller pentagons are not recognisable."""
MAX_PAGE_SHARE = 0.4
"""Share of the page that objects with their gaps may take; random placement rarely succeeds with more."""
MAX_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class GroundingArguments:
    """The contents of a page."""

    num_distractors: int = field(default=0, metadata={"help": "number of other objects, the same in both pictures"})
    image_size: str = field(
        default="448",
        metadata={
            "help": "side of the page in pixels, or WIDTHxHEIGHT; 448 is a multiple of both 28 and 32 pixels, "
            "the sizes of a vision token"
        },
    )
    min_object_pixels: int = field(
        default=48, metadata={"help": "diameter in pixels of the circle around the smallest object"}
    )
    max_object_pixels: int = field(
        default=96, metadata={"help": "diameter in pixels of the circle around the largest object"}
    )
    backgrounds: list[str] = field(
        default_factory=lambda: ["white"], metadata={"help": f"kinds of page to draw from: {', '.join(BACKGROUNDS)}"}
    )

    def __post_init__(self) -> None:
        for name in self.backgrounds:
            if name not in BACKGROUNDS:
                raise ValueError(
                    f"background {name!r} is unknown; expected some of {', '.join(BACKGROUNDS)}"
                    f"{did_you_mean(name, BACKGROUNDS)}"
                )
        if not self.backgrounds or len(set(self.backgrounds)) < len(self.backgrounds):
            raise ValueError(f"backgrounds are {self.backgrounds}; expected at least one, and none twice")
        if self.num_distractors < 0:
            raise ValueError(f"num_distractors is {self.num_distractors}; it must be 0 or more")
        if not MIN_OBJECT_PIXELS <= self.min_object_pixels <= self.max_object_pixels:
            raise ValueError(
                f"min_object_pixels {self.min_object_pixels}, max_object_pixels {self.max_object_pixels}: expected "
                f"{MIN_OBJECT_PIXELS} or more, and the first no larger than the second"
            )
        width, height = self.page_size
        longest = self.max_object_pixels + 1  # an edge between two pixels touches both
        taken = (2 + self.num_distractors) * (longest + GAP_PIXELS) ** 2
        if taken > MAX_PAGE_SHARE * width * height or longest + 2 * GAP_PIXELS > min(width, height):
            raise ValueError(
                f"max_object_pixels {self.max_object_pixels} with num_distractors {self.num_distractors} does not fit "
                f"on {width} x {height} pixels; take smaller or fewer objects, or a larger image_size"
            )

    @property
    def page_size(self) -> Size:
        """Width and height of the pictures."""
        return read_size("image_size", self.image_size)


def draw_thing(name: tuple[str, str], arguments: GroundingArguments, rng: random.Random) -> Thing:
    """Draws size and rotation of an object with a given name."""
    colour, shape = name
    most = SHAPES[shape].max_rotation
    size_pixels = rng.randint(arguments.min_object_pixels, arguments.max_object_pixels)
    return Thing(colour, shape, size_pixels, round(rng.uniform(-most, most), 1))


def draw_places(sizes: Sequence[Size], page: Size, rng: random.Random) -> list[WholeBox]:
    """Draws positions for rectangles, with the gap between each other and to the frame.

    Raises:
        ValueError: if none are found.
    """
    for _ in range(MAX_TRIES):
        boxes: list[WholeBox] = []
        for size in sizes:
            box = _draw_place(size, page, boxes, rng)
            if box is None:
                break
            boxes.append(box)
        else:
            return boxes
    raise ValueError(
        f"{len(sizes)} objects do not fit on {page[0]} x {page[1]} pixels; take smaller or fewer objects "
        "(max_object_pixels, num_distractors), or a larger image_size"
    )


def _draw_place(size: Size, page: Size, others: Sequence[WholeBox], rng: random.Random) -> WholeBox | None:
    for _ in range(MAX_TRIES):
        left, top = (rng.randint(GAP_PIXELS, page[axis] - GAP_PIXELS - size[axis]) for axis in (0, 1))
        box = (left, top, left + size[0], top + size[1])
        if all(gap_between(box, other) >= GAP_PIXELS for other in others):
            return box
    return None


def gap_between(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the gap between two boxes, the larger one of both axes; negative if they overlap."""
    return max(max(second[axis] - first[axis + 2], first[axis] - second[axis + 2]) for axis in (0, 1))


def open_grounding_pairs(arguments: GroundingArguments, drawing: Drawing) -> DrawPair:
    """Returns the function that draws a pair, given its number."""
    page_size = arguments.page_size

    def draw(index: int) -> DrawnPair:
        number, place = divmod(index, len(NAMES))
        name = drawing.rng("names", number).sample(NAMES, len(NAMES))[place]
        rng = drawing.rng(index)
        thing = draw_thing(name, arguments, rng)
        others = [other for other in NAMES if other != name]
        distractors = [draw_thing(rng.choice(others), arguments, rng) for _ in range(arguments.num_distractors)]
        background = rng.choice(arguments.backgrounds)
        cover, *other_covers = (each.cover() for each in (thing, *distractors))
        sizes = [cover.size, cover.size, *(other.size for other in other_covers)]
        target_box, source_box, *other_boxes = draw_places(sizes, page_size, rng)

        page = Image.new("RGB", page_size, BACKGROUNDS[background])
        for distractor, other_cover, box in zip(distractors, other_covers, other_boxes, strict=True):
            page.paste(COLOURS[distractor.colour], box, other_cover)
        pictures = [page, page.copy()]
        mask = Image.new("L", page_size)
        for picture, box in zip(pictures, (target_box, source_box), strict=True):
            picture.paste(COLOURS[thing.colour], box, cover)
            mask.paste(cover, box)

        names = image_names(drawing.task, index)
        mask_file = mask_name(drawing.task, index, "object")
        meta: dict[str, Any] = {
            "object_name": thing.name,
            **thing._asdict(),
            "colour_rgb": COLOURS[thing.colour],
            "background": background,
            "background_rgb": BACKGROUNDS[background],
            "gap_pixels": GAP_PIXELS,
            "mask": mask_file,
            "distractors": [
                {**distractor._asdict(), "box": box} for distractor, box in zip(distractors, other_boxes, strict=True)
            ],
        }
        pair = Pair(
            id=pair_id(drawing.task, index),
            task="grounding",
            prompt=PROMPT.format(name=thing.name),
            target_image=names[0],
            source_image=names[1],
            target_answer=box_text(target_box),
            source_answer=box_text(source_box),
            target_box=target_box,
            source_box=source_box,
            meta=meta,
        )
        return DrawnPair(pair, {names[0]: pictures[0], names[1]: pictures[1], mask_file: mask})

    return draw


def describe(arguments: GroundingArguments) -> dict[str, Any]:
    """Returns what determines the pairs."""
    return {
        "image_size": arguments.page_size,
        "num_distractors": arguments.num_distractors,
        "min_object_pixels": arguments.min_object_pixels,
        "max_object_pixels": arguments.max_object_pixels,
        "backgrounds": arguments.backgrounds,
    }


GROUNDING = PairTask(GroundingArguments, open_grounding_pairs, describe, flat=True)
