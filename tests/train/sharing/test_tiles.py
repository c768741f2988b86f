"""InternVL's pictures are tiles: gradients as plain TRL's for every mix of sizes, each distinct tile read once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models.loading import load_processor
from tests.train.sharing.test_equivalence import (
    PLAIN,
    SEEN,
    TOLERANCE,
    make_trainer,
    picture,
    replies,
    rows,
    run,
)
from train.sharing.processor import TileCounter, count_tiles

SINGLE = picture(7, 28, 28)
"""One tile, so without a thumbnail."""
MIXES: dict[str, list[dict[str, Any]]] = {
    "one tile each": [
        {"text": "How many objects are there ?", "images": [SINGLE]},
        {"text": "What is it", "images": []},
        {"text": "Describe .", "images": [SINGLE, picture(8, 20, 24)]},
    ],
    "one and several tiles": [
        {"text": "How many objects are there ?", "images": [SEEN[1]]},
        {"text": "What is it", "images": [SINGLE]},
        {"text": "Describe .", "images": [SINGLE, SEEN[0], picture(9, 28, 90)]},
    ],
}
NUM_TILES = {"one tile each": 2, "one and several tiles": 5 + 1 + 5 + 4}


@pytest.mark.cases_slow
@pytest.mark.parametrize("mix", list(MIXES))
def test_loss_and_gradients_are_plain_trls(mix: str, internvl_checkpoint: Path, tmp_path: Path) -> None:
    trainer = make_trainer(internvl_checkpoint, tmp_path)
    batch = replies(trainer, MIXES[mix])
    plain, shared = run(trainer, batch, shared=False), run(trainer, batch, shared=True)
    assert (plain.num_pictures > shared.num_pictures) and shared.num_pictures == NUM_TILES[mix]
    assert shared.loss == pytest.approx(plain.loss, rel=TOLERANCE, abs=1e-8)
    scale = max(gradient.norm() for gradient in plain.gradients.values())
    assert shared.gradients.keys() == plain.gradients.keys()
    for name, expected in plain.gradients.items():
        assert (shared.gradients[name] - expected).norm() <= TOLERANCE * max(expected.norm(), 1e-2 * scale), name
    for name, values in shared.metrics.items():
        assert values == pytest.approx(plain.metrics[name], rel=TOLERANCE, abs=1e-7, nan_ok=True), name


@pytest.mark.slow
def test_passes_of_a_step_have_their_own_tiles(internvl_checkpoint: Path, tmp_path: Path) -> None:
    """A generation batch is shuffled and cut into passes; each pass takes the tiles of its own rows."""
    found = []
    for shared in (False, True):
        trainer = make_trainer(
            internvl_checkpoint, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3,
            steps_per_generation=3,
        )  # fmt: skip
        trainer.not_shared = None if shared else PLAIN
        trainer.current_gradient_accumulation_steps = 3
        torch.manual_seed(6)
        for trainer._step in range(3):
            inputs = trainer._prepare_inputs(rows(MIXES["one and several tiles"], seeing=True))
            assert len(inputs["pixel_values"]) == sum(inputs["num_tiles"])
            trainer.compute_loss(trainer.model, inputs).backward()
        found.append({name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()})
    plain, ours = found
    scale = max(gradient.norm() for gradient in plain.values())
    for name, gradient in plain.items():
        assert (ours[name] - gradient).norm() <= TOLERANCE * max(gradient.norm(), 1e-2 * scale), name


def test_tiles_are_counted_as_the_processor_cuts_them(internvl_checkpoint: Path) -> None:
    processor: Any = load_processor(internvl_checkpoint)
    images: list[list[Image.Image]] = [row["images"] for mix in MIXES.values() for row in mix]
    options: dict[str, Any] = {"images": images, "crop_to_patches": True, "return_tensors": "pt"}
    counted, cut = TileCounter(processor.image_processor)(**options), processor.image_processor(**options)
    assert counted["num_patches"].tolist() == cut["num_patches"].tolist()
    texts = ["<IMG_CONTEXT>\n" * len(row) + "?" for row in images]
    ids = processor(text=texts, images=images)["input_ids"]
    tiles = torch.split(cut["num_patches"], [len(row) for row in images])
    assert count_tiles(ids, processor.image_token_id, processor.image_seq_length) == [int(own.sum()) for own in tiles]
