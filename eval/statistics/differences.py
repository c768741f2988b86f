"""How much do two models differ on one ability, and is it significant? The rows of `comparison.csv`.

A pooled row has all seeds of both models. If one of them has two seeds or more, its interval covers new training seeds
as well as new prompts, and its `scope` is `training`. Otherwise, and in every row of a single seed, the interval covers
new prompts only, and the row is about these checkpoints (`scope` is `checkpoints`). `eval/statistics/pooled.py` has the
method.

The rows that answer one question are corrected together (a family in the sense of Y. Hochberg and A. Tamhane, Multiple
Comparison Procedures, 1987, section 1.2): those of one metric against one model, over all arms and abilities. "What did
training change?" (against the start) and "does freezing a block matter?" (against the reference) are two questions,
each with its own chance of 5 % of any false claim.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from eval.statistics.critical import critical_value
from eval.statistics.intervals import holm, holm_levels
from eval.statistics.pairing import ABILITY, KINDS, Group, Pair, went
from eval.statistics.pooled import Contrast, Term, contrast, ratio_of_gains

if TYPE_CHECKING:
    import pandas as pd

POOLED = "pooled"
BOTH, ARM, AGAINST, NEITHER = "both", "arm", "against", "neither"
"""Which of a row's two models were trained with seeds, so that their runs differ; the others exist once."""
COUNTS = dict(zip(KINDS, ("num_lost", "num_gained", "num_both_right", "num_both_wrong"), strict=True))
"""Kind of transition -> column."""

Row = dict[str, object]


def compare_group(group: Group, metrics: Sequence[str], *, baseline: str, reference: str | None) -> list[Row]:
    """Returns the rows of one ability of one task: every model against the baseline and the reference."""
    rows: list[Row] = []
    for metric in metrics:
        if metric == ABILITY and not any(np.isfinite(own.ability).any() for own in group.answers.values()):
            continue  # no definition for this ability, or its conditions were not asked
        for pair in group.pairs(baseline, reference):
            pooled, *per_seed = _pair_rows(group, pair, metric)
            if reference is not None and pair.against == baseline and pooled["n"]:
                pooled |= _gain_kept(group, metric, pair.name, reference, baseline)
            rows += [pooled, *per_seed]
    return rows


def _pair_rows(group: Group, pair: Pair, metric: str) -> Iterator[Row]:
    """Yields the pooled row of a pair of models, then one row per seed that both have."""
    head: Row = {
        "task": group.task, "ability": group.ability, "metric": metric, "arm": pair.name, "against": pair.against,
    }  # fmt: skip
    first, second = pair.first.values(metric), pair.second.values(metric)
    sizes = {"num_seeds": len(first), "num_seeds_against": len(second)}
    row = {**head, "seed": POOLED, **sizes, "family": f"{metric}, pooled, against {pair.against}"}
    row |= _tested(group, [_term(pair.first.seeds, first, 1.0), _term(pair.second.seeds, second, -1.0)])
    yield row
    if not row["n"]:
        return
    for seed, own, other in pair.seeds():
        values = first[own], second[other]
        terms = [Term(coefficient=sign, values=one[None, :, None], trained=False)
                 for sign, one in zip((1.0, -1.0), values, strict=True)]  # fmt: skip
        row = {**head, "seed": "" if seed is None else seed, "num_seeds": 1, "num_seeds_against": 1}
        yield row | {"family": f"{metric}, per seed, against {pair.against}"} | _tested(group, terms) | _counts(*values)


def _term(seeds: Sequence[int | None], values: Float[np.ndarray, "seeds n"], coefficient: float) -> Term:
    return Term(coefficient=coefficient, values=values[..., None], trained=tuple(seeds) != (None,))


def _tested(group: Group, terms: Sequence[Term]) -> Row:
    """Returns the numbers of a difference; only n = 0 if there is nothing to compare."""
    found = contrast(terms, clusters=group.clusters, shares=True)
    if not found.n[0]:
        return {"n": 0}
    interval = found.one()
    means = [_mean(term, terms) for term in terms]
    return {
        "n": int(found.n[0]),
        "difference": interval.estimate,
        "low": max(interval.low, -1.0),
        "high": min(interval.high, 1.0),
        "p": float(found.p()[0]),
        **_variance(found, terms),
        "scope": found.scope,
        "test": _test(found, clustered=group.clusters is not None),
        "detectable": float(found.detectable()[0]),
        "equivalent_within": found.equivalent_within(),
        "mean": means[0],
        "mean_against": means[1],
    }


def _variance(found: Contrast, terms: Sequence[Term]) -> Row:
    """Returns the parts of the variance; `eval/statistics/components.py` reads them for the plan of a larger study."""
    return {
        "standard_error": float(found.standard_error[0]),
        "prompt_error": float(np.sqrt(found.prompts[0])),
        "seed_error": float(np.sqrt(found.seeds[0])),
        "residual_error": float(np.sqrt(found.residual[0])),
        "num_clusters": int(found.num_clusters[0]),
        "seed_degrees": found.num_degrees,
        "trained": _trained(*terms),
        "seed_weight": float(sum(term.coefficient**2 / len(term.values) for term in terms if term.trained)),
    }


def _trained(first: Term, second: Term) -> str:
    if first.trained and second.trained:
        return BOTH
    return ARM if first.trained else AGAINST if second.trained else NEITHER


def _test(found: Contrast, *, clustered: bool) -> str:
    prompts = "clusters of prompts" if clustered else "prompts"
    return f"t, seeds and {prompts}" if found.num_degrees else f"paired t, {prompts}"


def _mean(term: Term, terms: Sequence[Term]) -> float:
    """Returns a model's mean over the prompts on which all models are compared."""
    used = np.all([np.isfinite(other.values[..., 0]).any(0) for other in terms], axis=0)
    return float(np.nanmean(np.nanmean(term.values[:, used, 0], axis=0)))


def _counts(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> Row:
    compared = np.isfinite(first) & np.isfinite(second)
    own, other = first[compared], second[compared]
    return {column: int(went(other, own, kind).sum()) for kind, column in COUNTS.items()}


def _gain_kept(group: Group, metric: str, name: str, reference: str, baseline: str) -> Row:
    arm, full, start = (
        _term(group.answers[model].seeds, group.answers[model].values(metric), 1.0)
        for model in (name, reference, baseline)
    )
    kept = ratio_of_gains(arm, full, start, clusters=group.clusters, shares=True)
    if kept is None:
        return {}
    low, high = (1.0, 1.0) if name == reference else (kept.low, kept.high)
    return {"gain_kept": kept.estimate, "gain_kept_low": low, "gain_kept_high": high}


def add_corrected(table: "pd.DataFrame", *, largest: float = 1.0) -> "pd.DataFrame":
    """Adds Holm's corrected p-values and intervals within each family.

    A corrected interval has the level at which Holm's method tests its row, so it excludes zero exactly if `p_holm` is
    below 0.05.

    Args:
        largest: difference that there can be, at which intervals end.
    """
    for family in table["family"].unique():
        tested = (table["family"] == family) & table["p"].notna()
        own = table.loc[tested]
        p = own["p"].to_numpy(float)
        table.loc[tested, "p_holm"] = holm(p)
        half = own["standard_error"].to_numpy(float) * [
            float(critical_value(level, np.array(w**2), np.array(s**2), np.array(clusters), int(degrees)))
            for level, w, s, clusters, degrees in zip(
                holm_levels(p), own["prompt_error"], own["seed_error"], own["num_clusters"], own["seed_degrees"],
                strict=True,
            )
        ]  # fmt: skip
        table.loc[tested, "low_holm"] = np.maximum(own["difference"].to_numpy(float) - half, -largest)
        table.loc[tested, "high_holm"] = np.minimum(own["difference"].to_numpy(float) + half, largest)
    return table
