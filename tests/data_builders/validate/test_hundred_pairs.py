"""A hundred pairs of each task that needs no download: the same files from any number of workers, and no defect."""

import json
from pathlib import Path

import pytest

from data_builders import build
from data_builders.pairs.files import read_pairs
from data_builders.validate import command as validate

NUM_PAIRS = 100
SMALL = {
    "ocr": ["--image-size", "224", "--min-font-pixels", "20", "--max-letters", "10"],
    "counting": ["--image-size", "120x80", "--num-samples", "4"],
    "grounding": ["--image-size", "224", "--num-distractors", "2", "--max-object-pixels", "60"],
    "recognition": ["--source-kind", "inpainted"],
}
"""Task -> its options at reduced resolution; mini-COCO is small already."""


@pytest.mark.slow
@pytest.mark.parametrize("task", SMALL)
def test_a_hundred_pairs_are_the_same_from_one_worker_and_from_two_and_have_no_defect(
    task: str, tmp_path: Path
) -> None:
    manifests = []
    for num_workers in ("1", "2"):
        output_dir = tmp_path / num_workers
        flags = [*SMALL[task], "--num-pairs", str(NUM_PAIRS), "--num-workers", num_workers]
        build.main([task, *flags, "--output-dir", str(output_dir)])
        manifests.append(json.loads((output_dir / "data" / "manifest.json").read_text()))
    assert manifests[0] == manifests[1]
    assert len(manifests[0]["files"]) >= 2 * NUM_PAIRS
    pairs = read_pairs(tmp_path / "1" / "data")
    assert len({pair.id for pair in pairs}) == NUM_PAIRS
    assert all(pair.target_answer != pair.source_answer for pair in pairs)
    validate.main([str(tmp_path / "1")])  # ends with an error where there is a defect
