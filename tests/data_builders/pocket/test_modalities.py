"""The pocket world in four looks: balanced prompts, and a look whose colours only the shades tell."""

import random
import re
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_builders import build
from data_builders.pocket.draw import CELL_PIXELS, GRID, count_colours, draw_scene, render
from data_builders.pocket.looks import LOOKS, SHADES, UNNAMED, draw_look
from data_builders.pocket.modalities import COUNTS, LookSizes, assign_looks, build_looks, draw_balanced
from data_builders.prompt_sets.prompts import read_prompts
from data_builders.validate.prompt_set import validate_prompt_set
from eval.grading import grade, is_well_formed
from models.pocket import COLOURS

SIZES = LookSizes(
    num_base=80, num_sft=90, num_rl_per_look=6, num_validation_per_look=4, num_test_per_look=4, num_probe_per_look=4
)
HELD_OUT = ("rl", "validation", "test")


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("looks")
    build_looks(directory, sizes=SIZES, seed=0)
    return directory


def middle_of_cells(picture: Image.Image) -> list[tuple[int, ...]]:
    pixels = np.asarray(picture)
    middle = [CELL_PIXELS * cell + CELL_PIXELS // 2 for cell in range(GRID)]
    return [tuple(int(level) for level in pixels[row, column]) for row, column in product(middle, middle)]


def stained_counts(path: Path) -> dict[str, int]:
    names = {rgb: colour for colour, rgb in SHADES.items()}
    seen = Counter(names[rgb] for rgb in middle_of_cells(Image.open(path)))
    return {colour: seen[colour] for colour in COLOURS}


def value_of(question: str, counts: dict[str, int]) -> int:
    if match := re.fullmatch(r"How many (\w+) objects are there \?", question):
        return counts[match[1]]
    match = re.fullmatch(r"What is (.+) \?", question)
    assert match
    return int(eval(re.sub("|".join(COLOURS), lambda name: str(counts[name.group()]), match[1])))


def test_held_out_looks_have_equal_numbers_of_each_ability(looks: Path) -> None:
    for split, num in (
        ("rl", {"vision": 2, "vision-to-reasoning": 4}),
        ("test", {"vision": 2, "vision-to-reasoning": 2}),
    ):
        groups = Counter(
            (prompt.meta or {})["modality"] + " " + prompt.ability for prompt in read_prompts(looks, split)
        )
        assert groups == {f"{look} {ability}": num[ability] for look in LOOKS for ability in num}


def test_the_start_is_taught_the_looks_in_their_shares(looks: Path) -> None:
    taught = Counter((prompt.meta or {})["modality"] for prompt in read_prompts(looks, "sft"))
    assert taught == {"outline": 36, "speckle": 18, "negative": 27, "stained": 9}
    assert {(prompt.meta or {"modality": None})["modality"] for prompt in read_prompts(looks, "base")} == {
        "outline", "speckle", "negative", None
    }  # fmt: skip
    for prompt in read_prompts(looks, "sft"):
        assert prompt.response is not None
        assert is_well_formed(prompt.response)
        assert grade(prompt.response, prompt.answer, prompt.answer_kind).correct


def test_the_shades_of_the_stain_hold_the_answers(looks: Path) -> None:
    stained = [p for split in HELD_OUT for p in read_prompts(looks, split) if (p.meta or {})["modality"] == "stained"]
    assert len(stained) == 14
    for prompt in stained:
        assert str(value_of(prompt.question, stained_counts(looks / prompt.images[0]))) == prompt.answer


def test_a_stained_picture_shows_nine_objects_within_ten_levels_whatever_the_scene() -> None:
    rng = random.Random(0)
    for scene in (draw_scene(rng) for _ in range(10)):
        shown = middle_of_cells(draw_look(scene, "stained", "0"))
        named = Counter(shown)
        assert {rgb: named[rgb] for rgb in SHADES.values()} == {
            SHADES[colour]: num for colour, num in {**count_colours(scene), UNNAMED: scene.count(None)}.items()
        }
        assert np.ptp(np.array(shown), axis=0).max() < 10


def test_looks_without_a_stain_keep_their_colours_apart() -> None:
    scene = draw_scene(random.Random(1))
    plain = np.asarray(render(scene)).astype(int)
    pictures = {look: np.asarray(draw_look(scene, look, "0")).astype(int) for look in LOOKS}
    assert (pictures["negative"] == 255 - plain).all()
    drawn = np.abs(pictures["outline"] - plain[0, 0]).sum(axis=-1) > 0
    filled = np.abs(plain - plain[0, 0]).sum(axis=-1) > 0
    assert 0 < drawn.sum() < 0.7 * filled.sum()
    assert not (drawn & ~filled).any()
    differences = pictures["speckle"] - plain
    assert np.abs(differences.mean()) < 5
    assert 20 < differences.std() < 60


def test_probed_pictures_show_one_colour(looks: Path) -> None:
    for split in ("probe_train", "probe_test"):
        prompts = read_prompts(looks, split)
        assert Counter(((p.meta or {})["modality"], p.answer) for p in prompts) == dict.fromkeys(
            product(LOOKS, COLOURS), 1
        )
        for prompt in prompts:
            if (prompt.meta or {})["modality"] == "stained":
                assert stained_counts(looks / prompt.images[0])[prompt.answer] == 9


def test_answers_of_a_kind_of_question_are_uniform() -> None:
    rng = random.Random(0)
    counts = Counter(draw_balanced("vision", "rl", rng)[1].answer for _ in range(500))
    assert set(counts) == set(map(str, COUNTS))
    assert max(counts.values()) < 1.4 * 500 / len(COUNTS)
    sums: dict[str, Counter[int]] = {}
    for _ in range(600):
        scene, question, _ = draw_balanced("vision-to-reasoning", "rl", rng)
        assert scene is not None
        assert str(value_of(question.text, count_colours(scene))) == question.answer
        sign = "-" if " - " in question.text else "+"
        sums.setdefault(sign, Counter())[int(question.answer)] += 1
    assert {sign: sorted(own) for sign, own in sums.items()} == {"+": list(range(1, 10)), "-": list(range(9))}
    assert all(max(own.values()) < 1.6 * own.total() / 9 for own in sums.values())


def test_the_set_is_valid_and_its_scenes_are_distinct(looks: Path) -> None:
    num_prompts, found = validate_prompt_set(looks)
    assert num_prompts == 80 + 90 + 4 * (6 + 4 + 4) + 4 * (4 + 4)
    assert not found
    assert (looks / "preview.png").is_file()


def test_a_drawn_order_keeps_the_shares() -> None:
    looks = assign_looks({"outline": 2, "speckle": 1}, 12, "0", 2)
    assert Counter(looks) == {"outline": 8, "speckle": 4}
    assert looks[::2] == looks[1::2]
    assert looks != assign_looks({"outline": 2, "speckle": 1}, 12, "1", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sft_shares", "outlines=1"], "names no look; expected outline, speckle, negative, stained"),
        (["--sft_shares", "outline"], "sft_shares: 'outline' has no whole number"),
        (["--base_shares", "outline=1", "outline=2"], "base_shares names outline twice"),
        (["--base_shares", "outline=0"], "expected at least one look with a share above 0"),
        (["--base_shares", "outline=99999999999"], "is too large; expected at most outline=1000"),
        (["--num_rl_per_look", "0"], "num_rl_per_look is 0"),
    ],
)
def test_mistakes_in_the_shares_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build.main(["looks", "--output_dir", "unused", *words])
