"""Computes the tables of `analyze.attention`: means with intervals, and paired differences between models.

A mean is over prompts, each prompt's value being the mean over the tokens of its reply (and over heads, unless a row
names one), with a t interval. Differences are paired by prompt, which removes the variation between prompts. With one
seed they are tested by the paired t test, and the row is about these checkpoints. Rows of several seeds (`pooled`)
cover new training seeds and new prompts (`eval/statistics/pooled.py`). P-values are Holm-corrected over the layers (or
the blocks) of one comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from analyze.attention.records import ALL, DERIVED, HEAD_MEASURES, MEASURES, PARTS, Group, Groups, Label
from eval.statistics.intervals import holm, mean_interval, paired_t
from eval.statistics.pairing import common_seeds, rows_of_seeds
from eval.statistics.pooled import Term, contrast
from models.blocks import BLOCKS, Partition
from tracking.progress import progress
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

PLACE_COLUMNS = ("model", "against", "mode", "task", "ability", "part")
DIFFERENCE_COLUMNS = ("seed", "num_seeds", "n", "difference", "low", "high", "p", "p_holm")
POOLED = "pooled"
"""Value of `seed` in rows over several seeds."""


def attention_table(groups: Groups, partition: Partition) -> "pd.DataFrame":
    """Returns one row per model, group, part, layer, measure, and head or mean over heads: n, mean and t interval."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for (mode, task, ability), by_label in groups.items():
        for label, group in by_label.items():
            model = {"model": label.name, "seed": label.seed, "mode": mode, "task": task, "ability": ability}
            for part in PARTS:
                columns = mean_interval(group.layers[part])
                for (layer, number), n in np.ndenumerate(columns["n"]):
                    if n:
                        where = _where(partition, layer)
                        head = {"part": part, **where, "head": "mean", "measure": (*MEASURES, *DERIVED)[number]}
                        rows.append(model | head | {key: values[layer, number] for key, values in columns.items()})
            columns = mean_interval(group.heads)
            for (layer, head_number, number), n in np.ndenumerate(columns["n"]):
                if n:
                    place = (layer, head_number, number)
                    where = {"part": PARTS[0], **_where(partition, layer), "head": str(head_number)}
                    values = {key: column[place] for key, column in columns.items()}
                    rows.append(model | where | {"measure": HEAD_MEASURES[number]} | values)
    return pd.DataFrame(rows)


def shift_tables(
    groups: Groups, partition: Partition, *, baselines: Sequence[str]
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Returns the paired differences of every model to each baseline, one row per layer and one per block."""
    import pandas as pd

    layers: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    for (mode, task, ability), by_label in progress(list(groups.items()), label="shifts", unit="ability"):
        for name, against in pairs_of([label.name for label in by_label], baselines):
            found = _paired_values(by_label, name, against)
            if found is None:
                continue
            first_seeds, second_seeds, by_part = found
            measured = _measured_layers(*by_part[PARTS[0]])
            ranges = _columns_of_blocks(measured, partition)
            for part, (first, second) in by_part.items():
                head = dict(zip(PLACE_COLUMNS, (name, against, mode, task, ability, part), strict=True))
                for number, measure in enumerate((*MEASURES, *DERIVED)):
                    own, other = first[..., measured, number], second[..., measured, number]
                    known = np.isfinite(own).all((0, 2)) & np.isfinite(other).all((0, 2))  # prompts with the measure
                    if not known.any():
                        continue
                    sides = Side(first_seeds, own[:, known]), Side(second_seeds, other[:, known])
                    for row in compare(*sides):
                        where = _where(partition, measured[row.pop("column")])
                        layers.append(head | where | {"measure": measure} | row)
                    for row in compare(*(side.means_over(list(ranges.values())) for side in sides)):
                        block = list(ranges)[row.pop("column")]
                        blocks.append(head | {"block": block, "measure": measure} | row)
    return (
        pd.DataFrame(layers, columns=[*PLACE_COLUMNS, "block", "layer", "measure", *DIFFERENCE_COLUMNS]),
        pd.DataFrame(blocks, columns=[*PLACE_COLUMNS, "block", "measure", *DIFFERENCE_COLUMNS]),
    )


@dataclass(frozen=True)
class Side:
    """The values of one model of a comparison."""

    seeds: tuple[str, ...]
    """An empty name if the model exists once."""
    values: Float[np.ndarray, "seeds n columns"]

    def means_over(self, chosen: Sequence[Sequence[int]]) -> "Side":
        """Returns the means over groups of columns."""
        return Side(self.seeds, np.stack([self.values[..., list(own)].mean(-1) for own in chosen], -1))


def compare(first: Side, second: Side) -> list[dict[str, Any]]:
    """Returns one row per common seed and column, plus a pooled one for several seeds: difference, interval, p.

    P-values are corrected over the columns.
    """
    found = []
    names: list[list[str | None]] = [[seed or None for seed in side.seeds] for side in (first, second)]
    shared = common_seeds(*names)
    rows_of = [rows_of_seeds(own, shared) for own in names]
    for seed, own, other in zip(shared, *rows_of, strict=True):
        differences = first.values[own] - second.values[other]
        columns = mean_interval(differences)
        found.append((seed or "", 1, columns["mean"], columns["low"], columns["high"], paired_t(differences)))
    if max(len(first.seeds), len(second.seeds)) > 1:
        terms = [
            Term(coefficient=sign, values=side.values, trained=side.seeds != ("",))
            for sign, side in ((1.0, first), (-1.0, second))
        ]
        pooled = contrast(terms)
        half = pooled.half_width()
        ends = pooled.estimate - half, pooled.estimate + half
        found.append((POOLED, len(first.seeds), pooled.estimate, *ends, pooled.p()))
    rows = []
    for seed, num_seeds, estimate, low, high, p in found:
        corrected = holm(p)
        for column, values in enumerate(zip(estimate, low, high, p, corrected, strict=True)):
            head = {"column": column, "seed": seed, "num_seeds": num_seeds, "n": first.values.shape[1]}
            rows.append(head | dict(zip(DIFFERENCE_COLUMNS[3:], values, strict=True)))
    return rows


def reply_table(records: Sequence[Record]) -> "pd.DataFrame":
    """Returns one row per model, mode, task and ability: number of measured and skipped replies, and lengths."""
    import pandas as pd

    columns = ["model", "seed", "mode", "task", "ability"]
    table = pd.DataFrame(
        [
            {name: record[name] for name in columns}
            | {name: record.get(name) for name in ("num_tokens", "num_prompt_tokens", "num_vision_tokens")}
            | {
                "skipped": "skipped" in record,
                **{f"has_{part}": part in record.get("parts", ()) for part in PARTS[1:]},
            }
            for record in records
        ]
    )
    grouped = table.groupby(columns, sort=False)
    return grouped.agg(
        n=("skipped", lambda skipped: int((~skipped).sum())),
        num_skipped=("skipped", "sum"),
        mean_tokens=("num_tokens", "mean"),
        mean_prompt_tokens=("num_prompt_tokens", "mean"),
        mean_vision_tokens=("num_vision_tokens", "mean"),
        think_frac=("has_think", "mean"),
        answer_frac=("has_answer", "mean"),
    ).reset_index()


def _paired_values(
    by_label: dict[Label, Group], name: str, against: str
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, tuple[np.ndarray, np.ndarray]]] | None:
    """Returns the seeds of two models, and per part their values [seeds, n, layers, measures] on common prompts.

    None if no prompt was answered by both.
    """
    sides = [[(label.seed, group) for label, group in by_label.items() if label.name == n] for n in (name, against)]
    if not all(sides):
        return None
    ids = sorted(set.intersection(*(set(group.ids) for side in sides for _, group in side)))
    if not ids:
        return None
    own, other = ([group.layers_of(ids) for _, group in side] for side in sides)
    seeds = [tuple(seed for seed, _ in side) for side in sides]
    by_part = {part: (np.stack([one[part] for one in own]), np.stack([one[part] for one in other])) for part in PARTS}
    return seeds[0], seeds[1], by_part


def _columns_of_blocks(layers: Sequence[int], partition: Partition) -> dict[str, list[int]]:
    """Returns which of the layers are in each block, and all of them; a block without any is left out."""
    found = {block: [c for c, layer in enumerate(layers) if partition.block_of(layer) == block] for block in BLOCKS}
    return {block: columns for block, columns in found.items() if columns} | {ALL: list(range(len(layers)))}


def _measured_layers(
    first: Float[np.ndarray, "seeds n layers measures"], second: Float[np.ndarray, "seeds n layers measures"]
) -> list[int]:
    """Returns the layers that have attention weights in both models; one with a recurrent state has none."""
    known = np.isfinite(first).any((0, 1, 3)) & np.isfinite(second).any((0, 1, 3))
    return [int(layer) for layer in np.flatnonzero(known)]


def pairs_of(names: Sequence[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (model, baseline) for all comparisons; two baselines are compared with each other once."""
    return [
        (name, against)
        for number, against in enumerate(baselines)
        for name in dict.fromkeys(names)
        if name != against and name not in baselines[:number]
    ]


def _where(partition: Partition, layer: int) -> dict[str, Any]:
    return {"block": partition.block_of(layer), "layer": layer}
