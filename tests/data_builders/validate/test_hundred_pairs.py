"""A hundred pairs of each task that needs no download have no defect; one worker writes the first of them alike."""

import json
from pathlib import Path

import pytest

from data_builders import build
from data_builders.pairs.files import read_pairs
from data_builders.validate import command as validate

NUM_PAIRS, NUM_REPEATED = 100, 30
SMALL = {
    "ocr": ["--image-size", "224", "--min-font-pixels", "20", "--max-letters", "10"],
    "counting": ["--image-size", "120x80", "--num-samples", "4"],
    "grounding": ["--image-size", "224", "--num-distractors", "2", "--max-object-pixels", "60"],
    "recognition": ["--source-kind", "inpainted"],
}
"""Task -> its options at reduced resolution; mini-COCO is small already."""


@pytest.mark.slow
@pytest.mark.parametrize("task", SMALL)
def test_a_hundred_pairs_of_two_workers_have_no_defect_and_the_first_are_those_of_one(
    task: str, tmp_path: Path
) -> None:
    files = []
    for num_workers, num_pairs in ((1, NUM_REPEATED), (2, NUM_PAIRS)):
        output_dir = tmp_path / str(num_workers)
        flags = [*SMALL[task], "--num-pairs", str(num_pairs), "--num-workers", str(num_workers)]
        build.main([task, *flags, "--output-dir", str(output_dir)])
        files.append(json.loads((output_dir / "data" / "manifest.json").read_text())["files"])
    repeated, pairs = (read_pairs(tmp_path / number / "data") for number in ("1", "2"))
    assert repeated == pairs[:NUM_REPEATED]
    pictures = {name: digest for name, digest in files[0].items() if not name.endswith(".jsonl")}
    assert len(pictures) >= 2 * NUM_REPEATED and pictures.items() <= files[1].items()
    assert len({pair.id for pair in pairs}) == NUM_PAIRS and len(files[1]) >= 2 * NUM_PAIRS
    assert all(pair.target_answer != pair.source_answer for pair in pairs)
    validate.main([str(tmp_path / "2")])  # ends with an error where there is a defect
