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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.kinds import KINDS
from eval.statistics.simulation import Setting, World
from tracking.command import REPOSITORY_ROOT
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "calibration.json"
LEVELS = (0.05, 0.005)
COVERED = (0.93, 0.975)
MOST_AT_ONE_DEGREE = 0.99
MOST_FALSE = 0.065
AT_ONCE = 250
ENOUGH_STUDIES = 4000
"""With fewer, three standard errors are added to the limits."""

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
        for row in ("one cell", "one arm", "pooled"):
            yield f"transfer, {row}", replace(own, num_prompts=400)
        yield "gap closed", replace(own, base_rate=0.3)
        yield "support", replace(own, num_prompts=80)
        yield "attention, over seeds", replace(both, num_prompts=50)
    for (seeds, against), effect in product(((2, 3), (2, 4), (2, 8), (3, 5), (1, 4)), EFFECTS):
        yield "arm - arm, unequal seeds", Setting(num_seeds=seeds, num_seeds_against=against, seed_effect=effect)
    for prompts, share in product((60, *PROMPTS), RATES):
        for kind in ("one run - one run", "one run"):
            yield kind, Setting(num_prompts=prompts, base_rate=share)
    for prompts in (80, 300):
        yield "support", Setting(num_prompts=prompts)
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
