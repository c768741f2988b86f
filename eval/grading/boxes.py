r"""Which boxes does a text contain, how much do two boxes overlap, and in which coordinates does a model write them?

Boxes are corners `x1, y1, x2, y2` in common notations: four numbers with or without brackets, two corners in brackets,
Qwen's `bbox_2d`, named coordinates (`x1=10`, `left: 10, width: 20`), and corners named in prose (`the top-left corner
is at (10, 20) and the bottom-right corner at (30, 40)`). Gemini's `box_2d` has y before x.

A model writes boxes in coordinates of its own (`BOX_SPACES`). They are known from its family's record
(`models/families.py`), never guessed from the numbers; a model trained on others needs them given. The gold box is in
the image's pixels and is mapped to the model's coordinates, which changes no IoU.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from eval.grading.latex import in_ascii
from tracking.command import did_you_mean

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge (xyxy)."""
Size = tuple[int, int]
"""Width and height in pixels."""
MIN_IOU = 0.5
"""Two boxes with a larger IoU are considered equal (arXiv 2602.12395, appendix D)."""
THOUSAND = 1000.0

BOX_SPACES: dict[str, Callable[[Size, Size], tuple[float, float]]] = {
    "resized": lambda image_size, resized_size: resized_size,
    "thousand": lambda image_size, resized_size: (THOUSAND, THOUSAND),
    "image": lambda image_size, resized_size: image_size,
}
"""Name -> width and height of the coordinates, from the size of the image and the size the model sees it in."""


@dataclass(frozen=True)
class BoxSpace:
    """How far the coordinates in which a model writes boxes are stretched against the image's pixels."""

    scale_x: float
    scale_y: float

    def to_image(self, box: Box) -> Box:
        """Maps a model's box to the image's pixels."""
        return box[0] / self.scale_x, box[1] / self.scale_y, box[2] / self.scale_x, box[3] / self.scale_y

    def to_model(self, box: Box) -> Box:
        """Maps a box in the image's pixels to what the model would write."""
        return box[0] * self.scale_x, box[1] * self.scale_y, box[2] * self.scale_x, box[3] * self.scale_y

    def gold_text(self, gold: str) -> str:
        """Returns a gold box in the model's coordinates; a gold that is not one box is returned as it is."""
        boxes = boxes_in(gold)
        return ", ".join(f"{edge:.6g}" for edge in self.to_model(boxes[0])) if len(boxes) == 1 else gold


IMAGE_SPACE = BoxSpace(1.0, 1.0)


def check_box_space(name: str | None) -> None:
    """Rejects an unknown name; None stands for the family's coordinates."""
    if name is not None and name not in BOX_SPACES:
        raise ValueError(
            f"box space {name!r} is unknown; expected one of {', '.join(BOX_SPACES)}{did_you_mean(name, BOX_SPACES)}"
        )


def box_space(space_name: str, *, image_size: Size, resized_size: Size) -> BoxSpace:
    """Returns the map between a model's coordinates and an image's pixels.

    Args:
        space_name: one of `BOX_SPACES`; a family's record names its own.
        image_size: width and height of the image file.
        resized_size: width and height that the model's processor gives it.
    """
    check_box_space(space_name)
    width, height = BOX_SPACES[space_name](image_size, resized_size)
    return BoxSpace(width / image_size[0], height / image_size[1])


_ROLES = {
    "left": "left x xmin x_min x1 x_1 x0 x_0 左", "top": "top y ymin y_min y1 y_1 y0 y_0 上",
    "right": "right xmax x_max x2 x_2 右", "bottom": "bottom ymax y_max y2 y_2 下",
    "width": "width w 宽 宽度", "height": "height h 高 高度",
}  # fmt: skip
_ROLE = {name: role for role, names in _ROLES.items() for name in names.split()}
"""Name of a coordinate -> the edge or side that it gives."""
_VALUE = r"(-?\d+(?:\.\d+)?)(?!\.?\d)"
_NAMED = re.compile(
    rf"(?<![\w.])(?P<name>{'|'.join(sorted(map(re.escape, _ROLE), key=len, reverse=True))})[\"'`]?\s*"
    rf"(?:[:=：]|\bis\b|\bof\b|为)\s*{_VALUE}",
    re.IGNORECASE,
)
_PLACE = r"(?P<row>top|bottom|upper|lower)[-_ ]?(?P<column>left|right)|(?P<zh_column>[左右])(?P<zh_row>[上下])角"
_FILLER = (
    r"(?:[\s:=,*_：\"'`]|corner|point|vertex|coordinates?|position|located|is|are|at|of the (?:bounding )?box"
    r"|为|在|坐标|的|是){0,14}"
)
_CORNER = re.compile(
    rf"(?:{_PLACE}){_FILLER}[(\[（]\s*(?:x\s*=\s*)?{_VALUE}\s*[,，]\s*(?:y\s*=\s*)?{_VALUE}\s*[)\]）]", re.IGNORECASE
)
_CORNER_AFTER = re.compile(
    rf"[(\[（]\s*{_VALUE}\s*[,，]\s*{_VALUE}\s*[)\]）]\s*"
    rf"(?:,|is|as|at|being|for|marks|是|为|\()*\s*(?:the\s+)?(?:{_PLACE})",
    re.IGNORECASE,
)
_Y_FIRST = re.compile(
    rf"\bbox_2d[\"'`]?\s*[:=]\s*[(\[]\s*{_VALUE}\s*,\s*{_VALUE}\s*,\s*{_VALUE}\s*,\s*{_VALUE}\s*[)\]]"
)
_RANGE = re.compile(
    rf"\b([xy])\b(?:\s*=|\s+(?:coordinates?\s+)?(?:ranges?|goes|runs|spans|is))?\s*(?:from\s+)?(?:[xy]\s*=\s*)?{_VALUE}"
    rf"\s*(?:to|-|–)\s*(?:[xy]\s*=\s*)?{_VALUE}",
    re.IGNORECASE,
)
_ONE_CORNER = re.compile(rf"[(\[]\s*{_VALUE}\s*,\s*{_VALUE}\s*[)\]]")
_LABEL = re.compile(
    r"(?:the\s+)?(?:top|bottom|upper|lower)[-_ ](?:left|right)(?:\s+corner)?(?:\s+(?:is|at))?\s*[:=]?\s*"
    r"|\(\s*x\w*\s*,\s*y\w*\s*\)\s*[:=]?\s*",
    re.IGNORECASE,
)
_NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?:\s?px)?(?!\w|\.\d)"
_BETWEEN = r"(?:[,;()\[\]\s，；（）]|to\b|and\b|-(?=[\s(]))+"
_RUN = re.compile(rf"{_NUMBER}(?:{_BETWEEN}{_NUMBER})*")
"""Numbers separated only by commas, brackets and blanks."""


def boxes_in(text: str) -> list[Box]:
    """Returns the distinct boxes in a text: those with named coordinates or corners first, then the others in order."""
    boxes: dict[Box, None] = {}
    text = in_ascii(text)
    for read in READINGS:
        found, text = read(text)
        boxes.update(dict.fromkeys(found))
    return list(boxes)


def _y_first(text: str) -> tuple[list[Box], str]:
    """Reads Gemini's boxes, `[ymin, xmin, ymax, xmax]`."""
    boxes = [(float(match[2]), float(match[1]), float(match[4]), float(match[3])) for match in _Y_FIRST.finditer(text)]
    return [box for box in boxes if _has_area(box)], _Y_FIRST.sub("\n|\n", text) if boxes else text


def _by_corners(text: str) -> tuple[list[Box], str]:
    """Reads pairs of opposite corners that are named before or after their coordinates."""
    for pattern in (_CORNER, _CORNER_AFTER):
        matches = list(pattern.finditer(text))
        values = []
        for match in matches:
            x, y = (float(value) for value in match.groups() if value and re.fullmatch(_VALUE, value))
            is_left = (match["column"] or match["zh_column"]).casefold() in ("left", "左")
            is_top = (match["row"] or match["zh_row"]).casefold() in ("top", "upper", "上")
            values += [("left" if is_left else "right", x), ("top" if is_top else "bottom", y)]
        boxes = list(_assembled(values))
        if boxes:
            return boxes, pattern.sub("\n|\n", text)
    return [], text


def _by_names(text: str) -> tuple[list[Box], str]:
    """Reads boxes whose coordinates are named one by one."""
    values = [(_ROLE[match["name"].casefold()], float(match[2])) for match in _NAMED.finditer(text)]
    corners = _ONE_CORNER.findall(text)
    if len(corners) == 1 and {role for role, _ in values} == {"width", "height"} and "cent" not in text.casefold():
        values = [("left", float(corners[0][0])), ("top", float(corners[0][1])), *values]
    boxes = list(_assembled(values))
    return boxes, _NAMED.sub("\n|\n", text) if boxes else text


def _by_ranges(text: str) -> tuple[list[Box], str]:
    """Reads ranges of x and y: `x from 10 to 30`."""
    values = []
    for axis, low, high in _RANGE.findall(text):
        edges = ("left", "right") if axis in "xX" else ("top", "bottom")
        values += list(zip(edges, (float(low), float(high)), strict=True))
    boxes = list(_assembled(values))
    return boxes, _RANGE.sub("\n|\n", text) if boxes else text


def _assembled(values: Sequence[tuple[str, float]]) -> Iterator[Box]:
    """Yields the boxes that named edges and sides form; a name with another value starts a new box."""
    edges: dict[str, float] = {}
    for role, value in values:
        if edges.get(role, value) != value:
            edges = {}
        edges[role] = value
        if {"left", "top"} <= edges.keys():
            right = edges.get("right", edges["left"] + edges["width"] if "width" in edges else None)
            bottom = edges.get("bottom", edges["top"] + edges["height"] if "height" in edges else None)
            if right is not None and bottom is not None:
                box = (edges["left"], edges["top"], right, bottom)
                edges = {}
                if _has_area(box):
                    yield box


def _in_a_row(text: str) -> tuple[list[Box], str]:
    """Reads runs of numbers, four a box."""
    boxes = []
    for run in _RUN.finditer(_LABEL.sub(" ", text)):
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", run.group())]
        for start in range(0, len(numbers) - 3, 4) if len(numbers) % 4 == 0 else ():
            left, top, right, bottom = numbers[start : start + 4]
            boxes.append((left, top, right, bottom))
    return [box for box in boxes if _has_area(box)], text


READINGS: tuple[Callable[[str], tuple[list[Box], str]], ...] = (
    _y_first,
    _by_corners,
    _by_ranges,
    _by_names,
    _in_a_row,
)
"""How boxes are read, one after the other; each returns its boxes and the text without them."""


def _has_area(box: Box) -> bool:
    return box[0] < box[2] and box[1] < box[3]


def iou(first: Box, second: Box) -> float:
    """Returns the intersection over union of two boxes; zero if neither has an area."""
    overlap = (*map(max, first[:2], second[:2]), *map(min, first[2:], second[2:]))
    shared = _area(overlap)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    """Returns a box's area; zero where an edge stands on the wrong side."""
    left, top, right, bottom = box
    return max(0.0, right - left) * max(0.0, bottom - top)


def equal_boxes(answer: str, gold: str) -> bool | None:
    """Returns whether an answer is one box with IoU > 0.5 to the gold box; None if the gold is not one box."""
    right = boxes_in(gold)
    if len(right) != 1:
        return None
    boxes = boxes_in(answer)
    return len(boxes) == 1 and iou(boxes[0], right[0]) > MIN_IOU
