"""Maps over a picture equal those of eager attention's matrices; the rollout equals the product of whole matrices."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from analyze.attention.records import PARTS
from analyze.attention.replies import REPLY, VISION, PromptedReply, make_inputs, read_reply_of
from analyze.look.records import Reading, read_reading
from analyze.look.run import cell_grids, read_one
from analyze.look.tables import border_cells, part_maps, sink_cells
from data_builders.prompt_sets.prompts import Prompt
from eval.replies.generation import render_prompt
from models.blocks import make_partition
from models.loading import load_model, load_processor

FAMILIES = ("pocket_checkpoint", "qwen3_vl_checkpoint")
MAX_TOKENS = 4
REPLY_TEXT = "<think>red red and 1 + 1 = 2</think><answer>it is 2</answer>"

Prepared = tuple[Any, Any, PromptedReply]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Prepared]:
    """Returns a model, its processor, and a reply to a prompt with two pictures of different sizes."""
    directory = tmp_path_factory.mktemp("images")
    paths = [directory / "0.png", directory / "1.png"]
    for path, size in zip(paths, [(96, 160), (64, 96)], strict=True):
        image = Image.new("RGB", size, (236, 236, 236))
        image.paste((214, 40, 40), (10, 10, 40, 40))
        image.save(path)

    def make(checkpoint: Path, reply: str = REPLY_TEXT) -> Prepared:
        model = load_model(checkpoint, dtype="float32", attn_implementation="sdpa").eval()
        processor = load_processor(checkpoint)
        question = "How many red objects are there ?"
        prompt = Prompt(id="p", ability="vision", question=question, answer="2", answer_kind="number",
                        images=tuple(map(str, paths)))  # fmt: skip
        text = render_prompt(processor, prompt, style="think", system_prompt=None)
        row = read_reply_of(model, processor, text=text, question=question, image_paths=paths, reply=reply)
        assert row is not None
        return model, processor, row

    return make


def eager_matrices(model: Any, row: PromptedReply) -> np.ndarray:
    """[layers, heads, T, T]"""
    model.set_attn_implementation("eager")
    inputs, _, _ = make_inputs([row], model, pad_id=0)
    with torch.inference_mode():
        found = model(**inputs, use_cache=False, output_attentions=True).attentions
    return torch.stack(found)[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_and_rollout_are_those_of_whole_matrices(
    family: str, prepare: Callable[..., Prepared], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyze.look.maps.CHUNK_ELEMENTS", 200)  # several chunks
    monkeypatch.setattr("analyze.attention.mass.CHUNK_ELEMENTS", 200)
    model, processor, row = prepare(request.getfixturevalue(family))
    num_layers = model.config.get_text_config().num_hidden_layers
    partition = make_partition(num_layers)
    found = read_one(model, processor, row, partition, max_tokens=MAX_TOKENS, rollout=True, heads=True)
    matrices = eager_matrices(model, row)
    cells, reply = (np.flatnonzero(row.segments.numpy() == segment) for segment in (VISION, REPLY))
    rows = matrices[:, :, reply][..., cells]  # [layers, heads, reply, cells]
    weights = row.weights.numpy()[:, reply]
    parts = np.einsum("pr,lrc->lpc", weights, rows.mean(1))
    assert np.abs(found["parts"] - parts).max() < 1e-5
    assert found["parts"][:, PARTS.index("think")].sum() > 0
    assert np.abs(found["heads"] - np.einsum("r,lhrc->lhc", weights[0], rows)).max() < 1e-5
    chosen = list(found["positions"])
    answer = np.flatnonzero(weights[PARTS.index("answer")])
    assert chosen == list(answer[-MAX_TOKENS:]) and len(chosen) > 1
    groups = [range(num_layers), *(partition.layers(block) for block in ("early", "mid", "late"))]
    expected = np.stack([rows.mean(1)[list(layers)][:, chosen].mean(0) for layers in groups])
    assert np.abs(found["tokens"] - expected).max() < 1e-5
    state = np.eye(matrices.shape[-1])
    for matrix in matrices.mean(1):
        state = (matrix + np.eye(len(matrix))) / 2 @ state
    assert np.abs(found["rollout"] - state[reply][chosen][:, cells]).max() < 1e-5
    assert found["sum_error"] < 1e-5


def test_log_probabilities_are_those_of_the_whole_pass(
    prepare: Callable[..., Prepared], pocket_checkpoint: Path
) -> None:
    model, processor, row = prepare(pocket_checkpoint)
    found = read_one(model, processor, row, make_partition(6), max_tokens=MAX_TOKENS)
    inputs, _, _ = make_inputs([row], model, pad_id=0)
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits[0].log_softmax(-1)
    reply = torch.nonzero(row.segments == REPLY)[:, 0]
    expected = [float(logits[place - 1, row.input_ids[place]]) for place in reply.tolist()]
    assert np.allclose(found["logprobs"], expected, atol=1e-5)
    assert "".join(found["texts"]).replace(" ", "") == REPLY_TEXT.replace(" ", "")
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_cells_are_the_pictures_grids_in_order(prepare: Callable[..., Prepared], pocket_checkpoint: Path) -> None:
    model, _, row = prepare(pocket_checkpoint)
    grids = cell_grids(model, row)
    assert len(grids) == 2 and grids[0] != grids[1]
    assert sum(rows * columns for rows, columns in grids) == row.num_vision_tokens
    assert grids[0][0] > grids[0][1], "the first picture is higher than wide"


def test_a_reply_without_an_answer_shows_its_last_tokens(
    prepare: Callable[..., Prepared], pocket_checkpoint: Path
) -> None:
    model, processor, row = prepare(pocket_checkpoint, "it is 7 and red")
    found = read_one(model, processor, row, make_partition(6), max_tokens=2)
    count = len(found["texts"])
    assert found["positions"] == (count - 2, count - 1)
    reading = Reading(key="k", model="m", **found)
    assert np.allclose(part_maps(reading, "answer", make_partition(6)), part_maps(reading, "reply", make_partition(6)))


def a_reading(tokens: np.ndarray, grids: tuple[tuple[int, int], ...]) -> Reading:
    """A reading of two layers with these maps of all layers."""
    num_cells = tokens.shape[-1]
    return Reading(
        key="task/id/sft", model="full", grids=grids, layers=(0, 1), parts=np.ones((2, 3, num_cells), np.float32),
        tokens=np.broadcast_to(tokens, (4, *tokens.shape)).astype(np.float32), positions=tuple(range(len(tokens))),
        texts=("a",) * len(tokens), logprobs=np.zeros(len(tokens)),
    )  # fmt: skip


def test_sinks_are_cells_that_every_token_attends_to_and_no_others() -> None:
    maps = np.full((5, 16 + 4), 0.01)
    maps[:, 5] = 0.3  # every token, in the first picture
    maps[2, 9] = 0.2  # one token alone
    assert list(np.flatnonzero(sink_cells(a_reading(maps, ((4, 4), (2, 2)))))) == [5]
    assert not sink_cells(a_reading(maps[:2], ((4, 4), (2, 2)))).any(), "two tokens say nothing"
    assert not sink_cells(a_reading(np.full((5, 20), 0.05), ((4, 4), (2, 2)))).any()


def test_the_border_is_the_outermost_ring_of_each_picture() -> None:
    ring = border_cells(a_reading(np.zeros((1, 12 + 2)), ((3, 4), (1, 2))))
    assert ring.sum() == 10 + 2 and not ring[[5, 6]].any()


def test_a_reading_comes_back_from_its_record_as_it_was() -> None:
    reading = a_reading(np.random.default_rng(0).random((3, 6)), ((2, 3),))
    again = read_reading(reading.record())
    assert again.grids == reading.grids and again.positions == reading.positions and again.texts == reading.texts
    assert np.array_equal(again.tokens, reading.tokens) and np.array_equal(again.parts, reading.parts)
    assert again.rollout is None and again.heads is None


def test_the_cells_of_gemma4s_pictures_are_known_from_their_patches(gemma4_checkpoint: Path) -> None:
    processor: Any = load_processor(gemma4_checkpoint)
    pictures = [Image.new("RGB", size) for size in ((300, 40), (64, 96))]
    inputs = processor(text=["<|image|><|image|>"], images=[pictures], return_tensors="pt")
    num_tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
    row: Any = SimpleNamespace(
        images={"image_position_ids": inputs["image_position_ids"]}, num_vision_tokens=num_tokens
    )
    (wide_rows, wide_columns), (high_rows, high_columns) = cell_grids(load_model(gemma4_checkpoint), row)
    assert wide_columns > 5 * wide_rows and high_rows > high_columns
