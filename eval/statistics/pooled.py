"""How certain is a difference between models that were trained with several seeds? One method for every pooled row.

A *contrast* is a weighted sum of means over the same prompts, such as arm - start (1, -1), or arm - k reference -
(1 - k) start, which is zero if the arm keeps the share k of the reference's gain. The value of model a with training
seed s on prompt p is

    y[a, s, p] = mean[a] + seed[a, s] + prompt[a, p] + residual[a, s, p]

Each training run draws its own seed effect, also if two models use equal seed numbers. A model that exists once (a
start checkpoint) has none. Three mean squares estimate the variance of the contrast:

    prompts   of the contrast's value of each prompt, averaged over seeds, divided by n; cluster-robust
    seeds     of a model's means of its seeds, pooled over the models of the contrast, with the sum of (seeds - 1)
              degrees of freedom; the seed variance is taken as equal in them
    residual  what is left in both; it is subtracted once

    variance = (prompts - residual) + seeds = W + S        (W is at least 0)

S has few degrees of freedom. `critical.py` has the critical value, which lies between the t quantiles of both parts.
If no model of the contrast has two seeds, nothing is known about seeds: S is 0, and the result is about these runs only
(`num_degrees` is 0).

For shares, V counts half a flip in each direction more than was seen, as A. Agresti and Y. Min do for paired
proportions (Statistics in Medicine 24, 2005). So the interval has a width even if no reply changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from eval.statistics.critical import critical_value
from eval.statistics.intervals import CONFIDENCE, Estimate
from eval.statistics.power import planned_test

TRAINING, CHECKPOINTS = "training", "checkpoints"
"""What a row is about: the training procedure (several seeds), or the checkpoints that were evaluated."""
EQUIVALENCE_LEVEL = 2 * (1 - CONFIDENCE)
"""Level of the interval of two one-sided tests."""
SMALLEST_P = 1e-300
NUM_SWEEPS = 25
"""Of the fit of seeds and prompts if answers are missing."""
NUM_HALVINGS = 60
WIDEST_RATIO = 1e3
"""An end of a ratio's interval beyond this is infinite."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One model of a contrast."""

    coefficient: float
    values: Float[np.ndarray, "seeds n columns"]
    """NaN if a reply has no value, for example because it could not be judged. All models share the n prompts."""
    trained: bool
    """Whether the rows are runs with seeds of their own; False for a model that exists once."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Estimates of several columns with the parts of their variance."""

    estimate: Float[np.ndarray, " columns"]
    n: Int[np.ndarray, " columns"]
    """Prompts with a value from every model."""
    prompts: Float[np.ndarray, " columns"]
    """The part W of the variance."""
    seeds: Float[np.ndarray, " columns"]
    """The part S of the variance."""
    num_clusters: Int[np.ndarray, " columns"]
    num_degrees: int
    """Of S; 0 if no model has two seeds."""
    residual: Float[np.ndarray, " columns"]
    """The part of S that more prompts reduce: the variance of replies between seeds beyond a common shift."""

    @property
    def standard_error(self) -> Float[np.ndarray, " columns"]:
        return np.asarray(np.sqrt(self.prompts + self.seeds))

    @property
    def scope(self) -> str:
        """`training` if the interval covers new training runs, else `checkpoints`."""
        return TRAINING if self.num_degrees else CHECKPOINTS

    def critical(self, level: float | Float[np.ndarray, " columns"]) -> Float[np.ndarray, " columns"]:
        """Returns the number of standard errors from the estimate to the ends of the interval.

        Args:
            level: the share of intervals that may miss the truth, such as 0.05.
        """
        return critical_value(level, self.prompts, self.seeds, self.num_clusters, self.num_degrees)

    def half_width(
        self, level: float | Float[np.ndarray, " columns"] = 1 - CONFIDENCE
    ) -> Float[np.ndarray, " columns"]:
        """Returns half the width of the interval at a level."""
        return np.asarray(self.critical(level) * self.standard_error)

    def p(self, null: float = 0.0) -> Float[np.ndarray, " columns"]:
        """Returns the two-sided p-value of a contrast equal to `null`: the level whose interval just excludes it."""
        distance = np.abs(self.estimate - null)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = distance / self.standard_error
        low, high = np.full(len(ratio), np.log(SMALLEST_P)), np.zeros(len(ratio))
        for _ in range(NUM_HALVINGS):
            middle = (low + high) / 2
            above = self.critical(np.exp(middle)) > ratio
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        found = np.exp(high)
        found = np.where(self.standard_error == 0, np.where(distance == 0, 1.0, 0.0), found)
        return np.where(np.isfinite(self.standard_error), found, np.nan)

    def detectable(self, level: float = 1 - CONFIDENCE) -> Float[np.ndarray, " columns"]:
        """Returns the difference that would be found with a power of 80 % at this variance."""
        parts = zip(self.prompts, self.seeds, self.num_clusters, strict=True)
        return np.array(
            [
                planned_test(w, s, num_clusters=clusters, num_degrees=self.num_degrees, level=level).detectable()
                for w, s, clusters in parts
            ]
        )

    def equivalent_within(self, column: int = 0) -> float:
        """Returns the margin within which a column is equivalent to zero, by two one-sided tests."""
        return abs(float(self.estimate[column])) + float(self.half_width(EQUIVALENCE_LEVEL)[column])

    def one(self, column: int = 0, level: float = 1 - CONFIDENCE) -> Estimate:
        """Returns the estimate of one column with its interval."""
        value, half = float(self.estimate[column]), float(self.half_width(level)[column])
        return Estimate(value, value - half, value + half, float(self.standard_error[column]))


def contrast(
    terms: Sequence[Term],
    *,
    clusters: Int[np.ndarray, " n"] | None = None,
    shares: bool = False,
    bounded: bool = True,
) -> Contrast:
    """Estimates a contrast of models on the same prompts.

    Args:
        clusters: index of each prompt's cluster, such as its picture; None if prompts are independent.
        shares: the values are between 0 and 1, as accuracies are.
        bounded: W is at least 0; False if it will be added to the W of other prompts first.

    Returns:
        A contrast whose numbers are NaN in columns for which no prompt has a value from every model.
    """
    return _Prepared.of(terms, clusters).contrast([term.coefficient for term in terms], shares=shares, bounded=bounded)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """The part of a contrast that does not depend on its coefficients, for a search over them."""

    terms: Sequence[Term]
    means: Sequence[Float[np.ndarray, "n columns"]]
    """Of each term, over its seeds."""
    used: Bool[np.ndarray, "n columns"]
    numbers: Int[np.ndarray, " n"]
    """Cluster of each prompt."""
    between: Float[np.ndarray, " columns"]
    """Sum over the models of the squares of their seed means."""
    within: Float[np.ndarray, " columns"]
    """The part of it that the residual explains."""

    @classmethod
    def of(cls, terms: Sequence[Term], clusters: Int[np.ndarray, " n"] | None) -> "_Prepared":
        means = [mean_of_seeds(term.values) for term in terms]
        used = np.logical_and.reduce([np.isfinite(mean) for mean in means])
        numbers = np.arange(len(used)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        between, within = np.zeros(used.shape[1]), np.zeros(used.shape[1])
        for term, mean in zip(terms, means, strict=True):
            if term.trained and len(term.values) > 1:
                own = _between_seeds(term.values, mean, used, numbers)
                between, within = between + own[0], within + own[1]
        return cls(terms=terms, means=means, used=used, numbers=numbers, between=between, within=within)

    def contrast(self, coefficients: Sequence[float], *, shares: bool, bounded: bool = True) -> Contrast:
        """Returns the contrast with these coefficients, in the order of the terms."""
        value = sum(weight * mean for weight, mean in zip(coefficients, self.means, strict=True))
        assert isinstance(value, np.ndarray)
        n = self.used.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = np.where(self.used, value, 0.0).sum(0) / n
        prompts, num_clusters = _variance_of_mean(value - estimate, self.used, self.numbers)
        if shares:
            weights = zip(coefficients, self.terms, strict=True)
            flips = sum(weight**2 / (2 * len(term.values)) for weight, term in weights)
            with np.errstate(divide="ignore", invalid="ignore"):
                prompts = (prompts * n**2 + flips) / (n + 2) ** 2
        runs = [(weight, term) for weight, term in zip(coefficients, self.terms, strict=True) if term.trained]
        num_degrees = sum(len(term.values) - 1 for _, term in runs)
        seeds = residual = np.zeros(len(n))
        if num_degrees:
            factor = sum(weight**2 / len(term.values) for weight, term in runs) / num_degrees
            seeds, residual = factor * self.between, factor * self.within
            prompts = np.maximum(prompts - residual, 0.0) if bounded else prompts - residual
        return Contrast(
            estimate=estimate,
            n=n,
            prompts=np.where(n > 0, prompts, np.nan),
            seeds=np.where(n > 0, seeds, np.nan),
            num_clusters=num_clusters,
            num_degrees=num_degrees,
            residual=residual,
        )


def single_runs(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> Contrast:
    """Returns the share right of one run minus that of another, on the same independent samples."""
    terms = ((1.0, first), (-1.0, second))
    return contrast(
        [Term(coefficient=sign, values=np.asarray(own, float)[None, :, None], trained=False) for sign, own in terms],
        shares=True,
    )


def mean_of_seeds(values: Float[np.ndarray, "seeds n columns"]) -> Float[np.ndarray, "n columns"]:
    if len(values) == 1:
        return np.asarray(values[0])
    known = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(0) / known.sum(0))


def _variance_of_mean(
    deviations: Float[np.ndarray, "n columns"], used: np.ndarray, clusters: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " columns"], Int[np.ndarray, " columns"]]:
    """Returns the cluster-robust variance of the mean of the used prompts, and the number of clusters."""
    kept = np.where(used, deviations, 0.0)
    if len(clusters) and clusters.max() + 1 == len(clusters):
        sums, num_clusters = kept, used.sum(0)
    else:
        num = int(clusters.max()) + 1 if len(clusters) else 0
        sums, present = np.zeros((num, kept.shape[1])), np.zeros((num, kept.shape[1]), bool)
        np.add.at(sums, clusters, kept)
        np.logical_or.at(present, clusters, used)
        num_clusters = present.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(num_clusters > 1, num_clusters / (num_clusters - 1.0), np.nan)
        return np.asarray(factor * (sums**2).sum(0) / used.sum(0) ** 2), num_clusters


def _between_seeds(
    values: Float[np.ndarray, "seeds n columns"],
    mean: Float[np.ndarray, "n columns"],
    used: np.ndarray,
    clusters: Int[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Returns the sum of squares of a model's seed means, and the part of it that the residual explains.

    If answers are missing, seeds and prompts are fitted together, so that a seed's mean does not depend on which
    prompts it has.
    """
    num_seeds = len(values)
    known = np.isfinite(values) & np.isfinite(mean) & used
    per_prompt, per_seed = known.sum(0), known.sum(1)  # [n, columns], [seeds, columns]
    filled = np.where(known, values, 0.0)
    shifts = np.zeros(per_seed.shape)
    rest = filled
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(1 if known.all() else NUM_SWEEPS):
            centre = np.nan_to_num((filled - known * shifts[:, None]).sum(0) / per_prompt)
            rest = np.where(known, values - centre, 0.0)
            shifts = np.nan_to_num(rest.sum(1) / per_seed)
            shifts = shifts - shifts.mean(0)
        rest = np.where(known, rest - shifts[:, None], 0.0)
        # A prompt's own mean takes up a share of its residuals: all of them if it has one answer.
        scale = np.where(per_prompt > 1, per_prompt / (per_prompt - 1.0), 0.0) * (num_seeds - 1) / num_seeds
    kept = known & (per_prompt > 1)
    within = sum(
        _variance_of_mean(own * np.sqrt(scale), which, clusters)[0] for own, which in zip(rest, kept, strict=True)
    )
    return (shifts**2).sum(0), np.nan_to_num(np.asarray(within))


def ratio_of_gains(
    arm: Term, reference: Term, start: Term, *, clusters: Int[np.ndarray, " n"] | None = None, shares: bool = False
) -> Estimate | None:
    """Returns (arm - start) / (reference - start) with Fieller's interval; None unless the reference's gain is certain.

    The interval has every share k for which arm - k reference - (1 - k) start is not significantly different from zero
    (E. Fieller, Journal of the Royal Statistical Society B 16, 1954). It is bounded if the reference differs
    significantly from the start, which is required. The coefficients of the terms are not used.
    """

    prepared = _Prepared.of((arm, reference, start), clusters)

    def at(share: float) -> Contrast:
        return prepared.contrast((1.0, -share, share - 1.0), shares=shares)

    weights = ((reference, 1.0), (start, -1.0))
    used = [Term(coefficient=0.0, values=arm.values, trained=False)]  # the same prompts as in the ratio
    gain = contrast(
        [*(Term(coefficient=weight, values=term.values, trained=term.trained) for term, weight in weights), *used],
        clusters=clusters,
        shares=shares,
    )
    return fieller(at, gain)


def fieller(at: Callable[[float], Contrast], gain: Contrast) -> Estimate | None:
    """Returns numerator / denominator with Fieller's interval; None unless the denominator is certainly positive.

    Args:
        at: share k -> the contrast numerator - k denominator.
        gain: the denominator, on the same prompts.
    """
    if not gain.estimate[0] > gain.half_width()[0]:
        return None
    kept = float(at(0.0).estimate[0] / gain.estimate[0])

    def rejected(share: float) -> bool:
        found = at(share)
        return bool(abs(found.estimate[0]) > found.half_width()[0])

    return Estimate(kept, _end(rejected, kept, -1.0), _end(rejected, kept, 1.0))


def _end(rejected: Callable[[float], bool], centre: float, direction: float) -> float:
    """Returns the last share in one direction that is not rejected; infinite if there is none."""
    step = 0.05
    while not rejected(centre + direction * step):
        step *= 2
        if step > WIDEST_RATIO:
            return direction * float("inf")
    inside, outside = step / 2 if step > 0.05 else 0.0, step
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejected(centre + direction * middle) else (middle, outside)
    return centre + direction * inside
