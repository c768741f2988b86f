"""Do the intervals hold what they say? Coverage, false alarms and widths of every kind of row that the suite prints.

    python -m benchmarks.calibration --output benchmarks/results/calibration.json

Studies are simulated whose truth is known. A prompt has a difficulty (logits, standard deviation 2), each model its own
deviation on it (0.8), each training run a shift of all prompts, whose standard deviation between runs is the *seed
effect* in points of accuracy. Each setting is simulated `--num-studies` times and analysed with the functions that
write the tables:

    covered       share of the 95 % intervals that contain the truth; its standard error at 4,000 studies is 0.34 points
    false alarms  share of studies with p < 0.05 if there is no difference (the file also has p < 0.005)
    width         median width of the intervals divided by that of the ideal one, 2 × 1.96 standard deviations of the
                  estimates

A kind of row holds if it covers between 93 and 97.5 % and raises at most 6.5 % false alarms in every setting. The exit
status is 1 if one does not. Two seeds compared with a start leave one degree of freedom. No critical value that was
tried keeps both ends there, so up to 99 % is accepted: the interval is then too wide, never too narrow. Settings whose
runs spread as far as 0 or 100 % are a kind of their own, a stated limit that does not count: seed effects are then far
from normal. Takes about five minutes on two cores.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from eval.statistics.intervals import mean_interval, paired_t, wilson
from eval.statistics.pooled import Contrast, Term, contrast
from eval.statistics.simulation import Setting, World
from eval.support.guessing import pass_at_k
from tracking.command import REPOSITORY_ROOT
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "calibration.json"
LEVELS = (0.05, 0.005)
COVERED = (0.93, 0.975)
MOST_AT_ONE_DEGREE = 0.99
MOST_FALSE = 0.065
AT_ONCE = 250
NUM_SAMPLES = 8
ENOUGH_STUDIES = 4000
"""With fewer, three standard errors are added to the limits."""
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
    claimed = np.abs(found.estimate) + found.half_width(2 * LEVELS[0]) <= MARGIN
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
    "attention, over seeds": attention_shift,
    "attention, one run": attention_in_one_run,
}
SEEDS, EFFECTS, PROMPTS, RATES = (2, 3, 4, 5, 8), (0.0, 0.02, 0.05, 0.1), (100, 300, 1000), (0.1, 0.3, 0.5, 0.9)


def all_settings() -> Iterator[tuple[str, Setting]]:
    """Yields every kind of row with every setting."""
    for seeds, effect, prompts, share in product(SEEDS, EFFECTS, PROMPTS, RATES):
        own = Setting(num_seeds=seeds, seed_effect=effect, num_prompts=prompts, base_rate=share)
        skewed = 2.5 * effect > min(share, 1 - share)  # runs spread as far as 0 or 100 %
        if effect < min(share, 1 - share):
            yield "arm - arm", replace(own, num_seeds_against=seeds)
            yield "arm - start, skewed (limit)" if skewed else "arm - start", own
            if prompts == 300 and not skewed:
                yield "one arm over seeds", own
    for seeds, effect in product(SEEDS, EFFECTS):
        own = Setting(num_seeds=seeds, seed_effect=effect)
        both = replace(own, num_seeds_against=seeds)
        yield "arm - start, ten points", replace(own, base_rate=0.4)
        yield "arm - arm, clusters of 4", replace(both, cluster_size=4)
        yield "arm - start, clusters of 4", replace(own, cluster_size=4)
        yield "arm - arm, 15 % unscored", replace(both, unscored=0.15)
        yield "gain kept", replace(own, base_rate=0.4)
        yield "gain kept", replace(own, base_rate=0.4, num_prompts=1000)
        yield "equivalent within 5", replace(both, num_prompts=1000)
        yield "9 corrected rows", both
        yield "pass@1", both
        yield "pass@8", replace(both, base_rate=0.3)
        yield "majority vote", both
        yield "attention, over seeds", replace(both, num_prompts=50)
    for (seeds, against), effect in product(((2, 3), (2, 4), (2, 8), (3, 5), (1, 4)), EFFECTS):
        yield "arm - arm, unequal seeds", Setting(num_seeds=seeds, num_seeds_against=against, seed_effect=effect)
    for prompts, share in product((60, *PROMPTS), RATES):
        for kind in ("one run - one run", "one run"):
            yield kind, Setting(num_prompts=prompts, base_rate=share)
    for prompts in (20, 50, 100, 300):
        yield "attention, one run", Setting(num_prompts=prompts)


def simulate(task: tuple[str, Setting, int, int]) -> dict[str, Any]:
    """Returns what was measured in one setting."""
    kind, setting, num_studies, seed = task
    rng = np.random.default_rng([seed, *map(ord, f"{kind} {setting}")])
    parts, printed = [], []
    for first in range(0, num_studies, AT_ONCE):
        world = World(setting, rng, min(AT_ONCE, num_studies - first))
        parts.append(KINDS[kind](world))
        printed.append(world.printed)
    estimates, halves = (np.concatenate([part[number] for part in parts]) for number in (0, 1))
    truth = parts[0][3]
    covered = np.abs(estimates - truth) <= halves
    found = {"kind": kind} | asdict(setting) | {"covered": float(covered.mean())}
    shown = np.concatenate(printed)
    if not shown.all():
        found |= {"num_printed": int(shown.sum()), "covered_where_printed": float(covered[shown].mean())}
    found["width"] = float(np.median(halves) / 1.96 / np.std(estimates))
    if parts[0][2] is not None:
        p = np.concatenate([part[2] for part in parts if part[2] is not None])
        found |= {f"false_alarms_{level:g}": float((p < level).mean()) for level in LEVELS}
    return found


def summarise(rows: Sequence[dict[str, Any]], *, slack: float = 0.0) -> list[dict[str, Any]]:
    """Returns a row per kind and number of seeds: the extremes over its settings.

    Args:
        slack: how far outside the limits a share may be.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["num_seeds"]), []).append(row)
    found = []
    for (kind, num_seeds), own in groups.items():
        covered = [row["covered"] for row in own]
        false = [row["false_alarms_0.05"] for row in own if "false_alarms_0.05" in row]
        without = [row["width"] for row in own if row["seed_effect"] == 0]
        one_degree = num_seeds == 2 and own[0]["num_seeds_against"] == 0
        found.append(
            {
                "kind": kind,
                "num_seeds": num_seeds,
                "num_settings": len(own),
                "covered": [min(covered), max(covered)],
                "false_alarms": [min(false), max(false)] if false else None,
                "widest_without_seed_effect": max(without, default=None),
                "holds": COVERED[0] - slack <= min(covered)
                and max(covered) <= (MOST_AT_ONE_DEGREE if one_degree else COVERED[1]) + slack
                and max(false, default=0.0) <= MOST_FALSE + slack,
            }
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--num-studies", type=int, default=4000)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    tasks = [
        (kind, own, arguments.num_studies, arguments.seed) for kind, own in all_settings() if kind in arguments.kinds
    ]
    with ProcessPoolExecutor(arguments.num_workers, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(simulate, tasks, chunksize=4))
    error = (0.95 * 0.05 / arguments.num_studies) ** 0.5
    summary = summarise(rows, slack=3 * error if arguments.num_studies < ENOUGH_STUDIES else 0.0)
    result = {
        "command": "python -m benchmarks.calibration",
        "num_studies": arguments.num_studies,
        "standard_error_of_coverage": error,
        "git": git_state(),
        "hardware": hardware(),
        "summary": summary,
        "settings": rows,
    }
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    print("kind                        seeds settings   covered, %   false alarms, %   width   holds")
    for row in summary:
        low, high = (100 * end for end in row["covered"])
        false, width = row["false_alarms"], row["widest_without_seed_effect"]
        print(
            f"{row['kind']:27} {row['num_seeds']:5} {row['num_settings']:8} {low:5.1f} to {high:4.1f}   "
            + (f"{100 * false[0]:7.1f} to {100 * false[1]:4.1f}" if false else " " * 15)
            + (f"{width:8.2f}" if width else " " * 8)
            + ("   yes" if row["holds"] else "   NO")
        )
    if not all(row["holds"] or row["kind"].endswith("(limit)") for row in summary):
        sys.exit(1)


if __name__ == "__main__":
    main()
