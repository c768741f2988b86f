import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_builders import build
from data_builders.pocket.draw import CELL_PIXELS, GRID, RGB
from data_builders.pocket.world import PocketSizes, build_pocket_world
from data_builders.prompt_sets.prompts import ABILITIES, Prompt, read_prompts
from eval.grading import grade, is_well_formed
from models.pocket import PLACES, build_tokenizer

SIZES = PocketSizes(
    num_base=160, num_sft=120, num_rl=80, num_validation_per_ability=20, num_test_per_ability=60
)  # fmt: skip
SPLITS = ("base", "sft", "rl", "validation", "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    build_pocket_world(directory, sizes=SIZES, seed=0)
    return directory


def seen_colours(path: Path) -> dict[str, str]:
    """Returns the colour at each place that is not empty, read from the pixels in the middle of each cell."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    seen = {}
    for cell, place in enumerate(PLACES):
        row, column = divmod(cell, GRID)
        middle = pixels[row * CELL_PIXELS + CELL_PIXELS // 2, column * CELL_PIXELS + CELL_PIXELS // 2]
        distances = {colour: np.abs(middle - np.array(rgb)).sum() for colour, rgb in RGB.items()}
        colour = min(distances, key=lambda name: distances[name])
        if distances[colour] < 60:
            seen[place] = colour
    return seen


def value_of(expression: str, num_by_colour: dict[str, int]) -> int:
    written = re.sub("|".join(RGB), lambda match: str(num_by_colour[match.group()]), expression)
    assert re.fullmatch(r"[\d+*\- ]+", written)
    return int(eval(written))


def expected_answer(prompt: Prompt, directory: Path) -> str | None:
    """Returns the answer computed from the pixels or the text, or None for questions about shapes."""
    question = prompt.question
    if match := re.match(r"There are (\d) (\w+) and (\d) (\w+) \w+ \. What is (.+) \?", question):
        num_first, first, num_second, second, expression = match.groups()
        return str(value_of(expression, {first: int(num_first), second: int(num_second)}))
    seen = seen_colours(directory / prompt.images[0])
    counts = {colour: Counter(seen.values())[colour] for colour in RGB}
    if match := re.match(r"How many (\w+) objects", question):
        return str(counts[match.group(1)])
    if match := re.match(r"What colour is the object in the (\w+)", question):
        return seen[match.group(1)]
    if match := re.match(r"What is (.+) \?", question):
        return str(value_of(match.group(1), counts))
    return None


@pytest.mark.parametrize("split", ["rl", "validation", "test"])
def test_answers_agree_with_the_pixels_and_the_text(world: Path, split: str) -> None:
    expected = {prompt.id: expected_answer(prompt, world) for prompt in read_prompts(world, split)}
    answers = {prompt.id: prompt.answer for prompt in read_prompts(world, split)}
    checked = {identifier: answer for identifier, answer in expected.items() if answer is not None}
    assert len(checked) > 0.8 * len(answers)
    assert checked == {identifier: answers[identifier] for identifier in checked}


def test_every_teacher_of_the_cold_start_is_right_and_well_formed(world: Path) -> None:
    prompts = read_prompts(world, "sft")
    for prompt in prompts:
        assert prompt.response is not None
        assert is_well_formed(prompt.response)
        assert grade(prompt.response, prompt.answer, prompt.answer_kind).correct
    sums = [prompt for prompt in prompts if prompt.ability == "vision-to-reasoning"]
    glances = sum("it is" in (prompt.response or "") for prompt in sums)
    assert 0.4 < glances / len(sums) < 0.8


def test_worked_sums_are_right_at_every_step(world: Path) -> None:
    steps = [
        step
        for split in ("base", "sft")
        for prompt in read_prompts(world, split)
        for step in re.findall(r"([\d*+-]+)=(\d+)", prompt.response or "")
    ]
    assert len(steps) > 100
    assert all(eval(left) == int(right) for left, right in steps)


def test_the_base_model_never_meets_sums_over_pictures_as_they_are_asked_later(world: Path) -> None:
    base = read_prompts(world, "base")
    assert not [prompt for prompt in base if prompt.images and re.match(r"What is .* [+-] ", prompt.question)]
    assert {"tally", "vision", "reasoning"} <= {prompt.ability for prompt in base}


def test_the_first_lesson_stands_first(world: Path) -> None:
    abilities = [prompt.ability for prompt in read_prompts(world, "base")]
    assert set(abilities[:64]) == {"tally"}
    assert "vision" in abilities[64:72]


def test_held_out_splits_hold_equal_numbers_of_distinct_samples(world: Path) -> None:
    for split, num in (("validation", 20), ("test", 60)):
        prompts = read_prompts(world, split)
        assert Counter(prompt.ability for prompt in prompts) == dict.fromkeys(ABILITIES, num)
        shown = [
            (prompt.question, tuple(sorted(seen_colours(world / prompt.images[0]).items())) if prompt.images else ())
            for prompt in prompts
        ]
        text = [entry for entry in shown if not entry[1]]
        assert len(set(text)) == len(text)


def test_no_text_question_stands_in_two_splits(world: Path) -> None:
    questions = {
        split: {prompt.question for prompt in read_prompts(world, split) if not prompt.images} for split in SPLITS
    }
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not questions[split] & questions[other]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    manifests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build.main(["pocket", "--output_dir", str(tmp_path / name), "--seed", str(seed), *flags(SIZES)])
        manifests.append(json.loads((tmp_path / name / "data" / "manifest.json").read_text())["files"])
    assert manifests[0] == manifests[1]
    assert not set(manifests[0].values()) & set(manifests[2].values())


def test_a_sample_does_not_depend_on_how_many_follow(tmp_path: Path, world: Path) -> None:
    fewer = PocketSizes(num_base=160, num_sft=40, num_rl=10, num_validation_per_ability=5, num_test_per_ability=9)
    build_pocket_world(tmp_path, sizes=fewer, seed=0)
    for split in ("sft", "rl", "validation", "test"):
        prompts = read_prompts(tmp_path, split)
        assert prompts == read_prompts(world, split)[: len(prompts)]


def test_every_word_of_the_world_is_a_token_of_its_own(world: Path) -> None:
    tokenizer = build_tokenizer()
    texts = [text for split in SPLITS for p in read_prompts(world, split) for text in (p.question, p.response or "")]
    pieces = {piece for text in texts for piece in tokenizer.tokenize(text)}
    broken = [piece for piece in pieces if re.fullmatch(r"Ġ?[a-z]", piece)]
    assert not broken


@pytest.mark.slow
def test_more_distinct_samples_than_there_are_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_builders.pocket.world.MAX_REDRAWS", 30)  # by which the last few samples are not found
    many = PocketSizes(num_base=1, num_sft=1, num_rl=1, num_validation_per_ability=800, num_test_per_ability=1)
    with pytest.raises(ValueError, match="no further distinct reasoning sample"):
        build_pocket_world(tmp_path, sizes=many, seed=0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name what to build first"),
        (["poket", "--output_dir", "x"], "did you mean 'pocket'"),
        (["pocket", "--output_dir", "x", "--num_rl", "0"], "num_rl is 0"),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build.main(argv)


def flags(sizes: PocketSizes) -> list[str]:
    return [word for name, value in vars(sizes).items() for word in (f"--{name}", str(value))]
