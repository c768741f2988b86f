"""Which kinds of rows does the suite print? Each as a function that simulates studies and analyses them as it does.

A function takes a world of many studies, and returns a column a study.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np

from eval.statistics.intervals import mean_interval, paired_t, wilson
from eval.statistics.pooled import Contrast, Term, contrast
from eval.statistics.simulation import DIFFICULTY_SD, MODEL_SD, SAMPLE_SD, World, logits_of
from eval.support.guessing import guesses, pass_at_k
from eval.transfer.models import RL, Answers, Trained
from eval.transfer.tables import OWN_LESS_OTHERS, estimate, mean_weights, question_weights

ALPHA = 0.05
NUM_SAMPLES = 8
GAIN, KEPT = 0.2, 0.5
MARGIN = 0.05

Outcome = tuple[np.ndarray, np.ndarray, np.ndarray | None, float]
"""Estimates, half widths, p-values and the truth."""


def compared(world: World, first: np.ndarray, second: np.ndarray) -> Contrast:
    """Compares two models as `eval.compare` does, a column a study."""
    numbers = world.setting.num_seeds, world.setting.num_seeds_against
    sides = zip((1.0, -1.0), (first, second), numbers, strict=True)
    terms = [Term(coefficient=sign, values=values, trained=number > 0) for sign, values, number in sides]
    return contrast(terms, clusters=world.clusters, shares=True)


def of_contrast(found: Contrast, truth: float = 0.0) -> Outcome:
    return found.estimate, found.half_width(), found.p() if truth == 0 else None, truth


def difference(world: World) -> Outcome:
    """Rows of `eval.compare` and of `eval.tower` against random towers."""
    own = world.setting
    first, second = (world.answers(own.base_rate, number) for number in (own.num_seeds, own.num_seeds_against))
    return of_contrast(compared(world, first, second))


def true_difference(world: World) -> Outcome:
    """The same where the models differ by ten points."""
    own = world.setting
    first, second = (
        world.answers(own.base_rate + 0.1, own.num_seeds),
        world.answers(own.base_rate, own.num_seeds_against),
    )
    return of_contrast(compared(world, first, second), 0.1)


def gain_kept(world: World) -> Outcome:
    """*Gain kept*: Fieller's interval contains the truth if the contrast at the truth is not significant.

    Without a significant gain of the reference the interval is unbounded, and no row is printed (`num_printed`).
    """
    own = world.setting
    arm = world.answers(own.base_rate + KEPT * GAIN, own.num_seeds)
    full, start = world.answers(own.base_rate + GAIN, own.num_seeds), world.answers(own.base_rate, 0)
    gain = compared(world, full, start)
    terms = zip((1.0, -KEPT, KEPT - 1), (arm, full, start), (True, True, False), strict=True)
    found = contrast(
        [Term(coefficient=weight, values=values, trained=trained) for weight, values, trained in terms],
        clusters=world.clusters,
        shares=True,
    )
    world.printed = gain.estimate > gain.half_width()
    return found.estimate, found.half_width(), None, 0.0


def equivalence(world: World) -> Outcome:
    """*Equivalent within five points* is claimed (two one-sided tests) of models that differ by five points.

    Its p is replaced by 0 where it is claimed.
    """
    own = world.setting
    first = world.answers(own.base_rate + MARGIN, own.num_seeds)
    found = compared(world, first, world.answers(own.base_rate, own.num_seeds_against))
    claimed = np.abs(found.estimate) + found.half_width(2 * ALPHA) <= MARGIN
    return found.estimate, found.half_width(), np.where(claimed, 0.0, 1.0), MARGIN


def family(world: World) -> Outcome:
    """Three arms against a fourth on three abilities, corrected by Holm's method: p is the smallest of the nine."""
    own, num_studies = world.setting, world.difficulty.shape[1]
    found = []
    for ability in (world, World(own, world.rng, num_studies), World(own, world.rng, num_studies)):
        reference = ability.answers(own.base_rate, own.num_seeds_against)
        found += [compared(ability, ability.answers(own.base_rate, own.num_seeds), reference) for _ in range(3)]
    smallest = np.min([9 * one.p() for one in found], axis=0)
    return found[0].estimate, found[0].half_width(), smallest, 0.0


def pass_at(k: int) -> Callable[[World], Outcome]:
    """Changes of pass@k in `eval.support`."""

    def row(world: World) -> Outcome:
        own = world.setting
        values = []
        for number in (own.num_seeds, own.num_seeds_against):
            right = world.samples(own.base_rate, number, NUM_SAMPLES)
            values.append(pass_at_k(np.full(right.size, NUM_SAMPLES), right.ravel(), k).reshape(right.shape))
        return of_contrast(compared(world, *values))

    return row


def majority(world: World) -> Outcome:
    """Changes of the majority vote: with two possible answers, the one given by more samples."""
    own = world.setting
    counts = [world.samples(own.base_rate, number, NUM_SAMPLES) for number in (own.num_seeds, own.num_seeds_against)]
    return of_contrast(compared(world, *((np.sign(right - NUM_SAMPLES / 2) + 1) / 2 for right in counts)))


def pooled_share(world: World) -> Outcome:
    """Levels of `eval.support`: one model's mean over seeds."""
    own = world.setting
    terms = [Term(coefficient=1.0, values=world.answers(own.base_rate, own.num_seeds), trained=True)]
    return of_contrast(contrast(terms, clusters=world.clusters, shares=True), own.base_rate)


def one_run(world: World) -> Outcome:
    """Rows about checkpoints (also of `analyze.skip`, splices and towers): two single runs on new prompts."""
    first, second = (world.answers(world.setting.base_rate, 0) for _ in range(2))
    terms = [Term(coefficient=sign, values=own, trained=False) for sign, own in ((1.0, first), (-1.0, second))]
    return of_contrast(contrast(terms, clusters=world.clusters, shares=True))


def one_share(world: World) -> Outcome:
    """Scores of one run: Wilson's interval, whose centre is not the estimate."""
    right = world.answers(world.setting.base_rate, 0)[0]
    found = [wilson(int(number), len(right)) for number in right.sum(0)]
    ends = np.array([(own.low, own.high) for own in found])
    return ends.mean(1), (ends[:, 1] - ends[:, 0]) / 2, None, world.setting.base_rate


def attention_shift(world: World) -> Outcome:
    """Rows of `analyze.attention` over several seeds: masses between 0 and 0.4, most of them small."""
    own = world.setting
    masses = [0.4 * world.chances(0.2, number) for number in (own.num_seeds, own.num_seeds)]
    terms = [Term(coefficient=sign, values=mass, trained=True) for sign, mass in zip((1.0, -1.0), masses, strict=True)]
    return of_contrast(contrast(terms))


def attention_in_one_run(world: World) -> Outcome:
    """Rows of `analyze.attention` for one seed, and shifts of log-probabilities: the paired t interval."""
    first, second = (0.4 * world.chances(0.2, 0)[0] for _ in range(2))
    found = mean_interval((first - second).astype(float))
    return found["mean"], (found["high"] - found["low"]) / 2, paired_t((first - second).astype(float)), 0.0


def transfer(row_of: str) -> Callable[[World], Outcome]:
    """Rows of `eval.transfer`: a cell, *own less others* of an arm, or pooled. Runs have a shift on each modality."""

    def row(world: World) -> Outcome:
        own, places = world.setting, "abcd"
        part = replace(own, num_prompts=own.num_prompts // len(places))
        worlds = {place: World(part, world.rng, world.difficulty.shape[1]) for place in places}
        arms = {f"data-{place}": Trained(method=RL, on=place) for place in places}
        runs = {"sft": 0} | dict.fromkeys(arms, own.num_seeds)
        values = {
            name: {place: one.answers(own.base_rate, number) for place, one in worlds.items()}
            for name, number in runs.items()
        }
        answers = Answers(
            values=values, clusters=dict.fromkeys(places), trained=arms, start="sft", seeded=frozenset(arms)
        )
        weights = [question_weights(answers, (name, "sft"), OWN_LESS_OTHERS) for name in arms]
        chosen = {
            "cell": {("data-a", "b"): 1.0, ("sft", "b"): -1.0},
            "arm": weights[0],
            "pooled": mean_weights(weights),
        }
        return of_contrast(estimate(answers, chosen[row_of]))

    return row


def gap_closed(world: World) -> Outcome:
    """*Gap closed* of `eval.support`: as for gain kept, with pass@8 of the start in place of a reference."""
    own = world.setting
    arm, start = (
        world.samples(own.base_rate + up, seeds, NUM_SAMPLES) for up, seeds in ((GAIN, own.num_seeds), (0, 0))
    )
    at = {
        k: pass_at_k(np.full(start.size, NUM_SAMPLES), start.ravel(), k).reshape(start.shape) for k in (1, NUM_SAMPLES)
    }
    truth = _expected(own.base_rate + GAIN, own.seed_effect, 1) - _expected(own.base_rate, 0.0, 1)
    truth /= _expected(own.base_rate, 0.0, NUM_SAMPLES) - _expected(own.base_rate, 0.0, 1)
    terms = [
        Term(coefficient=1.0, values=arm / NUM_SAMPLES, trained=True),
        Term(coefficient=-1.0, values=at[1] + truth * (at[NUM_SAMPLES] - at[1]), trained=False),
    ]
    found = contrast(terms, clusters=world.clusters, shares=True)
    return found.estimate, found.half_width(), None, 0.0


def _expected(accuracy: float, seed_effect: float, k: int) -> float:
    """Returns the expected pass@k of a model's samples."""
    mean, shift = logits_of(accuracy, seed_effect)
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    spread = np.linalg.norm([DIFFICULTY_SD, MODEL_SD, SAMPLE_SD, shift])
    return float(weights @ (1 - (1 - 1 / (1 + np.exp(-mean - spread * points))) ** k) / weights.sum())


def no_support(world: World) -> Outcome:
    """*Support* of `eval.support`, of a model that never looks: it says each option as often as its seed likes it."""
    own, num_studies = world.setting, world.difficulty.shape[1]
    n, options = own.num_prompts, 6
    golds = world.rng.integers(options, size=(num_studies, n))
    sources, judged = np.arange(n), np.full((n, n), NUM_SAMPLES)
    values = np.empty((own.num_seeds, n, num_studies))
    for seed, study in product(range(own.num_seeds), range(num_studies)):
        habit = world.rng.dirichlet(np.full(options, 1 / (own.seed_effect + 0.01)))
        counts = world.rng.multinomial(NUM_SAMPLES, habit, size=n)  # [prompts, options]
        right = counts[:, golds[study]]  # [sources, prompts]
        passed = pass_at_k(np.diag(judged), np.diag(right), NUM_SAMPLES)
        values[seed, :, study] = passed - guesses(right, judged, sources, NUM_SAMPLES)
    return of_contrast(contrast([Term(coefficient=1.0, values=values, trained=own.num_seeds > 1)], shares=True))


KINDS: dict[str, Callable[[World], Outcome]] = {
    "arm - arm": difference,
    "arm - start": difference,
    "arm - start, skewed (limit)": difference,
    "arm - start, ten points": true_difference,
    "arm - arm, clusters of 4": difference,
    "arm - start, clusters of 4": difference,
    "arm - arm, 15 % unscored": difference,
    "arm - arm, unequal seeds": difference,
    "gain kept": gain_kept,
    "equivalent within 5": equivalence,
    "9 corrected rows": family,
    "pass@1": pass_at(1),
    "pass@8": pass_at(NUM_SAMPLES),
    "majority vote": majority,
    "one arm over seeds": pooled_share,
    "one run - one run": one_run,
    "one run": one_share,
    "transfer, one cell": transfer("cell"),
    "transfer, one arm": transfer("arm"),
    "transfer, pooled": transfer("pooled"),
    "gap closed": gap_closed,
    "support": no_support,
    "attention, over seeds": attention_shift,
    "attention, one run": attention_in_one_run,
}
