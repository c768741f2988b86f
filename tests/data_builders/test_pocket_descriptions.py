"""Descriptions of pocket pictures: right by the pictures themselves, and refused for any other set."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_builders.build import main as build
from data_builders.pocket.draw import RGB
from data_builders.pocket_descriptions import DESCRIPTIONS_FILE, main
from data_builders.prompt_sets.prompts import read_prompts

SIZES = ("--num_base", "1", "--num_sft", "1", "--num_rl", "1", "--num_validation_per_ability", "1")


@pytest.fixture(scope="module")
def pocket_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pocket_set")
    build(["pocket", *SIZES, "--num_test_per_ability", "12", "--seed", "7", "--output-dir", str(directory)])
    return directory / "data"


def coloured_cells(path: Path) -> dict[str, int]:
    """How many of the nine cells hold each colour, by the pixel in the middle of each."""
    with Image.open(path) as image:
        pixels = np.asarray(image).astype(int)
    middles = [pixels[14 + 28 * row, 14 + 28 * column] for row in range(3) for column in range(3)]
    found = {name: sum(int(np.abs(pixel - rgb).max() < 20) for pixel in middles) for name, rgb in RGB.items()}
    return {name: count for name, count in found.items() if count}


def test_every_picture_is_described_by_the_colours_that_it_shows(pocket_set: Path, tmp_path: Path) -> None:
    main(["--data", str(pocket_set), "--output-dir", str(tmp_path / "out")])
    lines = (tmp_path / "out" / DESCRIPTIONS_FILE).read_text().splitlines()
    found = {row["id"]: row["description"] for row in map(json.loads, lines)}
    seen = [prompt for prompt in read_prompts(pocket_set, "test") if prompt.images]
    assert list(found) == [prompt.id for prompt in seen] and len(seen) == 24
    for prompt in seen:
        counted = coloured_cells(pocket_set / prompt.images[0])
        listed = " and ".join(f"{count} {colour}" for colour, count in counted.items())
        assert found[prompt.id] == f"There are {listed} objects ."


def test_a_set_that_the_seed_does_not_give_is_refused(pocket_set: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "images").mkdir(parents=True)
    for path in pocket_set.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(pocket_set)).write_bytes(path.read_bytes())
    first, second = [prompt for prompt in read_prompts(copy, "test") if prompt.images][:2]
    (copy / second.images[0]).write_bytes((copy / first.images[0]).read_bytes())
    with pytest.raises(ValueError, match=f"prompt '{second.id}' is not the one that its seed gives"):
        main(["--data", str(copy), "--output-dir", str(tmp_path / "out")])
    (copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has no manifest\.json of the pocket world"):
        main(["--data", str(copy), "--output-dir", str(tmp_path / "other")])
