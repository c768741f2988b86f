"""Comparisons of models with planted variances between runs and prompts, on drawn replies that are right or wrong."""

import numpy as np
import pandas as pd

from eval.compare.command import COLUMNS
from eval.statistics.differences import add_corrected, compare_group
from eval.statistics.pairing import ACCURACY, Answers, Group

SHARED, OWN, SEED_SD = 0.2, 0.1, 0.03
"""Half-widths of the uniform rates of right replies, of all models together and of each; between training runs."""


def comparison(
    seeds: dict[str, int],
    *,
    n: int,
    seed: int,
    seed_sd: float = SEED_SD,
    clusters: np.ndarray | None = None,
    reference: str | None = "full",
) -> pd.DataFrame:
    """Returns comparison.csv of models with so many seeds, 0 for a model that exists once, on drawn replies."""
    rng = np.random.default_rng(seed)
    shared = rng.uniform(-SHARED, SHARED, n)
    answers = {}
    for name, num_seeds in seeds.items():
        rates = 0.5 + shared + rng.uniform(-OWN, OWN, n) + rng.normal(0, seed_sd, (max(num_seeds, 1), 1))
        accuracy = (rng.random(rates.shape) < rates).astype(float)
        names = tuple(range(num_seeds)) if num_seeds else (None,)
        answers[name] = Answers(names, accuracy, np.full_like(accuracy, np.nan), np.ones(accuracy.shape, bool))
    group = Group("test", "vision", tuple(map(str, range(n))), 1, clusters, answers)
    rows = compare_group(group, [ACCURACY], baseline="sft", reference=reference)
    return add_corrected(pd.DataFrame(rows).reindex(columns=list(COLUMNS)))
