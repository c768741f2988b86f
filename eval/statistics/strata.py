"""How certain is a contrast whose parts are asked of different prompts, such as own modality less the others?

A *stratum* is a set of prompts, such as those of one modality. A contrast over strata is a sum of contrasts within
them, such as the gain on modality a less the mean gain on modalities b and c:

    prompts   the strata have different prompts, so the parts W of their variances add up. If prompts of several strata
              belong to one cluster, such as questions of two kinds about one picture, its covariance between the strata
              is added where it is positive; a negative one is left out, which keeps the interval on the safe side
    seeds     the strata are answered by the same training runs. So S comes from each run's own sum over the strata. It
              counts what a run gains on one stratum and loses on another, and leaves out what it gains on all alike

With two or three runs of a model, S is known badly, and only huge differences are significant. So runs of *companions*,
models that were trained alike, such as with the same method on other data, may help to estimate it: their sums have the
coefficients of the model that they stand in for. Their variance between seeds is taken as equal to its.

`pooled.py` has the method within a stratum, and the critical value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from eval.statistics.pooled import Contrast, Term, contrast, mean_of_seeds

Place = TypeVar("Place")


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """One set of prompts, and what each model counts for in it."""

    terms: Mapping[str, Term]
    """Model -> its values and coefficient on these prompts. Models without a coefficient are left out."""
    clusters: Int[np.ndarray, " n"] | None = None
    """Number of each prompt's cluster, the same in all strata; None if its prompts are independent of all others."""
    companions: Mapping[str, Term] = field(default_factory=dict)
    """Models that only help to estimate the variance between seeds, each with the coefficient of a model like it."""


def number_clusters(
    names: Mapping[Place, Sequence[str | None]],
) -> dict[Place, Int[np.ndarray, " n"] | None]:
    """Numbers the clusters of all strata; equal names are one cluster, and a prompt without one is its own.

    Args:
        names: stratum -> the name of each prompt's cluster.

    Returns:
        Stratum -> the numbers; None in all of them if no two prompts share a cluster.
    """
    numbers: dict[object, int] = {}
    found = {
        place: np.array(
            [numbers.setdefault((place, row) if name is None else name, len(numbers)) for row, name in enumerate(own)]
        )
        for place, own in names.items()
    }
    shared = len(numbers) < sum(map(len, names.values()))
    return {place: own if shared else None for place, own in found.items()}


def stratified(strata: Sequence[Stratum], *, shares: bool = False) -> Contrast:
    """Returns the sum of the strata's contrasts.

    Args:
        strata: a model has its runs in the same order in all of them.
        shares: the values are between 0 and 1, as accuracies are.

    Returns:
        A contrast whose numbers are NaN in columns for which a stratum has no prompt with a value from every model.
    """
    parts = [contrast(list(own.terms.values()), clusters=own.clusters, shares=shares, bounded=False) for own in strata]
    runs = _runs([own.terms for own in strata])
    seen = [*runs.values(), *_runs([own.companions for own in strata]).values()]
    num_degrees = sum(len(means) - 1 for means in seen) if runs else 0
    seeds = np.zeros(len(parts[0].n))
    if num_degrees:
        squares = sum(((means - means.mean(0)) ** 2).sum(0) for means in seen)
        seeds = seeds + squares / num_degrees * sum(1 / len(means) for means in runs.values())
    covariance, num_repeated = _shared_clusters(strata, parts)
    num_clusters = np.sum([part.num_clusters for part in parts], axis=0) - num_repeated
    return Contrast(
        estimate=np.sum([part.estimate for part in parts], axis=0),
        n=np.sum([part.n for part in parts], axis=0),
        prompts=np.maximum(np.sum([part.prompts for part in parts], axis=0), 0.0) + covariance,
        seeds=seeds,
        # Each stratum has a mean of its own, so the prompts have one degree of freedom less for every further stratum.
        num_clusters=np.maximum(num_clusters - len(parts) + 1, np.minimum(num_clusters, 1)),
        num_degrees=num_degrees,
        residual=np.sum([part.residual for part in parts], axis=0),
    )


def _shared_clusters(
    strata: Sequence[Stratum], parts: Sequence[Contrast]
) -> tuple[Float[np.ndarray, " columns"], Int[np.ndarray, " columns"]]:
    """Returns the positive part of the covariance between strata, and how often a cluster is in a further stratum."""
    known = [(own, part, own.clusters) for own, part in zip(strata, parts, strict=True) if own.clusters is not None]
    nothing = np.zeros(len(parts[0].n))
    if len(known) < 2:
        return nothing, nothing.astype(int)
    labels = np.unique(np.concatenate([clusters for _, _, clusters in known]))
    total, squares, times = (np.zeros((len(labels), len(nothing))) for _ in range(3))
    for own, part, clusters in known:
        means = [(term.coefficient, mean_of_seeds(term.values)) for term in own.terms.values()]
        used = np.all([np.isfinite(mean) for _, mean in means], axis=0)
        value = np.where(used, sum(weight * mean for weight, mean in means) - part.estimate, 0.0)
        sums, present = np.zeros_like(total), np.zeros(total.shape, bool)
        places = np.searchsorted(labels, clusters)
        with np.errstate(divide="ignore", invalid="ignore"):
            np.add.at(sums, places, value / used.sum(0))
        np.logical_or.at(present, places, used)
        total, squares, times = total + sums, squares + sums**2, times + present
    covariance = (total**2 - squares).sum(0)
    return np.maximum(covariance, 0.0), np.maximum(times - 1, 0).sum(0).astype(int)


def _runs(strata: Sequence[Mapping[str, Term]]) -> dict[str, Float[np.ndarray, "seeds columns"]]:
    """Returns the weighted sum over the strata of each run's means, for every model with seeds."""
    models = dict.fromkeys(name for terms in strata for name, term in terms.items() if term.trained)
    return {
        name: np.asarray(np.sum([_means(name, terms) for terms in strata if name in terms], axis=0)) for name in models
    }


def _means(name: str, terms: Mapping[str, Term]) -> Float[np.ndarray, "seeds columns"]:
    """Returns each run's mean on the prompts that all models have answered, times its coefficient."""
    term = terms[name]
    used = np.all([np.isfinite(other.values).any(0) for other in terms.values()], axis=0)
    known = np.isfinite(term.values) & used
    with np.errstate(divide="ignore", invalid="ignore"):
        # A prompt that a run has no answer to counts as the mean of the other runs' answers.
        mean = np.where(known, term.values, 0.0).sum(0) / known.sum(0)
        filled = np.where(known, term.values, np.where(used, np.nan_to_num(mean), 0.0))
        return np.asarray(term.coefficient * filled.sum(1) / used.sum(0))
