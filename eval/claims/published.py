"""What does the paper claim in numbers? Its Tables 2 and 3, the comparisons between their rows, and its statements.

`published.csv` contains the percentages of "What does RL improve for Visual Reasoning?" (arXiv 2602.12395v1), with this
suite's model names: `in-rl-rl` is IN:RL:RL (early, mid and late layers), `freeze-mid` the run with frozen mid layers.
The paper gives neither per-sample answers nor n, so its differences are tested as two independent samples.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from eval.statistics.intervals import CONFIDENCE
from eval.statistics.pooled import CHECKPOINTS

PUBLISHED = Path(__file__).with_name("published.csv")
ABILITY_SIZE = 100
"""Not stated in the paper; consistent with its integer percentages."""
BENCHMARK_SIZES = {"MathVista": 1000, "MathVision": 3040, "MathVerse": 3940}
"""Not stated; testmini, test and testmini. The percentages rule out MathVision's 304 and MathVerse's 788."""
HYBRIDS = ("in-rl-rl", "in-in-rl", "rl-rl-in", "rl-in-in", "in-rl-in", "rl-in-rl")
FROZEN = ("freeze-early", "freeze-mid", "freeze-late")
MERGING, FREEZING = "2", "3"
"""Numbers of the paper's tables."""
VISION, BRIDGE, REASONING = "vision", "vision-to-reasoning", "reasoning"


@dataclass(frozen=True)
class Claim:
    """One model compared with another on one ability, both taken from the same table."""

    table: str
    recipe: str
    ability: str
    model: str
    against: str


@dataclass(frozen=True)
class Difference:
    """Two shares and their difference, with a 95 % interval and a two-sided p-value."""

    share: float
    share_against: float
    n: int
    estimate: float
    low: float
    high: float
    standard_error: float
    p: float
    test: str
    scope: str = CHECKPOINTS
    """What it is about: training, or the checkpoints that were evaluated."""
    num_seeds: int = 1
    p_holm: float = float("nan")
    """As its comparison corrected it; NaN if that is still to be done."""
    num_tests: int = 1
    """Number of tests that `p_holm` is corrected for."""
    equivalent_within: float = float("nan")
    """The two models are equal within this (two one-sided tests at 5 %)."""
    prompt_error: float = float("nan")
    seed_error: float = 0.0
    num_clusters: int = 0
    seed_degrees: int = 0


@dataclass(frozen=True)
class Statement:
    """A statement of the paper, and what it implies for the tables."""

    words: str
    expected: int
    """1: the model is better than the one it is compared with; -1: worse; 0: no relevant difference."""
    model: str
    against: str
    abilities: tuple[str, ...]


STATEMENTS = (
    Statement("RL improves vision-to-reasoning alignment over IN", 1, "rl", "in", (BRIDGE,)),
    Statement("RL improves reasoning over IN", 1, "rl", "in", (REASONING,)),
    Statement("RL does not enhance visual perception as such", 0, "rl", "in", (VISION,)),
    Statement("RL's mid and late layers carry its gains into IN", 1, "in-rl-rl", "in", (BRIDGE, REASONING)),
    Statement("RL's mid layers alone carry its gains into IN", 1, "in-rl-in", "in", (BRIDGE, REASONING)),
    Statement("RL's late layers alone carry its gains into IN", 1, "in-in-rl", "in", (BRIDGE, REASONING)),
    Statement("RL's early layers carry none of its gains into IN", 0, "rl-in-in", "in", (BRIDGE, REASONING)),
    Statement("Freezing the mid layers hurts RL", -1, "freeze-mid", "rl", (BRIDGE, REASONING)),
    Statement("Freezing the late layers hurts RL", -1, "freeze-late", "rl", (BRIDGE, REASONING)),
    Statement("Freezing the early layers does not hurt RL", 0, "freeze-early", "rl", (BRIDGE, REASONING)),
)
"""The abstract's claims as comparisons: "mid-to-late refinements are both transferable (via merging) and
necessary (via freezing)", "not a uniform enhancement of visual perception"."""


def read_published() -> dict[tuple[str, str, str, str], float]:
    """Returns (table, recipe, ability, model) -> share."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return {
            (row["table"], row["recipe"], row["ability"], row["model"]): float(row["percent"]) / 100
            for row in csv.DictReader(file)
        }


def list_claims(cells: Iterable[tuple[str, str, str, str]]) -> list[Claim]:
    """Returns all comparisons: phases with each other, and each hybrid and frozen run with IN and with RL."""
    phases = {MERGING: [("in", "base"), ("rl", "base"), ("rl", "in")], FREEZING: [("rl", "in")]}
    changed = {MERGING: HYBRIDS, FREEZING: FROZEN}
    pairs = {
        table: [*phases[table], *((model, end) for model in changed[table] for end in ("in", "rl"))] for table in phases
    }
    places = dict.fromkeys((table, recipe, ability) for table, recipe, ability, _ in cells)
    return [Claim(*place, model, against) for place in places for model, against in pairs[place[0]]]


def sample_size(ability: str, ability_size: int = ABILITY_SIZE) -> int:
    return BENCHMARK_SIZES.get(ability, ability_size)


def separate_samples(share: float, share_against: float, n: int, n_against: int) -> Difference:
    """Compares two shares of independent samples: pooled z-test, and Newcombe's interval based on Wilson's.

    If both models answered the same prompts, as in the paper, this is more conservative than a paired test.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

    counts = round(share * n), round(share_against * n_against)
    low, high = confint_proportions_2indep(
        counts[0], n, counts[1], n_against, method="newcomb", compare="diff", alpha=1 - CONFIDENCE
    )
    flat = sum(counts) in (0, n + n_against)  # no right answer in either, or no wrong one
    p = 1.0 if flat else float(proportions_ztest(counts, (n, n_against))[1])
    error = (share * (1 - share) / n + share_against * (1 - share_against) / n_against) ** 0.5
    within = abs(share - share_against) + NormalDist().inv_cdf(CONFIDENCE) * error
    return Difference(
        share, share_against, min(n, n_against), share - share_against, float(low), float(high), error, p,
        "two separate samples", equivalent_within=within, prompt_error=error, num_clusters=min(n, n_against),
    )  # fmt: skip
