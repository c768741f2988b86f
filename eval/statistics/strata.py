"""How certain is a contrast whose parts are asked of different prompts, such as own modality less the others?

A *stratum* is a set of prompts, such as those of one modality. A contrast over strata is a sum of contrasts within
them, such as the gain on modality a less the mean gain on modalities b and c:

    prompts   the strata have different prompts, so the parts W of their variances add up
    seeds     the strata are answered by the same training runs. So S comes from each run's own sum over the strata. It
              counts what a run gains on one stratum and loses on another, and leaves out what it gains on all alike

With two or three runs of a model, S is known badly, and only huge differences are significant. So runs of *companions*,
models that were trained alike, such as with the same method on other data, may help to estimate it: their sums have the
coefficients of the model that they stand in for. Their variance between seeds is taken as equal to its.

`pooled.py` has the method within a stratum, and the critical value. The prompts of one cluster must be in one stratum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from eval.statistics.pooled import Contrast, Term, contrast


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """One set of prompts, and what each model counts for in it."""

    terms: Mapping[str, Term]
    """Model -> its values and coefficient on these prompts. Models without a coefficient are left out."""
    clusters: Int[np.ndarray, " n"] | None = None
    companions: Mapping[str, Term] = field(default_factory=dict)
    """Models that only help to estimate the variance between seeds, each with the coefficient of a model like it."""


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
    num_clusters = np.sum([part.num_clusters for part in parts], axis=0)
    return Contrast(
        estimate=np.sum([part.estimate for part in parts], axis=0),
        n=np.sum([part.n for part in parts], axis=0),
        prompts=np.maximum(np.sum([part.prompts for part in parts], axis=0), 0.0),
        seeds=seeds,
        # Each stratum has a mean of its own, so the prompts have one degree of freedom less for every further stratum.
        num_clusters=num_clusters - len(parts) + 1,
        num_degrees=num_degrees,
        residual=np.sum([part.residual for part in parts], axis=0),
    )


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
