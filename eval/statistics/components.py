"""How much do training runs and prompts vary? The variances that the plan of a study needs, assumed or measured.

Measured: from the pooled rows of `comparison.csv`, task by task and ability by ability. A row's `seed_error` squared,
divided by its `seed_weight`, estimates the variance between runs of a model, and `residual_error` squared the part of
it that more prompts reduce. Both are averaged over models, weighted by degrees of freedom.

Assumed: from the share p of right replies, and from correlations r between the replies of two runs to one prompt. With
v = p (1 - p), the residual variance is (1 - r_same) v. The variance between prompts is 2 (r_same - r_arms) v between
two arms and (1 + r_same - 2 r_start) v between an arm and its start.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from eval.statistics.design import Components
from eval.statistics.differences import AGAINST, ARM, BOTH, POOLED
from eval.statistics.intervals import CONFIDENCE, Estimate

if TYPE_CHECKING:
    import pandas as pd

ARMS, START = "arm against arm", "arm against start"
"""The kinds of comparisons: two models with seeds, and a model with seeds against one that exists once."""
SAME = "two runs of an arm"
SAME_ARM, OTHER_ARM, WITH_START = 0.7, 0.65, 0.55
"""Correlation of the replies of two runs to one prompt: of one arm, of two arms, of an arm and its start.

In the pocket study with four seeds (docs/log.md, 2026-11-28) they are 0.65 to 0.82, 0.64 to 0.81, and 0.14 to
0.85 over abilities: training moves some abilities much further from the start than others.
"""
ASSUMED_SEED_SD = 0.02
"""Standard deviation between training runs of an arm where nothing was measured.

In the pocket study it is 0.012 on vision and on reasoning, and 0.023 on vision-to-reasoning.
"""
COLUMNS = (
    "task", "ability", "metric", "arm", "against", "seed", "n", "num_seeds", "num_seeds_against", "num_clusters",
    "seed_degrees", "prompt_error", "seed_error", "residual_error", "seed_weight", "trained",
    "mean", "mean_against",
)  # fmt: skip
"""Columns of `comparison.csv` that are read."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What varies in one ability of one task; variances of values between 0 and 1."""

    label: str
    kinds: dict[str, Components]
    """Kind of comparison -> its variances."""
    num_prompts: int | None = None
    """Of the measurement; None if the variances are assumed."""
    seed_sd: Estimate | None = None
    """Measured standard deviation between runs with its interval."""
    seed_degrees: int = 0
    correlations: dict[str, float] = field(default_factory=dict)
    """Kind of two runs (`SAME`, `ARMS`, `START`) -> measured correlation of their replies to one prompt."""

    def given(
        self,
        *,
        seed_sd: float | None = None,
        residual_sd: float | None = None,
        prompt_sd: float | None = None,
        start_prompt_sd: float | None = None,
    ) -> "Variation":
        """Returns the same with the given standard deviations; None keeps a value."""
        prompts = {ARMS: prompt_sd, START: start_prompt_sd}
        kinds = {}
        for kind, own in self.kinds.items():
            changes = {"seed": seed_sd, "residual": residual_sd, "prompts": prompts[kind]}
            kinds[kind] = replace(own, **{name: sd**2 for name, sd in changes.items() if sd is not None})
        return replace(self, kinds=kinds, seed_sd=self.seed_sd if seed_sd is None else None)


def assumed_variation(*, seed_sd: float, base_rate: float) -> Variation:
    """Returns the variances of replies that are right or wrong.

    Args:
        seed_sd: standard deviation between the accuracies of training runs of one arm on all prompts there are.
        base_rate: share of right replies.
    """
    replies = base_rate * (1 - base_rate)
    residual = (1 - SAME_ARM) * replies
    prompts = {ARMS: 2 * (SAME_ARM - OTHER_ARM) * replies, START: (1 + SAME_ARM - 2 * WITH_START) * replies}
    return Variation(
        label="assumed",
        kinds={kind: Components(seed=seed_sd**2, residual=residual, prompts=own) for kind, own in prompts.items()},
    )


def measured_variations(table: "pd.DataFrame", *, metric: str, ability: str | None = None) -> list[Variation]:
    """Returns the variances of every ability of a comparison, in the order of its rows.

    Args:
        table: `comparison.csv` of eval.compare, with `COLUMNS`.
        metric: only rows of this metric.
        ability: only this ability; all by default.

    Raises:
        ValueError: for a table without the metric or the ability, or without a model with two seeds.
    """
    pooled = table[table["seed"].astype(str) == POOLED]
    for column, wanted in (("metric", metric), ("ability", ability)):
        known = list(dict.fromkeys(pooled[column]))
        if wanted is not None and wanted not in known:
            raise ValueError(f"no {column} {wanted!r}; expected one of {', '.join(known)}")
    own = pooled[(pooled["metric"] == metric) & (pooled["seed_degrees"] > 0) & (pooled["n"] > 0)]
    own = own[own["ability"] == ability] if ability is not None else own
    if own.empty:
        raise ValueError(
            "no model with two seeds or more, so nothing is known about the variance between training runs; give it "
            "as --seed-sd without --measured"
        )
    several = own["task"].nunique() > 1
    return [
        _measured(rows, label=f"{task} {name}" if several else str(name))
        for (task, name), rows in own.groupby(["task", "ability"], sort=False)
    ]


def _measured(rows: "pd.DataFrame", *, label: str) -> Variation:
    started = ARM if (rows["trained"] == ARM).any() else AGAINST
    groups = {ARMS: rows[rows["trained"] == BOTH], START: rows[rows["trained"] == started]}
    groups = {kind: own for kind, own in groups.items() if len(own)}
    # A row per model with seeds: against another start, its runs are the same.
    of_seeds = groups[START].drop_duplicates("arm" if started == ARM else "against") if START in groups else rows
    weights = of_seeds["seed_degrees"] / of_seeds["seed_degrees"].sum()
    total = float((of_seeds["seed_error"] ** 2 / of_seeds["seed_weight"] * weights).sum())
    residual = float((of_seeds["residual_error"] ** 2 / of_seeds["seed_weight"] * of_seeds["n"] * weights).sum())
    num_prompts, degrees = int(rows["n"].max()), _num_degrees(rows)
    seed_sd = _seed_sd(total, residual / num_prompts, degrees)
    return Variation(
        label=label,
        kinds={
            kind: Components(
                seed=seed_sd.estimate**2,
                residual=residual,
                prompts=float((own["prompt_error"] ** 2 * own["n"]).mean()),
                prompts_per_cluster=float((own["n"] / own["num_clusters"]).mean()),
            )
            for kind, own in groups.items()
        },
        num_prompts=num_prompts,
        seed_sd=seed_sd,
        seed_degrees=degrees,
        correlations=_correlations(groups, residual),
    )


def _correlations(groups: "dict[str, pd.DataFrame]", residual: float) -> dict[str, float]:
    """Returns the correlations of replies from which `assumed_variation` would give these variances."""
    rates = {kind: own[["mean", "mean_against"] if kind == ARMS else ["mean"]] for kind, own in groups.items()}
    replies = float(np.mean([value * (1 - value) for own in rates.values() for value in own.to_numpy(float).ravel()]))
    prompts = {kind: float((own["prompt_error"] ** 2 * own["n"]).mean()) for kind, own in groups.items()}
    if replies == 0:  # every model answers every prompt alike
        return {}
    same = 1 - residual / replies
    found = {SAME: same}
    if ARMS in prompts:
        found[ARMS] = same - prompts[ARMS] / (2 * replies)
    if START in prompts:
        found[START] = (1 + same - prompts[START] / replies) / 2
    return found


def _num_degrees(rows: "pd.DataFrame") -> int:
    """Returns the degrees of freedom of the seeds of all models together, each model once."""
    seeds = dict(zip(rows["against"], rows["num_seeds_against"], strict=True))
    seeds |= dict(zip(rows["arm"], rows["num_seeds"], strict=True))
    return int(sum(number - 1 for number in seeds.values()))


def _seed_sd(total: float, of_prompts: float, degrees: int) -> Estimate:
    """Returns the standard deviation between runs beyond what the prompts explain, with its chi-squared interval."""
    from scipy.special import chdtri

    tail = (1 - CONFIDENCE) / 2
    ends = (total * degrees / float(chdtri(degrees, share)) for share in (tail, 1 - tail))
    return Estimate(*(math.sqrt(max(value - of_prompts, 0.0)) for value in (total, *ends)))
