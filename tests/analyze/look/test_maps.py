"""Maps over a picture equal those of eager attention's matrices; the rollout equals the product of whole matrices."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from analyze.attention.records import PARTS
from analyze.attention.replies import REPLY, VISION, PromptedReply, make_inputs, read_reply_of
from analyze.look.branches import can_branch
from analyze.look.grids import picture_cells
from analyze.look.records import Reading, read_reading
from analyze.look.run import Prepared, batches, read_batch, remembering_pictures
from analyze.look.tables import border_cells, part_maps, sink_cells
from data_builders.prompt_sets.prompts import Prompt
from eval.replies.generation import render_prompt
from models.blocks import make_partition
from models.loading import load_model, load_processor

FAMILIES = ("pocket_checkpoint", "qwen3_vl_checkpoint", "internvl_checkpoint", "qwen3_5_checkpoint")
SIZES = [(96, 160), (64, 96)]
"""Width and height of the two pictures."""
MAX_TOKENS = 4
REPLY_TEXT = "<think>red red and 1 + 1 = 2</think><answer>it is 2</answer>"

Made = tuple[Any, Any, PromptedReply]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Made]:
    """Returns a model, its processor, and a reply to a prompt with two pictures of different sizes."""
    directory = tmp_path_factory.mktemp("images")
    paths = [directory / "0.png", directory / "1.png"]
    for path, size in zip(paths, SIZES, strict=True):
        image = Image.new("RGB", size, (236, 236, 236))
        image.paste((214, 40, 40), (10, 10, 40, 40))
        image.save(path)

    def make(checkpoint: Path, reply: str = REPLY_TEXT) -> Made:
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


def read_one(model: Any, processor: Any, row: PromptedReply, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return read_several(model, processor, [row], *args, **kwargs)[0]


def read_several(model: Any, processor: Any, rows: list[PromptedReply], *args: Any, **kwargs: Any) -> Any:
    batch = [Prepared(look=a_look(), row=row, cells=picture_cells(model, processor, row, SIZES)) for row in rows]
    return read_batch(model, processor, batch, *args, **kwargs)


def a_look() -> Any:
    """Stands where only a row is read."""
    return None


def eager_matrices(model: Any, row: PromptedReply) -> np.ndarray:
    """[layers with attention, heads, T, T]"""
    model.set_attn_implementation("eager")
    inputs, _, _ = make_inputs([row], model, pad_id=0)
    with torch.inference_mode():
        found = model(**inputs, use_cache=False, output_attentions=True).attentions
    return torch.stack([one for one in found if one is not None])[:, 0].numpy()


@pytest.mark.cases_slow
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_and_rollout_are_those_of_whole_matrices(
    family: str, prepare: Callable[..., Made], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyze.look.maps.CHUNK_ELEMENTS", 200)  # several chunks
    monkeypatch.setattr("analyze.attention.mass.CHUNK_ELEMENTS", 200)
    model, processor, row = prepare(request.getfixturevalue(family))
    num_layers = model.config.get_text_config().num_hidden_layers
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"] * num_layers
    attending = [layer for layer, kind in enumerate(kinds) if kind != "linear_attention"]
    has_all = len(attending) == num_layers
    partition = make_partition(num_layers)
    found = read_one(model, processor, row, partition, max_tokens=MAX_TOKENS, rollout=has_all, heads=True)
    matrices = eager_matrices(model, row)
    assert list(found["layers"]) == attending and len(matrices) == len(attending)
    cells, reply = (np.flatnonzero(row.segments.numpy() == segment) for segment in (VISION, REPLY))
    cells = cells[picture_cells(model, processor, row, SIZES).order]
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
    none = np.zeros((len(chosen), len(cells)))
    members = [[number for number, layer in enumerate(attending) if layer in layers] for layers in groups]
    expected = np.stack([rows.mean(1)[own][:, chosen].mean(0) if own else none for own in members])
    assert np.abs(found["tokens"] - expected).max() < 1e-5
    assert found["sum_error"] < 1e-5
    if not has_all:
        return
    state = np.eye(matrices.shape[-1])
    for matrix in matrices.mean(1):
        state = (matrix + np.eye(len(matrix))) / 2 @ state
    assert np.abs(found["rollout"] - state[reply][chosen][:, cells]).max() < 1e-5


def test_log_probabilities_are_those_of_the_whole_pass(prepare: Callable[..., Made], pocket_checkpoint: Path) -> None:
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


def test_cells_are_the_pictures_grids_in_order(prepare: Callable[..., Made], pocket_checkpoint: Path) -> None:
    model, processor, row = prepare(pocket_checkpoint)
    grids = picture_cells(model, processor, row, SIZES).grids
    assert len(grids) == 2 and grids[0] != grids[1]
    assert sum(rows * columns for rows, columns in grids) == row.num_vision_tokens
    assert grids[0][0] > grids[0][1], "the first picture is higher than wide"


def test_a_reply_without_an_answer_shows_its_last_tokens(prepare: Callable[..., Made], pocket_checkpoint: Path) -> None:
    model, processor, row = prepare(pocket_checkpoint, "it is 7 and red")
    found = read_one(model, processor, row, make_partition(6), max_tokens=2)
    count = len(found["texts"])
    assert found["positions"] == (count - 2, count - 1)
    reading = Reading(key="k", model="m", **found)
    assert np.allclose(part_maps(reading, "answer", make_partition(6)), part_maps(reading, "reply", make_partition(6)))


@pytest.mark.cases_slow
@pytest.mark.parametrize("family", FAMILIES)
def test_replies_to_one_prompt_are_read_as_they_are_alone_and_the_prompt_once(
    family: str, prepare: Callable[..., Made], request: pytest.FixtureRequest
) -> None:
    model, processor, long = prepare(request.getfixturevalue(family))
    short = prepare(request.getfixturevalue(family), "<answer>7</answer>")[2]
    partition = make_partition(model.config.get_text_config().num_hidden_layers)
    options = {"max_tokens": MAX_TOKENS, "heads": True}
    read: list[int] = []
    stack = model.model.language_model
    stack.norm.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[:2].numel()))
    together = read_several(model, processor, [long, short], partition, **options)
    lengths = [len(row.input_ids) for row in (long, short)]
    num_prompt = lengths[0] - long.num_reply_tokens
    assert can_branch(model) == (family != "qwen3_5_checkpoint")
    branches = 2 * (1 + long.num_reply_tokens)
    assert sum(read) == (num_prompt - 1 + branches if can_branch(model) else 2 * max(lengths))
    alone = [read_one(model, processor, row, partition, **options) for row in (long, short)]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["texts"] == theirs["texts"] and ours["positions"] == theirs["positions"]
        for name in ("parts", "tokens", "heads", "logprobs"):
            assert ours[name].shape == theirs[name].shape
            assert np.abs(ours[name] - theirs[name]).max() < 1e-5, name


def test_replies_of_a_batch_are_read_as_they_are_alone_and_their_pictures_once(
    prepare: Callable[..., Made], pocket_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor, long = prepare(pocket_checkpoint)
    short = prepare(pocket_checkpoint, "<answer>7</answer>")[2]
    options = {"max_tokens": MAX_TOKENS, "heads": True}
    monkeypatch.setattr("analyze.look.branches.can_branch", lambda _: False)
    together = read_several(model, processor, [long, short], make_partition(6), **options)
    passes: list[object] = []
    hook = model.model.visual.register_forward_hook(lambda *_: passes.append(None))
    with remembering_pictures(model):
        alone = [read_one(model, processor, row, make_partition(6), **options) for row in (long, short)]
    assert len(passes) == 1, "the same pictures follow themselves"
    hook.remove()
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["texts"] == theirs["texts"] and ours["positions"] == theirs["positions"]
        for name in ("parts", "tokens", "heads", "logprobs"):
            assert ours[name].shape == theirs[name].shape
            assert np.abs(ours[name] - theirs[name]).max() < 1e-5, name
    read_one(model, processor, long, make_partition(6), max_tokens=1)
    assert "get_image_features" not in vars(model.model)


def test_batches_hold_neighbours_within_their_tokens_and_a_longer_reply_alone() -> None:
    def sized(length: int) -> Any:
        return SimpleNamespace(row=SimpleNamespace(input_ids=range(length)))

    lengths = [3, 5, 4, 30, 2, 2]
    found = [[len(one.row.input_ids) for one in batch] for batch in batches(map(sized, lengths), max_tokens=10)]
    assert found == [[3, 5], [4], [30], [2, 2]]


def test_replies_to_one_long_prompt_are_one_batch_as_long_as_the_replies_fit(
    prepare: Callable[..., Made], pocket_checkpoint: Path
) -> None:
    def numbered(number: int, row: PromptedReply, colour: float = 0.0) -> Any:
        changed = replace(row, images={name: values + colour for name, values in row.images.items()})
        return SimpleNamespace(number=number, row=changed)

    row = prepare(pocket_checkpoint)[2]
    rows = [numbered(0, row), numbered(1, row), numbered(2, row), numbered(3, row, 1.0), numbered(4, row, 1.0)]
    most = 2 * row.num_reply_tokens
    found = {}
    for branching in (False, True):
        made = batches(iter(rows), max_tokens=most, branching=branching)
        found[branching] = [[one.number for one in batch] for batch in made]
    assert found[False] == [[0], [1], [2], [3], [4]]
    assert found[True] == [[0, 1], [2], [3, 4]], "two replies fit, and another picture is another prompt"


def test_the_tiles_of_a_picture_become_one_grid_and_its_thumbnail_another(
    prepare: Callable[..., Made], internvl_checkpoint: Path
) -> None:
    model, processor, row = prepare(internvl_checkpoint)
    cells = picture_cells(model, processor, row, SIZES)
    side = round(processor.image_seq_length**0.5)
    pixels = row.images["pixel_values"]
    assert len(pixels) * side**2 == cells.num_cells == row.num_vision_tokens
    assert sorted(cells.order) == list(range(cells.num_cells))
    assert cells.pictures == (0, 0, 1, 1)
    rows, columns = cells.grids[0]
    assert rows > columns and cells.grids[1] == (side, side) == cells.grids[3]
    # The red square of 30 pixels is in the upper left of the first picture: where the tokens' pixels are least blue.
    blue = pixels[:, 2].reshape(len(pixels), side, pixels.shape[2] // side, side, -1).mean((2, 4))
    grid = blue.reshape(-1)[cells.order][: rows * columns].reshape(rows, columns)
    assert grid.argmin() == 0 and grid[-1, -1] > grid[0, 0]
    with pytest.raises(ValueError, match="one token per cell, so nothing can be drawn"):
        picture_cells(model, processor, row, [SIZES[0]])


def a_reading(tokens: np.ndarray, grids: tuple[tuple[int, int], ...]) -> Reading:
    """A reading of two layers with these maps of all layers."""
    num_cells = tokens.shape[-1]
    return Reading(
        key="task/id/sft", model="full", grids=grids, pictures=tuple(range(len(grids))), layers=(0, 1),
        parts=np.ones((2, 3, num_cells), np.float32),
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
    model = load_model(gemma4_checkpoint)
    (wide_rows, wide_columns), (high_rows, high_columns) = picture_cells(model, processor, row, [(1, 1)] * 2).grids
    assert wide_columns > 5 * wide_rows and high_rows > high_columns
