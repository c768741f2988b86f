"""The page of a look: every prompt with its picture, the maps of all models over it, and where two models part.

The page is one file. Maps are stored as bytes per cell, each scaled by its own largest value. Pictures and maps of a
prompt are unpacked and drawn by a script when the prompt comes into view, so that a page of 100 prompts opens at once.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from analyze.look.plan import CORRECT, Look
from analyze.look.records import GROUPS, Reading
from analyze.look.swapped import SwappedPair, turning_points
from analyze.look.tables import layer_maps, most_shifted, part_maps, sink_cells
from data_builders.prompt_sets.depth import eight_bits
from eval.display.page import page_environment
from models.blocks import Partition

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_PIXELS = 240
"""Longest side of a picture on the page."""
MOST_CELLS = 28
"""Cells along a side; finer maps are averaged."""
SHIFT_NATS = 2.0
"""Difference of log-probabilities with the strongest colour."""
Head = tuple[int, int]
"""A layer, and the number of a head in it."""


def render(
    looks: Sequence[Look],
    readings: Mapping[str, Reading],
    tokens: "pd.DataFrame",
    *,
    models: Sequence[str],
    partition: Partition,
    lines: Sequence[str],
    drop_sinks: bool,
    heads: Sequence[Head] = (),
    swaps: Sequence[SwappedPair] = (),
) -> str:
    """Returns the page as HTML.

    Args:
        lines: the summary, a sentence each.
        drop_sinks: leave sink cells out of the drawn maps.
        heads: heads with a map of their own, as layer and number.
        swaps: the pairs of a swap, with every model's answers.
    """
    cards = []
    for number, look in enumerate(looks):
        own = {model: readings[f"{look.key}/{model}"] for model in models if f"{look.key}/{model}" in readings}
        if own:
            cards.append(_card(number, look, own, models, partition, heads, drop_sinks=drop_sinks))
    any_reading = next(iter(readings.values()), None)
    layers = any_reading.layers if any_reading else ()
    return (
        page_environment(TEMPLATES)
        .get_template("look.html.j2")
        .render(
            cards=cards,
            models=list(models),
            first=models[0],
            last=models[-1],
            choices={
                "means over layers": [f"{name} layers" for name in GROUPS],
                "single layers": [f"layer {layer}" for layer in layers],
                "heads, over the whole reply": [f"layer {layer}, head {head}" for layer, head in heads],
                "through all layers": ["rollout"] if any_reading and any_reading.rollout is not None else [],
            },
            has_layers=len(layers) < partition.num_layers and bool(layers),
            num_layers=partition.num_layers,
            swaps=[_swap(pair) for pair in swaps],
            turning=turning_points(swaps),
            lines=list(lines),
            num_flipped=len({look.problem.key for look in looks if look.flipped}),
            num_prompts=len({look.problem.key for look in looks}),
            shifted=most_shifted(tokens, models[0], models[-1]),
            drop_sinks=drop_sinks,
            shift_nats=SHIFT_NATS,
        )
    )


def _card(
    number: int,
    look: Look,
    own: Mapping[str, Reading],
    models: Sequence[str],
    partition: Partition,
    heads: Sequence[Head],
    *,
    drop_sinks: bool,
) -> dict[str, Any]:
    any_reading = next(iter(own.values()))
    pictures = [_picture(path) for path in look.problem.image_paths]
    return {
        "number": number,
        "id": look.problem.prompt.id,
        "task": look.problem.task,
        "ability": look.problem.prompt.ability,
        "question": look.problem.prompt.question,
        "gold": look.problem.prompt.answer,
        "author": look.author,
        "flipped": look.flipped,
        "statuses": [
            {"model": model, "status": look.statuses[model], "right": look.statuses[model] == CORRECT}
            for model in models
        ],
        "views": _views(any_reading, pictures),
        "maps": {
            "pictures": [picture["source"] for picture in pictures],
            "grids": [list(_coarse(rows, columns)) for rows, columns in any_reading.grids],
            "models": {
                model: _maps(reading, partition, heads, drop_sinks=drop_sinks) for model, reading in own.items()
            },
            "positions": list(any_reading.positions),
        },
        "tokens": _tokens(own, models),
        "shown": list(own),
    }


def _views(reading: Reading, pictures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the size of each grid on the page, and the picture under it; a thumbnail is named."""
    return [
        {
            "picture": picture, "width": pictures[picture]["width"], "height": pictures[picture]["height"],
            "thumbnail": picture in reading.pictures[:number],
        }
        for number, picture in enumerate(reading.pictures)
    ]  # fmt: skip


def _swap(swapped: SwappedPair) -> dict[str, Any]:
    pair = swapped.pair
    target, source = map(_picture, swapped.image_paths)
    return {
        "id": pair.id, "task": pair.task, "question": pair.prompt, "target": target, "source": source,
        "target_answer": pair.target_answer, "source_answer": pair.source_answer,
        "models": [
            {
                "model": own.model, "said": own.said, "plain_target": own.plain_target,
                "plain_source": own.plain_source,
                "steps": list(zip(own.answers, own.replies, strict=True)),
            }
            for own in swapped.answers
        ],
    }  # fmt: skip


def _tokens(own: Mapping[str, Reading], models: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the reply's tokens, coloured by how far the last model's log-probability is from the first's."""
    reading = next(iter(own.values()))
    both = models[0] in own and models[-1] in own and models[0] != models[-1]
    found = []
    for position, text in enumerate(reading.texts):
        shift = float(own[models[-1]].logprobs[position] - own[models[0]].logprobs[position]) if both else 0.0
        said = ", ".join(f"{model} {own[model].logprobs[position]:.2f}" for model in own)
        found.append(
            {
                "text": text, "position": position, "strength": f"{min(1.0, abs(shift) / SHIFT_NATS):.2f}",
                "more": shift > 0, "title": f"{said} nats", "mapped": position in reading.positions,
            }
        )  # fmt: skip
    return found


def _maps(reading: Reading, partition: Partition, heads: Sequence[Head], *, drop_sinks: bool) -> dict[str, Any]:
    """Returns the maps in the order of the page's choices, then that of each kept token over all layers."""
    answer = part_maps(reading, "answer", partition)
    sinks = sink_cells(reading) if drop_sinks else np.zeros(answer.shape[1], bool)
    shown = [*answer, *layer_maps(reading, "answer")]
    if heads:
        assert reading.heads is not None
        shown += [reading.heads[reading.layers.index(layer), head] for layer, head in heads]
    if reading.rollout is not None:
        shown.append(reading.rollout.mean(0))
    shown += list(reading.tokens[0])
    packed = [_pack(one, reading.grids, sinks) for one in shown]
    return {
        "bytes": base64.b64encode(b"".join(data for data, _ in packed)).decode(),
        "scales": [float(f"{scale:.4g}") for _, scale in packed],
        "masses": [float(f"{100 * one.sum():.3g}") for one in shown],
        "sinks": int(sink_cells(reading).sum()),
    }


def _pack(
    values: Float[np.ndarray, " cells"], grids: Sequence[tuple[int, int]], sinks: Bool[np.ndarray, " cells"]
) -> tuple[bytes, float]:
    """Returns a map as bytes, coarsened, and the value of 255."""
    values = np.where(sinks, 0.0, values)
    coarse, first = [], 0
    for rows, columns in grids:
        own = values[first : first + rows * columns].reshape(rows, columns)
        coarse.append(_average(own).ravel())
        first += rows * columns
    joined = np.concatenate(coarse)
    scale = float(joined.max()) or 1.0
    return np.round(255 * joined / scale).astype(np.uint8).tobytes(), scale


def _coarse(rows: int, columns: int) -> tuple[int, int]:
    factor = -(-max(rows, columns) // MOST_CELLS)
    return -(-rows // factor), -(-columns // factor)


def _average(values: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "coarse_rows coarse_columns"]:
    rows, columns = _coarse(*values.shape)
    factor = -(-max(values.shape) // MOST_CELLS)
    padded = np.full((rows * factor, columns * factor), np.nan)
    padded[: values.shape[0], : values.shape[1]] = values
    return np.asarray(np.nanmean(padded.reshape(rows, factor, columns, factor), axis=(1, 3)))


def _picture(path: Path) -> dict[str, Any]:
    from PIL import Image

    with Image.open(path) as opened:
        image = eight_bits(opened).convert("RGB")
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    scale = PICTURE_PIXELS / max(image.size)
    return {
        "source": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "width": round(image.width * scale),
        "height": round(image.height * scale),
    }
