"""How much of the attention is on the picture's border, or on cells that every token attends to? Controls of the maps.

    pictures.csv    a row per reply, model and group of layers: mass on the picture, and where on it
    tokens.csv      a row per token of a reply: its log-probability under every model

*Border*: the outermost ring of cells. Its share of the attention on the picture is given next to its share of the area.
*Sinks*: cells that get more than `SINK_TIMES` times the mean of a picture's cells from at least `SINK_TOKENS` of the
tokens whose maps are kept, whatever the token. Much attention there says little about what a token looks for.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from analyze.attention.records import PARTS
from analyze.look.plan import Look
from analyze.look.records import GROUPS, Reading
from eval.display.formatting import MINUS
from models.blocks import Partition

if TYPE_CHECKING:
    import pandas as pd

SINK_TIMES = 5.0
SINK_TOKENS = 0.9
FEWEST_TOKENS = 3
"""With fewer tokens a cell that all of them attend to is no sink."""


def picture_table(looks: Sequence[Look], readings: Mapping[str, Reading], partition: Partition) -> "pd.DataFrame":
    """Returns `pictures.csv`.

    Args:
        looks: the replies.
        readings: `Reading.key/model` -> reading.
    """
    import pandas as pd

    rows = []
    for look in looks:
        for model in look.statuses:
            reading = readings.get(f"{look.key}/{model}")
            if reading is None:
                continue
            head = {
                "task": look.problem.task, "id": look.problem.prompt.id, "ability": look.problem.prompt.ability,
                "author": look.author, "model": model, "status": look.statuses[model], "flipped": look.flipped,
            }  # fmt: skip
            sinks, border = sink_cells(reading), border_cells(reading)
            for group, answer in zip(GROUPS, part_maps(reading, "answer", partition), strict=True):
                mass = float(answer.sum())
                shares = answer / mass if mass > 0 else np.full_like(answer, np.nan)
                rows.append(
                    {
                        **head, "layers": group, "mass": mass, "border_share": float(shares[border].sum()),
                        "border_area": float(border.mean()), "sink_share": float(shares[sinks].sum()),
                        "num_sinks": int(sinks.sum()), "num_cells": len(answer),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def part_maps(reading: Reading, part: str, partition: Partition) -> Float[np.ndarray, "groups cells"]:
    """Returns a part's map, mean over all layers and over each block; the whole reply's if this part is missing."""
    maps = layer_maps(reading, part)
    layers = np.array(reading.layers)
    members = [np.ones(len(layers), bool)] + [np.isin(layers, partition.layers(block)) for block in GROUPS[1:]]
    return np.stack([maps[own].mean(0) if own.any() else np.zeros(maps.shape[1]) for own in members])


def layer_maps(reading: Reading, part: str) -> Float[np.ndarray, "layers cells"]:
    """Returns a part's map in each layer that has attention; the whole reply's if this part is missing."""
    maps = reading.parts[:, PARTS.index(part)]
    return np.asarray(maps if maps.any() else reading.parts[:, PARTS.index("reply")])


def border_cells(reading: Reading) -> Bool[np.ndarray, " cells"]:
    """Returns which cells are in the outermost ring of their picture."""
    rings = []
    for rows, columns in reading.grids:
        ring = np.ones((rows, columns), bool)
        ring[1:-1, 1:-1] = False
        rings.append(ring.ravel())
    return np.concatenate(rings)


def sink_cells(reading: Reading) -> Bool[np.ndarray, " cells"]:
    """Returns which cells nearly every token attends to much more than to a picture's mean cell."""
    maps = reading.tokens[0]
    if len(maps) < FEWEST_TOKENS:
        return np.zeros(maps.shape[1], bool)
    found, first = np.zeros(maps.shape[1], bool), 0
    for rows, columns in reading.grids:
        own = maps[:, first : first + rows * columns]
        found[first : first + rows * columns] = (own > SINK_TIMES * own.mean(1, keepdims=True)).mean(0) >= SINK_TOKENS
        first += rows * columns
    return found


def token_table(looks: Sequence[Look], readings: Mapping[str, Reading]) -> "pd.DataFrame":
    """Returns `tokens.csv`: log-probabilities in nats, a column per model."""
    import pandas as pd

    rows = []
    for look in looks:
        own = {model: readings[f"{look.key}/{model}"] for model in look.statuses if f"{look.key}/{model}" in readings}
        if not own:
            continue
        for position, text in enumerate(next(iter(own.values())).texts):
            rows.append(
                {"task": look.problem.task, "id": look.problem.prompt.id, "author": look.author, "position": position,
                 "token": text, **{model: float(reading.logprobs[position]) for model, reading in own.items()}}
            )  # fmt: skip
    return pd.DataFrame(rows)


def summary(pictures: "pd.DataFrame", tokens: "pd.DataFrame", models: Sequence[str]) -> list[str]:
    """Returns a line per model, over all replies that every model read: masses and controls, and log-probabilities."""
    if pictures.empty:
        return ["no reply was read"]
    whole = pictures[pictures["layers"] == GROUPS[0]]
    area = 100 * whole["border_area"].mean()
    lines = [
        f"attention of the answer's tokens, mean over {whole['id'].nunique()} prompts and the same replies for every "
        f"model; the border has {area:.0f} % of the area"
    ]
    for model in models:
        own = whole[whole["model"] == model]
        mass, border, sinks = (100 * own[name].mean() for name in ("mass", "border_share", "sink_share"))
        text = f"  {model}: {mass:.1f} % on the picture; of that {border:.0f} % on the border, {sinks:.0f} % on sinks"
        if model != models[0] and model in tokens:
            shift = (tokens[model] - tokens[models[0]]).mean()
            said = f"{shift:+.3f}".replace("-", MINUS)
            text += f"; log-probability of a token, mean {said} nats against {models[0]}"
        lines.append(text)
    return lines


def most_shifted(tokens: "pd.DataFrame", first: str, second: str, number: int = 10) -> list[dict[str, Any]]:
    """Returns the tokens of which two models give the most different log-probabilities, in the mean over replies."""
    if tokens.empty or first == second or first not in tokens or second not in tokens:
        return []
    table = tokens.assign(shift=tokens[second] - tokens[first])
    means = table.groupby("token", sort=False).agg(
        n=("shift", "size"), first=(first, "mean"), second=(second, "mean"), shift=("shift", "mean")
    )
    repeated = means[means["n"] > 1]
    chosen = repeated if len(repeated) else means
    order = chosen["shift"].abs().sort_values(ascending=False).index[:number]
    return [
        {"token": str(token), "n": int(row["n"]), **{name: _nats(row[name]) for name in ("first", "second")},
         "shift": _nats(row["shift"], sign="+")}
        for token, row in chosen.loc[order].iterrows()
    ]  # fmt: skip


def _nats(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}".replace("-", MINUS)
