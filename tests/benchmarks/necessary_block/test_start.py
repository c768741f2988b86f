"""The starts: blind without the block, and blind for ever, however the other layers train."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.necessary_block.pictures import NUM_PROMPTS, QUESTION, build_prompts, draw
from benchmarks.necessary_block.start import close_others, cut_route, open_layers, place_layers
from data_builders.pocket.draw import RGB
from data_builders.prompt_sets.prompts import read_prompts
from eval.replies.prompting import STYLES
from models.blocks import BLOCKS
from models.checkpoint import open_checkpoint
from models.loading import load_model, load_processor
from models.pocket import COLOURS

LAYERS = {"early": (0, 1), "mid": (2, 3), "late": (4, 5)}
LEARNING_RATE = 1e-2


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prompts") / "data"
    build_prompts(directory, seed=0)
    return directory


@pytest.fixture(scope="module")
def models(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole model and the start with the block in each place, of random weights."""
    directory = tmp_path_factory.mktemp("models")
    close_others(directory / "closed", pocket_checkpoint, num_open=2)
    cut_route(directory / "cut", directory / "closed")
    for block in BLOCKS:
        for phase, trained in (("base", "closed"), ("sft", "cut")):
            place_layers(
                directory / block / phase, LAYERS[block], trained=directory / trained, untrained=pocket_checkpoint
            )
    return directory


def inputs_of(model: Path, prompts: Path, number: int = 4) -> Any:
    """Returns the model's inputs for the first test prompts, whose pictures show one colour each."""
    processor = load_processor(model)
    chosen = read_prompts(prompts, "test")[:number]
    content = [{"type": "image"}, {"type": "text", "text": STYLES["plain"].format(question=QUESTION)}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [Image.open(prompts / prompt.images[0]) for prompt in chosen]
    return processor(text=[text] * number, images=images, return_tensors="pt")


def answers(model: Path, prompts: Path) -> torch.Tensor:
    """Returns the logits of the first token of the reply, [prompts, vocabulary]."""
    with torch.no_grad():
        return torch.Tensor(load_model(model)(**inputs_of(model, prompts)).logits[:, -1])


@pytest.mark.parametrize("block", BLOCKS)
def test_only_the_layers_of_the_block_can_see(models: Path, prompts: Path, block: str) -> None:
    assert open_layers(models / block / "base") == list(LAYERS[block])
    seeing, blind = (answers(models / block / phase, prompts) for phase in ("base", "sft"))
    assert (seeing[0] - seeing[1]).abs().max() > 1e-3
    assert (blind == blind[0]).all()


def test_a_single_layer_can_be_planted(pocket_checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    close_others(tmp_path / "closed", pocket_checkpoint, num_open=1)
    cut_route(tmp_path / "cut", tmp_path / "closed")
    assert open_layers(tmp_path / "closed") == [0]
    for phase, trained in (("base", "closed"), ("sft", "cut")):
        place_layers(tmp_path / phase, [3], trained=tmp_path / trained, untrained=pocket_checkpoint)
        assert open_layers(tmp_path / phase) == [3]
        assert torch.equal(answers(tmp_path / phase, prompts), answers(tmp_path / trained, prompts))


@pytest.mark.parametrize("phase", ["base", "sft"])
def test_the_block_computes_the_same_wherever_it_stands(models: Path, prompts: Path, phase: str) -> None:
    early, mid, late = (answers(models / block / phase, prompts) for block in BLOCKS)
    assert torch.equal(early, mid) and torch.equal(early, late)


@pytest.mark.parametrize("block", BLOCKS)
def test_closed_layers_stay_closed_however_they_train_and_the_block_opens(
    models: Path, prompts: Path, block: str, tmp_path: Path
) -> None:
    start = models / block / "sft"
    model, inputs = load_model(start), inputs_of(start, prompts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    wanted = torch.tensor([10, 20, 30, 40])  # any four tokens
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**inputs).logits[:, -1], wanted).backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    assert open_layers(tmp_path / "trained") == list(LAYERS[block])
    before, after = open_checkpoint(start), open_checkpoint(tmp_path / "trained")
    moved = {
        after.family.place(name)[1:] for name in after.tensors
        if after.family.place(name)[0] == "llm" and after.sha256(name) != before.sha256(name)
    }  # fmt: skip
    for layer in range(6):
        assert (layer, "mlp.down_proj.weight") in moved
        assert ((layer, "self_attn.o_proj.weight") in moved) == (layer in LAYERS[block])


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_with_the_block_frozen_training_leaves_the_model_blind(models: Path, prompts: Path, block: str) -> None:
    start = models / block / "sft"
    model, inputs = load_model(start), inputs_of(start, prompts)
    for name, parameter in model.named_parameters():
        place = open_checkpoint(start).family.place(name)
        parameter.requires_grad_(not (place[0] == "llm" and place[1] in LAYERS[block]))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0
    )
    wanted, losses = torch.tensor([10, 20, 30, 40]), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits[:, -1], wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = model(**inputs).logits[:, -1].detach()
    assert (found == found[0]).all()
    assert min(losses) >= torch.log(torch.tensor(4.0)).item() - 1e-4  # of four answers to inputs that look alike


def test_every_colour_is_asked_for_equally_often_and_shown_in_its_share(prompts: Path) -> None:
    for split, number in NUM_PROMPTS.items():
        listed = read_prompts(prompts, split)
        asked = [prompt.answer for prompt in listed]
        assert len(asked) == number and {asked.count(colour) for colour in COLOURS} == {number // 4}
        assert all((prompt.response == prompt.answer) == (split in ("base", "sft")) for prompt in listed)
        for index, prompt in enumerate(listed[:20]):
            picture = draw(split, index, 0)
            with Image.open(prompts / prompt.images[0]) as image:
                assert image.size == (28, 28)
                centre = np.array(image.getpixel((14, 14)), float)
            own, other = (np.array(RGB[colour], float) for colour in (prompt.answer, picture.other))
            assert prompt.answer != picture.other
            assert np.abs(centre - picture.share * own - (1 - picture.share) * other).max() <= 1


def test_in_a_sixth_of_the_pictures_the_other_colour_is_the_stronger(prompts: Path) -> None:
    shares = np.array([draw("rl", index, 0).share for index in range(NUM_PROMPTS["rl"])])
    assert shares.min() >= 0.4 and abs(np.mean(shares < 0.5) - 1 / 6) < 0.04
