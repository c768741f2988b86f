"""Grounding pairs: one object at two places, to the pixel, on pages that are equal everywhere else."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.grounding.build import GAP_PIXELS, GROUNDING, GroundingArguments
from data_builders.grounding.draw import BACKGROUNDS, COLOURS, NAMES, SHAPES, draw_cover
from data_builders.pairs.defects import preflight
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import Pair
from data_builders.pairs.sets import Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import open_vision_grid

SMALL = {"image_size": "240x180", "min_object_pixels": 24, "max_object_pixels": 40}
NUM_PAIRS = 16


def a_drawing(work_dir: Path, *, seed: int = 0) -> Drawing:
    grid = open_vision_grid("qwen2_5_vl")
    return Drawing(task="grounding", seed=seed, split="test", grid=grid, work_dir=work_dir)


def build_set(directory: Path, num_pairs: int = NUM_PAIRS, **options: Any) -> Path:
    directory.mkdir(parents=True)
    shared = PairSetArguments(num_pairs=num_pairs, num_workers=1)
    build_pair_set(directory, GROUNDING, GroundingArguments(**{**SMALL, **options}), a_drawing(directory), shared)
    return directory


@pytest.fixture(scope="module", params=[0, 4], ids=["alone", "with distractors"])
def grounding_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("grounding") / "set"
    return build_set(directory, num_distractors=request.param, backgrounds=list(BACKGROUNDS))


def pixels(directory: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(directory / name).convert("RGB")).astype(int)


def inside(array: np.ndarray, box: Any) -> np.ndarray:
    left, top, right, bottom = map(int, box)
    return array[top:bottom, left:right]


def shown_in(directory: Path, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    return pixels(directory, pair.target_image), pixels(directory, pair.source_image)


def test_the_pictures_are_equal_but_for_the_object_which_is_the_same_at_both_places(grounding_set: Path) -> None:
    for pair in read_pairs(grounding_set):
        target, source = shown_in(grounding_set, pair)
        before, after = inside(target, pair.target_box), inside(source, pair.source_box)
        assert np.array_equal(before, after)
        background = np.array(BACKGROUNDS[pair.meta["background"]])  # type: ignore[index]
        assert (inside(source, pair.target_box) == background).all()
        assert (inside(target, pair.source_box) == background).all()
        differs = (target != source).any(axis=-1)
        for box in (pair.target_box, pair.source_box):
            inside(differs, box)[:] = False
        assert not differs.any()


def test_a_box_touches_the_object_on_all_four_sides_and_holds_all_of_it(grounding_set: Path) -> None:
    for pair in read_pairs(grounding_set):
        target, source = shown_in(grounding_set, pair)
        for here, there, box in ((target, source, pair.target_box), (source, target, pair.source_box)):
            background = np.array(BACKGROUNDS[pair.meta["background"]])  # type: ignore[index]
            appears = (here != there).any(axis=-1) & (here != background).any(axis=-1)
            rows, columns = np.nonzero(appears.any(axis=1))[0], np.nonzero(appears.any(axis=0))[0]
            assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_places_keep_their_distance_from_each_other_and_from_the_frame(grounding_set: Path) -> None:
    for pair in read_pairs(grounding_set):
        width, height = pair.meta["image_size"]  # type: ignore[index]
        boxes = [pair.target_box, pair.source_box, *(entry["box"] for entry in pair.meta["distractors"])]  # type: ignore[index]
        for number, box in enumerate(boxes):
            grown = np.zeros((height, width), bool)
            assert min(box[0], box[1], width - box[2], height - box[3]) >= GAP_PIXELS
            inside(grown, (box[0] - GAP_PIXELS, box[1] - GAP_PIXELS, box[2] + GAP_PIXELS, box[3] + GAP_PIXELS))[:] = 1
            assert not any(inside(grown, other).any() for other in boxes[:number] + boxes[number + 1 :])


def test_the_mask_is_the_cover_of_the_object_at_both_places(grounding_set: Path) -> None:
    for pair in read_pairs(grounding_set):
        mask = np.asarray(Image.open(grounding_set / pair.meta["mask"]))  # type: ignore[index]
        rgb, page = (np.array(pair.meta[name], float) for name in ("colour_rgb", "background_rgb"))  # type: ignore[index]
        for side, picture in zip(("target", "source"), shown_in(grounding_set, pair), strict=True):
            box = getattr(pair, f"{side}_box")
            share = inside(mask, box)[..., None] / 255
            assert np.abs(inside(picture, box) - (share * rgb + (1 - share) * page)).max() <= 0.51
            inside(mask := mask.copy(), box)[:] = 0
        assert not mask.any()


def test_no_distractor_has_the_objects_name_and_prompt_and_answers_say_what_is_there(grounding_set: Path) -> None:
    for pair in read_pairs(grounding_set):
        meta = pair.meta or {}
        name = f"{meta['colour']} {meta['shape']}"
        assert pair.prompt == f"Locate the object: {name}. Return bounding box as x1,y1,x2,y2."
        assert (pair.target_answer, pair.source_answer) == tuple(
            ",".join(str(edge) for edge in box or ()) for box in (pair.target_box, pair.source_box)
        )
        assert name not in [f"{entry['colour']} {entry['shape']}" for entry in meta["distractors"]]
        assert (
            inside(pixels(grounding_set, pair.target_image), pair.target_box)
            .reshape(-1, 3)
            .tolist()
            .count(list(COLOURS[meta["colour"]]))
        )


def test_the_preflight_finds_nothing(grounding_set: Path) -> None:
    assert preflight(grounding_set, read_pairs(grounding_set)) == []


def test_every_hundred_pairs_ask_for_every_name_once_and_in_another_order(tmp_path: Path) -> None:
    draw = GROUNDING.open(GroundingArguments(**SMALL), a_drawing(tmp_path))  # type: ignore[arg-type]
    rounds = [
        [(draw(index).pair.meta or {})["object_name"] for index in range(start, start + 100)] for start in (0, 100)
    ]
    for names in rounds:
        assert sorted(names) == sorted(f"{colour} {shape}" for colour, shape in NAMES)
    assert rounds[0] != rounds[1]


def test_boxes_are_also_given_in_the_pixels_that_the_model_sees(tmp_path: Path) -> None:
    directory = build_set(tmp_path / "set", 2, image_size="384")
    for pair in read_pairs(directory):
        meta = pair.meta or {}
        assert meta["resized_size"] == [392, 392]
        for side in ("target", "source"):
            expected = [edge * 392 / 384 for edge in getattr(pair, f"{side}_box")]
            assert meta[f"{side}_box_resized"] == pytest.approx(expected, abs=1e-3)


def test_every_pair_has_the_same_fields(tmp_path: Path) -> None:
    directory = build_set(tmp_path / "set", 6, num_distractors=2)
    rows = [json.loads(line) for line in (directory / "pairs.jsonl").read_text().splitlines()]

    def form(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: form(inner) for key, inner in value.items()}
        return [form(inner) for inner in value] if isinstance(value, list) else type(value)

    assert all(form(row) == form(rows[0]) for row in rows)


AREAS = {
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "diamond": 2 * 0.65,
    "pentagon": 5 / 2 * math.sin(2 * math.pi / 5),
    "hexagon": 3 * math.sqrt(3) / 2,
    "star": 10 * 0.42 * math.sin(math.pi / 5) / 2,
    "cross": 4 * 0.3 * math.sqrt(1 - 0.09) * 2 - 4 * 0.09,
}
"""In units of the squared radius; none for the heart and the arrow."""
NUM_CORNERS = {
    "square": 4, "triangle": 3, "diamond": 4, "pentagon": 5, "hexagon": 6, "star": 10, "cross": 12, "arrow": 7,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_its_area_and_its_corners_however_it_is_turned(shape: str) -> None:
    import cv2

    radius = 100
    most = SHAPES[shape].max_rotation
    for rotation in (-most, -most / 3, 0.0, most / 2):
        cover = np.asarray(draw_cover(shape, 2 * radius, rotation))
        if shape in AREAS:
            assert cover.sum() / 255 == pytest.approx(AREAS[shape] * radius**2, rel=0.02)
        outline = max(
            cv2.findContours((cover > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len
        )
        if shape in NUM_CORNERS:
            assert len(cv2.approxPolyDP(outline, 5.0, True)) == NUM_CORNERS[shape]
        (_, enclosing) = cv2.minEnclosingCircle(outline)
        assert 0.8 * radius < enclosing <= radius + 1


@pytest.mark.parametrize("rotation", [-15.0, 0.0, 7.5])
def test_a_turned_square_is_as_wide_as_its_turn_makes_it(rotation: float) -> None:
    angle = math.radians(abs(rotation))
    side = 120 / math.sqrt(2) * (math.cos(angle) + math.sin(angle))
    for length in draw_cover("square", 120, rotation).size:
        assert side - 1 <= length <= side + 1.5


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_pixel_that_an_object_touches_shows_on_every_page(background: str) -> None:
    cover = draw_cover("star", 48, 10.0)
    for rgb in COLOURS.values():
        page = Image.new("RGB", cover.size, BACKGROUNDS[background])
        page.paste(rgb, (0, 0), cover)
        shows = (np.asarray(page) != np.array(BACKGROUNDS[background], np.uint8)).any(axis=-1)
        assert np.array_equal(shows, np.asarray(cover) > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_distractors": -1}, "num_distractors is -1; it must be 0 or more"),
        ({"backgrounds": ["whyte"]}, "background 'whyte' is unknown; .* did you mean 'white'"),
        ({"backgrounds": ["white", "white"]}, "expected at least one, and none twice"),
        ({"min_object_pixels": 8}, "expected 12 or more, and the first no larger than the second"),
        ({"min_object_pixels": 50, "max_object_pixels": 40}, "the first no larger than the second"),
        ({"image_size": "448x"}, "image_size is '448x'; expected pixels, such as 448, or width and height"),
        ({"image_size": "120"}, "max_object_pixels 96 with num_distractors 0 does not fit on 120 x 120 pixels"),
        ({"num_distractors": 30}, "max_object_pixels 96 with num_distractors 30 does not fit on 448 x 448 pixels"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroundingArguments(**options)


@pytest.mark.parametrize("options", [{"num_distractors": 5}, {"image_size": "600x113"}, {"image_size": "240"}])
def test_what_the_options_allow_finds_its_places(options: dict[str, Any], tmp_path: Path) -> None:
    """At the limit of what is allowed: the largest objects, as many as may be."""
    arguments = GroundingArguments(min_object_pixels=96, **options)
    draw = GROUNDING.open(arguments, a_drawing(tmp_path))
    assert len({draw(index).pair.target_box for index in range(20)}) == 20
