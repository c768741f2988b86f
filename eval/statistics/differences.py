"""How much do two models differ on one ability, and is it significant? The rows of `comparison.csv`."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from eval.statistics.intervals import (
    CrossedDraws,
    PairedDifference,
    bootstrap_p,
    clustered_mean,
    crossed_difference,
    draw_crossed,
    gain_kept,
    mcnemar,
)
from eval.statistics.pairing import ABILITY, KINDS, Group, Pair, went
from eval.statistics.power import detectable, mcnemar_detectable

RESAMPLING_SEED = 20_260_212
POOLED = "pooled"
COUNTS = dict(zip(KINDS, ("num_lost", "num_gained", "num_both_right", "num_both_wrong"), strict=True))
"""Kind of transition -> column."""

Row = dict[str, object]


def compare_group(group: Group, metrics: Sequence[str], *, baseline: str, reference: str | None) -> list[Row]:
    """Returns the rows of one ability of one task: every model against the baseline and the reference."""
    rows: list[Row] = []
    for metric in metrics:
        if metric == ABILITY and not any(np.isfinite(own.ability).any() for own in group.answers.values()):
            continue  # no definition for this ability, or its conditions were not asked
        gains: dict[str, tuple[Row, PairedDifference]] = {}
        for pair in group.pairs(baseline, reference):
            for row, difference in _pair_rows(group, pair, metric):
                rows.append(row)
                if pair.against == baseline and row["seed"] == POOLED and difference is not None:
                    gains[pair.name] = row, difference
        if reference in gains:
            _add_gain_kept(gains, reference)
    return rows


def _pair_rows(group: Group, pair: Pair, metric: str) -> Iterator[tuple[Row, PairedDifference | None]]:
    """Yields the pooled row of a pair of models, then one row per seed."""
    first, second, compared = pair.values(metric)
    head: Row = {
        "task": group.task, "ability": group.ability, "metric": metric, "arm": pair.name, "against": pair.against,
    }  # fmt: skip
    if not compared.any():
        yield {**head, "seed": POOLED, "n": 0, "family": f"{metric}, pooled"}, None
        return
    pooled = crossed_difference(first, second, compared, _draws(group, len(pair.seeds)))
    row = {**head, "seed": POOLED, "num_seeds": len(pair.seeds), "family": f"{metric}, pooled"}
    row |= {"mean": first[compared].mean(), "mean_against": second[compared].mean()}
    yield row | _bootstrapped(group, pooled), pooled
    for index, seed in enumerate(pair.seeds):
        own = slice(index, index + 1)
        row = {**head, "seed": "" if seed is None else seed, "num_seeds": 1, "family": f"{metric}, per seed", "n": 0}
        if compared[index].any():
            difference = (
                pooled
                if len(pair.seeds) == 1
                else crossed_difference(first[own], second[own], compared[own], _draws(group, 1))
            )
            row |= _bootstrapped(group, difference)
            row |= {"mean": first[own][compared[own]].mean(), "mean_against": second[own][compared[own]].mean()}
            row |= _per_seed(group, first[index], second[index], compared[index])
        yield row, None


def _bootstrapped(group: Group, difference: PairedDifference) -> Row:
    interval = difference.interval
    return {
        "n": difference.n,
        "difference": difference.estimate,
        "standard_error": interval.standard_error,
        "low": interval.low,
        "high": interval.high,
        "p": bootstrap_p(difference.resampled),
        "test": "bootstrap" if group.clusters is None else "cluster bootstrap",
        "detectable": detectable(interval.standard_error),
        "num_clusters": None if group.clusters is None else int(group.clusters.max()) + 1,
    }


def _per_seed(
    group: Group, first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], compared: Bool[np.ndarray, " n"]
) -> Row:
    """Returns one seed's values: counts of transitions, the closed-form error, and McNemar's test if it applies."""
    own, other = first[compared], second[compared]
    clusters = np.arange(len(own)) if group.clusters is None else group.clusters[compared]
    error = clustered_mean(own - other, clusters).standard_error
    row: Row = {column: int(went(other, own, kind).sum()) for kind, column in COUNTS.items()}
    row |= {"standard_error": error, "detectable": detectable(error)}
    if group.num_samples == 1 and group.clusters is None:
        test = mcnemar(own > 0, other > 0)
        row |= {"p": test.p, "test": "exact McNemar"}
        row["detectable"] = mcnemar_detectable(test.n, test.num_gained + test.num_lost)
    return row


def _draws(group: Group, num_seeds: int) -> CrossedDraws:
    clusters = None if group.clusters is None else group.clusters.tobytes()
    return _cached_draws(len(group.ids), num_seeds, clusters)


@functools.lru_cache(maxsize=2)
def _cached_draws(num_prompts: int, num_seeds: int, clusters: bytes | None) -> CrossedDraws:
    numbers = None if clusters is None else np.frombuffer(clusters, dtype=int)
    return draw_crossed(num_prompts, num_seeds, seed=RESAMPLING_SEED, clusters=numbers)


def _add_gain_kept(gains: dict[str, tuple[Row, PairedDifference]], reference: str | None) -> None:
    assert reference is not None
    _, full = gains[reference]
    for row, difference in gains.values():
        if difference.resampled.shape != full.resampled.shape:
            continue
        kept = gain_kept(difference, full)
        if kept is not None:
            row |= {"gain_kept": kept.estimate, "gain_kept_low": kept.low, "gain_kept_high": kept.high}
