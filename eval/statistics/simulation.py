"""Simulated studies whose truth is known, to measure what intervals and tests hold.

A prompt has a difficulty (logits, standard deviation 2), each model its own deviation on it (0.8), each training run a
shift of all prompts, whose standard deviation between runs is the *seed effect* in points of accuracy. Many studies are
drawn at once: arrays are [seeds, prompts, studies].
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

DIFFICULTY_SD = 2.0
MODEL_SD = 0.8
SAMPLE_SD = 0.8
"""Of a run's own deviation on a prompt, which its samples share."""
CLUSTER_SHARE = 0.6
"""Share of the difficulty's variance that the prompts of one cluster have in common."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The size of a study, and what is true in it."""

    num_seeds: int = 1
    num_seeds_against: int = 0
    """0 if the other model exists once."""
    seed_effect: float = 0.0
    """Standard deviation of a run's accuracy between seeds."""
    num_prompts: int = 300
    base_rate: float = 0.5
    cluster_size: int = 1
    unscored: float = 0.0


@cache
def normal_quadrature(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns points and weights [number] of the Gauss quadrature for a standard normal weight."""
    points, weights = np.polynomial.hermite_e.hermegauss(number)
    return points, weights


def rate(mean: float, sd: float) -> float:
    """Returns the expected accuracy if the logits of prompts are normal."""
    from scipy.special import expit

    points, weights = normal_quadrature(80)
    return float(weights @ expit(mean + sd * points) / weights.sum())


@cache
def logits_of(accuracy: float, seed_effect: float) -> tuple[float, float]:
    """Returns mean logit and standard deviation of a run's shift for an accuracy and its spread between runs."""
    from scipy.optimize import brentq

    within = float(np.hypot(DIFFICULTY_SD, MODEL_SD))
    points, weights = normal_quadrature(40)

    def centre(shift: float) -> float:
        return float(brentq(lambda mean: rate(mean, float(np.hypot(within, shift))) - accuracy, -15, 15))

    def spread(shift: float) -> float:
        means = np.array([rate(centre(shift) + shift * point, within) for point in points])
        return float(np.sqrt(weights @ (means - accuracy) ** 2 / weights.sum())) - seed_effect

    shift = 0.0 if seed_effect == 0 else float(brentq(spread, 1e-3, 6, xtol=1e-4))
    return centre(shift), shift


class World:
    """Prompts of many studies, and models that answer them."""

    def __init__(self, setting: Setting, rng: np.random.Generator, num_studies: int) -> None:
        self.setting, self.rng = setting, rng
        self.printed = np.ones(num_studies, bool)
        n = setting.num_prompts
        self.clusters = None if setting.cluster_size == 1 else np.arange(n) // setting.cluster_size
        self.difficulty = self._normal(n, num_studies)
        if self.clusters is not None:
            common = self._normal(int(self.clusters.max()) + 1, num_studies)[self.clusters]
            self.difficulty = CLUSTER_SHARE**0.5 * common + (1 - CLUSTER_SHARE) ** 0.5 * self.difficulty
        self.difficulty *= DIFFICULTY_SD

    def _normal(self, *shape: int) -> np.ndarray:
        return np.asarray(self.rng.standard_normal(shape, dtype=np.float32))

    def chances(self, accuracy: float, num_seeds: int) -> np.ndarray:
        """Draws a model's chances [seeds, n, studies] to be right; one run without a shift for 0 seeds."""
        mean, shift = logits_of(accuracy, self.setting.seed_effect if num_seeds else 0.0)
        logits = mean + self.difficulty + MODEL_SD * self._normal(*self.difficulty.shape)
        shifts = shift * self._normal(max(num_seeds, 1), 1, self.difficulty.shape[1])
        return np.asarray(1 / (1 + np.exp(-(logits + shifts))), float)

    def answers(self, accuracy: float, num_seeds: int) -> np.ndarray:
        """Draws a model's answers: 1, 0, or NaN if unscored."""
        chances = self.chances(accuracy, num_seeds)
        found = (self.rng.random(chances.shape, dtype=np.float32) < chances).astype(float)
        if self.setting.unscored:
            found[self.rng.random(chances.shape) < self.setting.unscored] = np.nan
        return found

    def samples(self, accuracy: float, num_seeds: int, num_samples: int) -> np.ndarray:
        """Draws how many of a prompt's samples are right."""
        chances = self.chances(accuracy, num_seeds)
        logits = np.log(chances / (1 - chances)) + SAMPLE_SD * self._normal(*chances.shape)
        return np.asarray(self.rng.binomial(num_samples, 1 / (1 + np.exp(-logits))))
