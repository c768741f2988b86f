"""Recognition pairs: a photograph that shows an object, and an image without the object.

The target is a photograph with COCO annotations (`coco.py`). The source, by `source_kind`, is a canvas of its size

    white, grey, black    in that colour
    mean                  in the photograph's mean colour
    inpainted             the photograph with every instance of the category painted out (`draw.py`) and no other pixel
                          changed: stricter, since a blank canvas differs from a photograph in everything

All kinds of source use the same photographs (`photographs.py`). A photograph belongs to one split, by its number. By
default the photographs are the rendered scenes in `mini_coco/`:

    python -m data_builders.build recognition --num_pairs 100 --output-dir outputs/pairs/recognition
    python -m data_builders.build recognition --annotations instances_val2017.json --images val2017 \\
        --source-kind inpainted --output-dir outputs/pairs/painted_out
    python -m data_builders.build recognition --hub_dataset detection-datasets/coco --output-dir outputs/pairs/hub
"""

import math
import re
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_builders.pairs.pair import Pair
from data_builders.pairs.sets import Drawing, DrawnPair, DrawPair, PairTask, image_names, mask_name, pair_id
from data_builders.prompt_sets.images import UnusableImageError
from data_builders.recognition.coco import open_photograph, read_photograph
from data_builders.recognition.draw import MAX_DILATION, METHODS, PAINTED, draw_mask, paint_out
from data_builders.recognition.photographs import Chosen, PhotographRules, choose_photographs, open_chosen
from tracking.command import did_you_mean

TASK = "recognition"
CANVAS_COLOURS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
SOURCE_KINDS = (*CANVAS_COLOURS, "mean", "inpainted")
PLURALS = ("scissors", "skis")
UNCOUNTED = ("broccoli",)
"""COCO categories without an article."""
PLACES_AFTER_POINT = 3
"""Decimals of mean colours."""
HUB_OPTIONS = ("hub_split", "hub_rows")
SOURCE_OPTIONS = ("annotations", "images", "hub_dataset", *HUB_OPTIONS)
INPAINTING_OPTIONS = ("inpaint_method", "inpaint_radius", "mask_dilation")

Region = Bool[np.ndarray, "height width"]


@dataclass(frozen=True, kw_only=True)
class RecognitionArguments(PhotographRules):
    """The image without the object."""

    source_kind: str = field(
        default="white",
        metadata={
            "help": "what replaces the object: white, grey, black, mean (the photograph's mean colour) or inpainted"
        },
    )
    max_pixels: int = field(
        default=0,
        metadata={
            "help": "maximum number of pixels of a photograph, such as for the pocket model; larger ones are "
            "reduced; 0: no maximum"
        },
    )
    inpaint_method: str = field(
        default="telea", metadata={"help": "with --source-kind inpainted: method, telea or ns (Navier-Stokes)"}
    )
    inpaint_radius: float = field(
        default=5.0,
        metadata={
            "help": "with --source-kind inpainted: radius in pixels of the neighbourhood that a pixel is painted from"
        },
    )
    mask_dilation: int = field(
        default=4, metadata={"help": "with --source-kind inpainted: pixels around the outlines that are painted too"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("source_kind", SOURCE_KINDS), ("inpaint_method", tuple(METHODS))):
            value = getattr(self, name)
            if value not in known:
                near = did_you_mean(value, known)
                raise ValueError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}{near}")
        if self.hub_dataset is not None and self.source_kind == "inpainted":
            raise ValueError("inpainted needs outlines, which hub_dataset has not; use --annotations and --images")
        if self.max_pixels < 0 or self.inpaint_radius <= 0:
            raise ValueError(
                f"max_pixels is {self.max_pixels}, inpaint_radius {self.inpaint_radius}; expected 0 or more, above 0"
            )
        if not 0 <= self.mask_dilation <= MAX_DILATION:
            raise ValueError(f"mask_dilation is {self.mask_dilation}; expected 0 to {MAX_DILATION}")


def prompt_for(category: str) -> str:
    """Returns the question for a category."""
    if category in PLURALS:
        return f"Are there {category} in the image? Answer Yes or No only."
    named = category if category in UNCOUNTED else f"{article_for(category)} {category}"
    return f"Is there {named} in the image? Answer Yes or No only."


def article_for(noun: str) -> str:
    """Returns `a` or `an`, by the first sound of an English noun."""
    has_silent_h = re.match(r"hour|honest|honou?r|heir", noun.lower())
    begins_with_consonant = re.match(r"[^aeiou]|uni(?!n|m)|us[ae]|ut[ei]|uku|ufo|eu|ewe|one\b", noun.lower())
    return "an" if has_silent_h or not begins_with_consonant else "a"


def prepare_recognition(arguments: RecognitionArguments, drawing: Drawing, num_pairs: int) -> None:
    """Selects the photographs of all pairs."""
    for name in options_without_effect(arguments):
        print(f"{name} has no effect here", file=sys.stderr)
    choose_photographs(arguments, drawing, num_pairs, with_outlines=arguments.source_kind == "inpainted")


def options_without_effect(arguments: RecognitionArguments) -> list[str]:
    """Returns the given options that have no effect."""
    idle: list[str] = []
    if arguments.source_kind != "inpainted":
        idle += INPAINTING_OPTIONS
    if arguments.hub_dataset is None:
        idle += HUB_OPTIONS
    given = [each.name for each in fields(arguments) if getattr(arguments, each.name) != each.default]
    return [name for name in idle if name in given]


def describe_recognition(arguments: RecognitionArguments) -> dict[str, Any]:
    """Returns what determines the pairs; the location of the photographs does not."""
    left_out = SOURCE_OPTIONS if arguments.source_kind == "inpainted" else SOURCE_OPTIONS + INPAINTING_OPTIONS
    described = {name: value for name, value in asdict(arguments).items() if name not in left_out}
    return {**arguments.describe_source(), **described}


def open_recognition_pairs(arguments: RecognitionArguments, drawing: Drawing) -> DrawPair:
    """Returns the function that draws a pair, given its number."""
    chosen_for = open_chosen(drawing.work_dir)
    images_dir = arguments.images_dir(drawing.work_dir)

    def draw(index: int) -> DrawnPair:
        name, chosen = pair_id(drawing.task, index), chosen_for(index)
        try:
            content = read_photograph(images_dir / chosen.photograph.file_name)
            opened = open_photograph(content, chosen.photograph.size)
        except UnusableImageError as error:
            raise ValueError(f"{name}: {chosen.photograph.file_name} {error}; it could be read at first") from error
        size = fitting_size(chosen.photograph.size, arguments.max_pixels)
        is_scaled = size != chosen.photograph.size
        picture = opened.picture.resize(size, Image.Resampling.LANCZOS) if is_scaled else opened.picture
        target_image, source_image = image_names(drawing.task, index)
        files: dict[str, Image.Image | bytes] = {}
        if arguments.source_kind == "inpainted":
            mask_image = mask_name(drawing.task, index, "painted")
            source, mask, own = paint_category_out(name, picture, chosen, arguments)
            own["mask"] = mask_image
            files[mask_image] = mask
        else:
            source, own = draw_canvas(picture, arguments.source_kind)
        # An inpainted photograph is stored losslessly, since JPEG decoders differ in some pixels.
        if opened.plain_suffix and not is_scaled and arguments.source_kind != "inpainted":
            target_image, _ = image_names(drawing.task, index, opened.plain_suffix)
            files[target_image] = content
        else:
            files[target_image] = picture
        files[source_image] = source
        pair = Pair(
            id=name,
            task=TASK,
            prompt=prompt_for(chosen.category),
            target_image=target_image,
            source_image=source_image,
            target_answer="Yes",
            source_answer="No",
            meta={**describe_choice(chosen, arguments), "mean_colour": mean_of(np.asarray(picture)), **own},
        )
        return DrawnPair(pair, files)

    return draw


def describe_choice(chosen: Chosen, arguments: RecognitionArguments) -> dict[str, Any]:
    """Returns a pair's meta about its photograph."""
    return {
        "source_kind": arguments.source_kind,
        "category": chosen.category,
        "category_id": chosen.category_id,
        "image_id": chosen.photograph.image_id,
        "photograph": chosen.photograph.file_name,
        "annotated_size": list(chosen.photograph.size),
        "num_instances": chosen.num_instances,
        "largest_area_frac": chosen.largest_area_frac,
        "min_area_frac": arguments.min_area_frac,
        "max_pixels": arguments.max_pixels,
    }


def draw_canvas(picture: Image.Image, kind: str) -> tuple[Image.Image, dict[str, Any]]:
    """Returns a canvas of the image's size, and the pair's meta about it."""
    colour = CANVAS_COLOURS.get(kind) or canvas_colour_of(mean_of(np.asarray(picture)))
    return Image.new("RGB", picture.size, colour), {"canvas_colour": list(colour)}


def canvas_colour_of(mean: list[float]) -> tuple[int, int, int]:
    """Returns the nearest integer colour."""
    red, green, blue = (round(channel) for channel in mean)
    return red, green, blue


def paint_category_out(
    name: str, picture: Image.Image, chosen: Chosen, arguments: RecognitionArguments
) -> tuple[Image.Image, Image.Image, dict[str, Any]]:
    """Returns the image without the category, the mask of painted pixels, and the pair's meta about them."""
    polygons = (polygon for instance in chosen.outlines for polygon in instance)
    mask = draw_mask(polygons, chosen.photograph.size, picture.size, arguments.mask_dilation)
    inside = mask == PAINTED
    if inside.all():
        raise ValueError(f"{name}: everything would be painted out; use a lower max_area_frac or mask_dilation")
    painted = paint_out(picture, mask, arguments.inpaint_method, arguments.inpaint_radius)
    own = {
        "outlines": chosen.outlines,
        "mask_dilation": arguments.mask_dilation,
        "inpaint_method": arguments.inpaint_method,
        "inpaint_radius": arguments.inpaint_radius,
        "painted_frac": round(float(inside.mean()), PLACES_AFTER_POINT),
        "target_colour_in_mask": mean_of(np.asarray(picture), inside),
        "source_colour_in_mask": mean_of(np.asarray(painted), inside),
    }
    return painted, Image.fromarray(mask), own


def fitting_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Returns a size with about the same proportions and at most this many pixels; 0 for no limit."""
    width, height = size
    if not max_pixels or width * height <= max_pixels:
        return size
    scale = math.sqrt(max_pixels / (width * height))
    return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))


def mean_of(pixels: UInt8[np.ndarray, "height width 3"], inside: Region | None = None) -> list[float]:
    """Returns the mean colour of an image, or of a part of it, rounded to 0.001; from exact sums."""
    num_pixels = pixels.shape[0] * pixels.shape[1] if inside is None else int(inside.sum())
    counted = pixels if inside is None else np.where(inside[..., None], pixels, 0)
    totals = counted.sum(axis=0, dtype=np.int64).sum(axis=0)  # rows first: NumPy is slow along an axis of three
    return [round(int(total) / num_pixels, PLACES_AFTER_POINT) for total in totals]


RECOGNITION = PairTask(RecognitionArguments, open_recognition_pairs, describe_recognition, prepare=prepare_recognition)
