"""Counting pairs: a rendered scene, and the same scene with a few objects fewer or more.

Camera, lamps, floor and the remaining objects are unchanged, to the pixel, outside the region that the removed objects
can affect: the pixels they cover and those in their shadows. That region is computed from geometry (`geometry.py`),
never from the images; a difference outside of it stops the build. There are no reflections: only direct light from the
lamps is rendered (`draw.py`).

Target counts are 1 to 10, each once per ten pairs, in a random order; in half of the ten the target is the fuller
image. Masks contain the number of the object visible at each pixel's centre, counted from 1 as in `meta`'s scene.

    python -m data_builders.build counting --num_pairs 100 --output-dir outputs/pairs/counting
    python -m data_builders.build counting --scenes BUAADreamer/clevr_count_70k --output-dir outputs/pairs/clevr

The second command takes pairs of unrelated scenes from a data set, like the paper's (`hub.py`); none is minimal.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_builders.counting.draw import render_change, render_scene
from data_builders.counting.geometry import cover, silhouettes, touched_region
from data_builders.counting.hub import SceneSource, fetch_scenes, open_scene_pairs, scenes_fingerprint
from data_builders.counting.layout import Visibility, draw_scene
from data_builders.pairs.pair import Pair
from data_builders.pairs.sets import Drawing, DrawnPair, DrawPair, PairTask, image_names, mask_name, pair_id
from data_builders.pairs.vision_grid import Size, read_size

PROMPT = "How many objects are there in the image? Answer with a number."
COUNTS = range(1, 11)
SIDES = ("target", "source")
MIN_SIDE_PIXELS = 64
ASPECTS = (1.2, 2.0)
"""Allowed width/height ratios: ten objects do not fit into narrower views, and wider ones would show the lamps."""


@dataclass(frozen=True, kw_only=True)
class CountingArguments(Visibility, SceneSource):
    """Properties of the scenes, or their source."""

    max_change: int = field(
        default=3, metadata={"help": "maximum number of objects added or removed, drawn uniformly from 1 to N"}
    )
    image_size: str = field(default="480x320", metadata={"help": "WIDTHxHEIGHT in pixels; by default that of CLEVR"})
    num_samples: int = field(default=36, metadata={"help": "rays per pixel, a square number; fewer are grainy"})

    def __post_init__(self) -> None:
        Visibility.__post_init__(self)
        SceneSource.__post_init__(self)
        if not 1 <= self.max_change < len(COUNTS):
            raise ValueError(f"max_change is {self.max_change}; expected 1 to {len(COUNTS) - 1}")
        if self.num_samples < 1 or round(self.num_samples**0.5) ** 2 != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}; expected a square number, such as 16, 36 or 64")
        width, height = self.size
        if min(width, height) < MIN_SIDE_PIXELS or not ASPECTS[0] <= width / height <= ASPECTS[1]:
            raise ValueError(
                f"image_size is {self.image_size}; expected at least {MIN_SIDE_PIXELS} pixels each way, and a width of "
                f"{ASPECTS[0]} to {ASPECTS[1]} heights"
            )

    @property
    def size(self) -> Size:
        return read_size("image_size", self.image_size)


class Change(NamedTuple):
    """Numbers of objects in a pair."""

    target: int
    source: int


def draw_change(drawing: Drawing, index: int, max_change: int) -> Change:
    """Draws the two counts of a pair; of ten consecutive pairs each target count occurs once, half of them larger."""
    block, place = divmod(index, len(COUNTS))
    rng = drawing.rng("counts", block)
    order = rng.sample(COUNTS, len(COUNTS))
    inner = list(COUNTS)[1:-1]
    fuller = {COUNTS[-1], *rng.sample(inner, len(inner) // 2)}
    target = order[place]
    step = -1 if target in fuller else 1
    room = target - COUNTS[0] if step < 0 else COUNTS[-1] - target
    return Change(target, target + step * drawing.rng(index, "change").randint(1, min(max_change, room)))


def open_counting_pairs(arguments: CountingArguments, drawing: Drawing) -> DrawPair:
    """Returns the function that draws a pair, given its number."""
    if arguments.scenes is not None:
        return open_scene_pairs(drawing, PROMPT)
    visibility = Visibility(**{each.name: getattr(arguments, each.name) for each in fields(Visibility)})
    width, height = arguments.size

    def draw(index: int) -> DrawnPair:
        change = draw_change(drawing, index, arguments.max_change)
        rng = drawing.rng(index)
        try:
            scene = draw_scene(rng, max(change), width, height, visibility)
        except ValueError as error:
            raise ValueError(f"pair {pair_id(drawing.task, index)}: {error}") from error
        removed = sorted(rng.sample(range(1, max(change) + 1), abs(change.target - change.source)))
        fuller, emptier = SIDES if change.target > change.source else SIDES[::-1]
        seen = silhouettes(scene, width, height)
        ids = {fuller: cover(seen, width, height), emptier: cover(seen, width, height, without=removed)}
        touched = touched_region(scene, removed, width, height)
        pictures = {fuller: render_scene(scene, width, height, arguments.num_samples)}
        pictures[emptier] = render_change(scene.without(removed), pictures[fuller], touched, arguments.num_samples)
        differs = (np.asarray(pictures["target"]) != np.asarray(pictures["source"])).any(axis=-1)
        outside = int((differs & ~touched).sum())
        assert outside == 0, f"{pair_id(drawing.task, index)}: {outside} pixels differ outside the touched region"

        masks = {f"{side}_ids": mask_name(drawing.task, index, f"{side}-ids") for side in SIDES}
        masks["touched"] = mask_name(drawing.task, index, "touched")
        images = dict(zip(SIDES, image_names(drawing.task, index), strict=True))
        pair = Pair(
            id=pair_id(drawing.task, index),
            task="counting",
            prompt=PROMPT,
            target_image=images["target"],
            source_image=images["source"],
            target_answer=str(change.target),
            source_answer=str(change.source),
            meta={
                "minimal": True,
                "fuller": fuller,
                "removed": removed,
                "removed_rgb": [
                    {"number": number, **{side: mean_rgb(pictures[side], ids[fuller] == number) for side in SIDES}}
                    for number in removed
                ],
                "scene": scene.to_json(),
                "num_samples": arguments.num_samples,
                "min_visible_pixels": visibility.min_pixels(width, height),
                "min_visible_frac": visibility.min_visible_frac,
                "touched_frac": round(float(touched.mean()), 6),
                "differing_frac": round(float(differs.mean()), 6),
                **masks,
            },
        )
        files: dict[str, Image.Image | bytes] = {images[side]: pictures[side] for side in SIDES}
        files |= {masks[f"{side}_ids"]: Image.fromarray(ids[side]) for side in SIDES}
        files[masks["touched"]] = Image.fromarray(touched.astype(np.uint8) * 255)
        return DrawnPair(pair, files)

    return draw


def mean_rgb(picture: Image.Image, where: UInt8[np.ndarray, "height width"]) -> list[float]:
    """Returns the mean colour of some pixels, rounded to 0.01 levels."""
    pixels = np.asarray(picture)[where]
    return [round(int(total) / len(pixels), 2) for total in pixels.sum(axis=0, dtype=np.int64)]


def prepare_counting(arguments: CountingArguments, drawing: Drawing, num_pairs: int) -> None:
    """Fetches the scenes of a data set, if pairs are made from one."""
    if arguments.scenes is not None:
        fetch_scenes(arguments, drawing, num_pairs)


def describe_counting(arguments: CountingArguments) -> dict[str, Any]:
    """Returns what determines the product; for external scenes, their contents instead of their name."""
    own = {each.name for each in fields(SceneSource)}
    settings = asdict(arguments)
    if arguments.scenes is None:
        return {name: value for name, value in settings.items() if name not in own}
    return {name: settings[name] for name in own} | {"scenes": scenes_fingerprint(arguments)}


COUNTING = PairTask(CountingArguments, open_counting_pairs, describe_counting, prepare=prepare_counting)
