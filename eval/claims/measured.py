"""Which of the paper's comparisons were measured? Reads tables of `eval.compare` and maps them to the paper's names.

A model is recognised by its name: `sft` and `in` are the paper's IN, `rl` and `full` its RL, `in-rl-rl` or
`sft:full:full` its IN:RL:RL, `freeze-mid` or `frozen-mid` its run with frozen mid layers. If there is a
`comparison.csv` in the same folder as the scores, its paired test is quoted with its corrected p-value, so that a
difference has the same one everywhere. Otherwise the scores are compared as two independent samples. The two vision
abilities are used only by the paper's definition, never as plain accuracy; for reasoning both are the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.claims.published import BENCHMARK_SIZES, BRIDGE, REASONING, VISION, Claim, Difference, separate_samples
from eval.compare.scope import read_comparison
from eval.statistics.differences import POOLED
from eval.statistics.pairing import ABILITY, ACCURACY
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

WORDS = {"sft": "in", "full": "rl", "frozen": "freeze"}
"""Names used here -> the paper's names."""
ABILITY_TASKS = {VISION: "mathvista", BRIDGE: "mathvista", REASONING: "math500"}
SCORE_COLUMNS = {ACCURACY: ("accuracy", "n"), ABILITY: ("ability_score", "num_ability")}
"""Metric -> its columns in `scores.csv`: the share and its n."""


@dataclass(frozen=True)
class Measured:
    """The tables of one comparison, with the paper's names."""

    recipe: str | None
    """The recipe of the paper that they reproduce; None for other models, which are compared with every recipe."""
    scores: "pd.DataFrame"
    comparison: "pd.DataFrame | None"

    def difference(self, claim: Claim) -> Difference | None:
        """Returns the measured difference for a claim; None if it was not measured."""
        if self.recipe not in (None, claim.recipe):
            return None
        return self._paired(claim) or self._separate(claim)

    def seed_squares(self, claims: Sequence[Claim]) -> tuple[float, int, list[int]]:
        """Returns how the runs' mean scores over the abilities of several claims differ between seeds.

        Returns:
            The sum of squares of both models, its degrees of freedom, and the number of runs of each model that has
            several; no degree of freedom if there is no score of each seed on each ability.
        """
        squares, degrees, runs = 0.0, 0, []
        for name in ("model", "against"):
            by_seed: dict[str, list[float]] = {}
            for claim in claims:
                for seed, score in self._scores_by_seed(claim, getattr(claim, name)):
                    by_seed.setdefault(seed, []).append(score)
            means = np.array([np.mean(own) for own in by_seed.values() if len(own) == len(claims)])
            if len(means) > 1:
                squares += float(np.sum((means - means.mean()) ** 2))
                degrees += len(means) - 1
                runs.append(len(means))
        return squares, degrees, runs

    def _scores_by_seed(self, claim: Claim, model: str) -> list[tuple[str, float]]:
        rows = _rows_of(self.scores, claim)
        for metric in _metrics(claim):
            share, size = SCORE_COLUMNS[metric]
            if {share, size} <= set(rows.columns):
                own = rows[(rows["model"] == model) & (rows[size] > 0)]
                if len(own):
                    means = own.groupby(own["seed"].fillna("").astype(str))[share].mean()
                    return [(str(seed), float(mean)) for seed, mean in means.items()]
        return []

    def _paired(self, claim: Claim) -> Difference | None:
        if self.comparison is None:
            return None
        rows = _rows_of(self.comparison, claim)
        for metric in _metrics(claim):
            for model, against, sign in ((claim.model, claim.against, 1), (claim.against, claim.model, -1)):
                own = rows[(rows["metric"] == metric) & (rows["arm"] == model) & (rows["against"] == against)]
                if len(own) == 1:
                    row = own.iloc[0]
                    ends = sorted((sign * row["low"], sign * row["high"]))
                    means = (row["mean"], row["mean_against"])[::sign]
                    return Difference(
                        share=means[0],
                        share_against=means[1],
                        n=int(row["n"]),
                        estimate=sign * row["difference"],
                        low=ends[0],
                        high=ends[1],
                        standard_error=row["standard_error"],
                        p=row["p"],
                        test=str(row["test"]),
                        scope=row["scope"],
                        num_seeds=int(row[["num_seeds", "num_seeds_against"]].max()),
                        p_holm=row["p_holm"],
                        num_tests=int(row["num_tests"]),
                        equivalent_within=row["equivalent_within"],
                        prompt_error=row["prompt_error"],
                        seed_error=row["seed_error"],
                        num_clusters=int(row["num_clusters"]),
                        seed_degrees=int(row["seed_degrees"]),
                    )
        return None

    def _separate(self, claim: Claim) -> Difference | None:
        rows = _rows_of(self.scores, claim)
        for metric in _metrics(claim):
            share, size = SCORE_COLUMNS[metric]
            if not {share, size} <= set(rows.columns):
                continue
            sides = []
            for model in (claim.model, claim.against):
                own = rows[(rows["model"] == model) & (rows[size] > 0)].dropna(subset=[share])
                if len(own):
                    # Seeds answer the same prompts: they make the share more precise but do not add prompts.
                    num_prompts = int(own.groupby(["task", "ability"])[size].min().sum())
                    sides.append(((own[share] * own[size]).sum() / own[size].sum(), num_prompts))
            if len(sides) == 2:
                (first, n), (second, n_against) = sides
                return separate_samples(first, second, n, n_against)
        return None


def canonical_model(name: str) -> str:
    """Returns a model's name as in `published.csv`."""
    return "-".join(WORDS.get(word, word) for word in re.split(r"[^a-z0-9]+", name.lower()) if word)


def split_recipe(text: str) -> tuple[str | None, Path]:
    """Parses `FILE` or `RECIPE=FILE`."""
    recipe, separator, name = text.rpartition("=")
    return (recipe if separator else None), Path(name)


def read_measured(text: str, recipes: list[str]) -> Measured:
    """Reads the tables given as `DIR/scores.csv`, or `RECIPE=DIR/scores.csv`.

    Raises:
        ValueError: if the recipe is unknown, or the table is missing or not a table of scores per model.
    """
    recipe, path = split_recipe(text)
    if recipe is not None and recipe not in recipes:
        raise ValueError(f"--scores {text}: the paper has no recipe {recipe!r}, only {', '.join(recipes)}")
    scores = read_table(path)
    wanted = ["model", "task", "ability", "n", "accuracy"]
    missing = [column for column in wanted if column not in scores.columns]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; expected the scores.csv that eval.compare writes")
    beside = path.with_name("comparison.csv")
    comparison = read_comparison(beside) if beside.is_file() else None
    return in_the_papers_words(recipe, scores, comparison)


def in_the_papers_words(recipe: str | None, scores: "pd.DataFrame", comparison: "pd.DataFrame | None") -> Measured:
    """Returns the tables with models and tasks renamed, and only the pooled comparisons."""
    if comparison is not None:
        comparison = _renamed(comparison[(comparison["seed"].astype(str) == POOLED) & (comparison["n"] > 0)])
    return Measured(recipe, _renamed(scores), comparison)


def _renamed(table: "pd.DataFrame") -> "pd.DataFrame":
    tasks = table["task"].astype(str).str.lower().str.replace(r"[^a-z0-9]", "", regex=True)
    models = {name: table[name].map(canonical_model) for name in ("model", "arm", "against") if name in table.columns}
    return table.assign(task=tasks, **models)


def _rows_of(table: "pd.DataFrame", claim: Claim) -> "pd.DataFrame":
    """Returns the rows of a claim's ability or benchmark, preferring the paper's own task if there are several."""
    if claim.ability in BENCHMARK_SIZES:
        return table[table["task"].str.startswith(claim.ability.lower())]
    own = table["ability"] == claim.ability
    named = own & table["task"].str.startswith(ABILITY_TASKS[claim.ability])
    return table[named if named.any() else own]


def _metrics(claim: Claim) -> tuple[str, ...]:
    if claim.ability in BENCHMARK_SIZES:
        return (ACCURACY,)
    return (ACCURACY, ABILITY) if claim.ability == REASONING else (ABILITY,)
