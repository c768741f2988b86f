"""Do the models built by hand do what their construction says? Cells, norms and answers, layer by layer."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.known_answers.reader import CELL, EMPTY, SHAPE, Wiring, write_reader
from benchmarks.known_answers.swap import wiring
from benchmarks.known_answers.workplace import QUESTION
from data_builders.pocket.draw import Scene, count_colours, draw_scene, render
from models.loading import load_model, load_processor
from models.pocket import COLOURS

NUM_SCENES = 60


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(3)
    return [draw_scene(rng) for _ in range(NUM_SCENES)]


def built(directory: Path, wired: Wiring) -> tuple[Any, Any]:
    write_reader(directory, wired)
    return load_model(directory), load_processor(directory)


def asked(processor: Any, scenes: list[Scene], colours: list[str]) -> Any:
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": QUESTION.format(colour=colour)}],
                }
            ],
            add_generation_prompt=True,
            tokenize=False,
        )
        for colour in colours
    ]
    return processor(text=texts, images=[render(scene) for scene in scenes], return_tensors="pt", padding=True)


def replies(model: Any, processor: Any, scenes: list[Scene], colours: list[str]) -> list[str]:
    inputs = asked(processor, scenes, colours)
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    decoded: list[str] = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
    return [reply.partition("<|im_end|>")[0] for reply in decoded]


def test_the_tower_gives_each_cell_its_colour_exactly_and_every_token_the_same_norm(
    tmp_path: Path, scenes: list[Scene]
) -> None:
    model, processor = built(tmp_path / "blind", Wiring())
    inputs = asked(processor, scenes, ["red"] * len(scenes))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[0]
    cells = states[inputs["input_ids"] == model.config.image_token_id].reshape(len(scenes), -1, SHAPE.hidden_size)
    expected = torch.zeros(len(scenes), 9, EMPTY + 1)
    for number, scene in enumerate(scenes):
        for place, thing in enumerate(scene):
            expected[number, place, EMPTY if thing is None else CELL[thing.colour]] = 1
    torch.testing.assert_close(cells[..., : EMPTY + 1], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        states.square().mean(-1), torch.ones(states.shape[:2]), rtol=0, atol=1e-5, msg="a token's norm"
    )


@pytest.mark.parametrize("reading", [0, 2, SHAPE.num_layers - 1])
@pytest.mark.cases_slow
def test_a_model_that_reads_in_one_layer_is_always_right(tmp_path: Path, scenes: list[Scene], reading: int) -> None:
    model, processor = built(tmp_path / "reader", wiring(reading))
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(scenes))]
    counts = [str(count_colours(scene)[colour]) for scene, colour in zip(scenes, colours, strict=True)]
    assert len(set(counts)) > 3
    assert replies(model, processor, scenes, colours) == counts
    # Without the maps through which the picture enters that layer's attention, nothing is left of it.
    model.base_model.language_model.layers[reading].self_attn.o_proj.weight.data.zero_()
    assert set(replies(model, processor, scenes, colours)) == {"0"}


def test_colours_without_a_layer_that_answers_them_are_answered_with_zero(tmp_path: Path, scenes: list[Scene]) -> None:
    model, processor = built(tmp_path / "half", Wiring(reading=1, answering={"red": 1, "blue": 3}))
    for colour in COLOURS:
        counts = [str(count_colours(scene)[colour]) for scene in scenes]
        expected = counts if colour in ("red", "blue") else ["0"] * len(scenes)
        assert replies(model, processor, scenes, [colour] * len(scenes)) == expected, colour
