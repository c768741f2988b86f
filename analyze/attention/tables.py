"""Computes the tables of `analyze.attention`: means with intervals, and paired differences between models.

A mean is over prompts, each prompt's value being the mean over the tokens of its reply (and over heads, unless a row
names one), with a t interval. Differences are paired by prompt, which removes the variation between prompts. With one
seed they are tested by the paired t test; over several seeds
(`pooled`) by the bootstrap crossed over seeds and prompts of `eval/statistics/intervals.py`. P-values are
Holm-corrected over the layers (or the blocks) of one comparison.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from analyze.attention.records import ALL, DERIVED, HEAD_MEASURES, MEASURES, PARTS, Group, Groups, Label
from eval.statistics.intervals import CONFIDENCE, ROUNDING, CrossedDraws, draw_crossed, holm, mean_interval, paired_t
from models.blocks import BLOCKS, Partition
from tracking.progress import progress
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

PLACE_COLUMNS = ("model", "against", "mode", "task", "ability", "part")
DIFFERENCE_COLUMNS = ("seed", "num_seeds", "n", "difference", "low", "high", "p", "p_holm")
POOLED = "pooled"
"""Value of `seed` in rows over several seeds."""
NUM_RESAMPLES = 10_000
RESAMPLING_SEED = 20_260_212


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
    ranges = {block: list(partition.layers(block)) for block in BLOCKS} | {ALL: list(range(partition.num_layers))}
    for (mode, task, ability), by_label in progress(list(groups.items()), label="shifts", unit="ability"):
        for name, against in pairs_of([label.name for label in by_label], baselines):
            found = _paired_differences(by_label, name, against)
            if found is None:
                continue
            seeds, by_part = found
            for part, differences in by_part.items():
                head = dict(zip(PLACE_COLUMNS, (name, against, mode, task, ability, part), strict=True))
                for number, measure in enumerate((*MEASURES, *DERIVED)):
                    own = differences[..., number]
                    own = own[:, np.isfinite(own).all((0, 2))]  # prompts that have the measure
                    if not own.shape[1]:
                        continue
                    for row in compare(own, seeds):
                        layers.append(head | _where(partition, row.pop("column")) | {"measure": measure} | row)
                    means = np.stack([own[..., chosen].mean(-1) for chosen in ranges.values()], -1)
                    for row in compare(means, seeds):
                        block = list(ranges)[row.pop("column")]
                        blocks.append(head | {"block": block, "measure": measure} | row)
    return (
        pd.DataFrame(layers, columns=[*PLACE_COLUMNS, "block", "layer", "measure", *DIFFERENCE_COLUMNS]),
        pd.DataFrame(blocks, columns=[*PLACE_COLUMNS, "block", "measure", *DIFFERENCE_COLUMNS]),
    )


def compare(differences: Float[np.ndarray, "seeds n columns"], seeds: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row per seed and column, plus a pooled one for several seeds: difference, interval, corrected p."""
    found = []
    for seed, own in zip(seeds, differences, strict=True):
        columns = mean_interval(own)
        found.append((seed, 1, columns["mean"], columns["low"], columns["high"], paired_t(own)))
    if len(seeds) > 1:
        found.append((POOLED, len(seeds), differences.mean((0, 1)), *_bootstrap(differences)))
    rows = []
    for seed, num_seeds, estimate, low, high, p in found:
        corrected = holm(p)
        for column, values in enumerate(zip(estimate, low, high, p, corrected, strict=True)):
            head = {"column": column, "seed": seed, "num_seeds": num_seeds, "n": differences.shape[1]}
            rows.append(head | dict(zip(DIFFERENCE_COLUMNS[3:], values, strict=True)))
    return rows


def _bootstrap(differences: Float[np.ndarray, "seeds n columns"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns low, high and p of each column's mean, as in `eval.statistics`, vectorised."""
    draws = _draws(differences.shape[1], len(differences))
    resampled = np.zeros((len(draws.seeds), differences.shape[2]))
    for number, own in enumerate(differences):
        resampled += draws.seeds[:, [number]] * (draws.samples @ own)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    rarer = np.minimum((resampled <= ROUNDING).sum(0), (resampled >= -ROUNDING).sum(0))
    return low, high, np.minimum(1.0, 2 * (1 + rarer) / (len(resampled) + 1))


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


def _paired_differences(
    by_label: dict[Label, Group], name: str, against: str
) -> tuple[list[str], dict[str, Float[np.ndarray, "seeds n layers measures"]]] | None:
    """Returns the seeds that two models share and their differences per part, on the prompts that both answered.

    A model without seeds is paired with every seed of the other. None if they have nothing in common.
    """
    own, other = ({label.seed: group for label, group in by_label.items() if label.name == n} for n in (name, against))
    seeds = shared_seeds(list(own), list(other))
    pairs = [(own.get(seed) or own[""], other.get(seed) or other[""]) for seed in seeds]
    ids = sorted(set.intersection(*(set(group.ids) for pair in pairs for group in pair))) if pairs else []
    if not ids:
        return None
    chosen = [(first.layers_of(ids), second.layers_of(ids)) for first, second in pairs]
    return seeds, {part: np.stack([first[part] - second[part] for first, second in chosen]) for part in PARTS}


def shared_seeds(own: Sequence[str], other: Sequence[str]) -> list[str]:
    """Returns the seeds in which two models are compared; an empty seed matches all."""
    if not own or not other:
        return []
    if "" in own or "" in other:
        return list(own if "" in other else other)
    return [seed for seed in own if seed in other]


def pairs_of(names: Sequence[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (model, baseline) for all comparisons; two baselines are compared with each other once."""
    return [
        (name, against)
        for number, against in enumerate(baselines)
        for name in dict.fromkeys(names)
        if name != against and name not in baselines[:number]
    ]


@functools.lru_cache(maxsize=4)
def _draws(num_prompts: int, num_seeds: int) -> CrossedDraws:
    return draw_crossed(num_prompts, num_seeds, seed=RESAMPLING_SEED, num_resamples=NUM_RESAMPLES)


def _where(partition: Partition, layer: int) -> dict[str, Any]:
    return {"block": partition.block_of(layer), "layer": layer}
