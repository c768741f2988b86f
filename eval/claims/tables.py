"""What does each difference imply for its claim? The rows of `claims.csv` and `statements.csv`, with verdicts.

Columns without prefix are the paper's own, tested as two independent samples; `measured_…` are measured here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.claims.measured import Measured
from eval.claims.published import (
    STATEMENTS,
    Claim,
    Difference,
    list_claims,
    read_published,
    sample_size,
    separate_samples,
)
from eval.statistics.differences import CHECKPOINTS, TRAINING
from eval.statistics.intervals import holm
from eval.statistics.pooled import Contrast
from eval.statistics.power import detectable, num_needed

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
MARGIN = 0.05
"""Differences within five points count as equivalent."""
SUPPORTED, CONTRADICTED, UNDECIDED, UNMEASURED = "supported", "contradicted", "not decidable at this n", "not measured"
KEYS = ["table", "recipe", "ability", "model", "against"]
MEASURES = {
    "share": "share", "share_against": "share_against", "n": "n", "difference": "estimate",
    "standard_error": "standard_error", "low": "low", "high": "high", "p": "p",
    "equivalent_within": "equivalent_within", "prompt_error": "prompt_error", "num_clusters": "num_clusters",
    "seed_error": "seed_error", "seed_degrees": "seed_degrees", "scope": "scope",
}  # fmt: skip
"""Column -> field of `Difference`."""
MEASURED = "measured_"


def verdict(expected: int, estimate: float, equivalent_within: float, p_corrected: float) -> str:
    """Returns the verdict of a difference on a claim.

    Args:
        expected: sign of the claimed difference; 0 for no relevant difference.
        estimate: of the difference.
        equivalent_within: difference within which the two are equivalent (two one-sided tests at 5 %).
        p_corrected: two-sided p-value of no difference, corrected within its family; NaN if not measured.
    """
    if np.isnan(p_corrected):
        return UNMEASURED
    if p_corrected < LEVEL:
        return SUPPORTED if expected and np.sign(estimate) == expected else CONTRADICTED
    if expected == 0:
        return SUPPORTED if equivalent_within < MARGIN else UNDECIDED
    return UNDECIDED


def claim_table(num_samples: int, measured: Sequence[Measured]) -> "pd.DataFrame":
    """Returns one row per comparison of the paper's tables.

    Args:
        num_samples: prompts behind each of the paper's ability scores.
        measured: the measured tables; if empty, the paper's own numbers are judged.

    Raises:
        ValueError: if two of the measured tables contain the same claim.
    """
    import pandas as pd

    shares = read_published()
    rows = []
    for claim in list_claims(shares):
        n = sample_size(claim.ability, num_samples)
        place = claim.table, claim.recipe, claim.ability
        own = separate_samples(shares[*place, claim.model], shares[*place, claim.against], n, n)
        row = {name: getattr(claim, name) for name in KEYS} | _columns(own, "")
        row |= {"detectable": detectable(own.standard_error), "num_needed": num_needed(own.share, own.share_against)}
        found = _measurement(claim, measured)
        rows.append(row | _columns(found, MEASURED) | {"measured_test": found.test if found else ""})
    table = pd.DataFrame(rows)
    _correct(table, "", [*KEYS])
    _correct(table, MEASURED, ["table", "ability", "model", "against", "measured_share", "measured_share_against"])
    table["exceeds_noise"] = table["p_holm"] < LEVEL
    table["verdict"] = _verdicts(table, np.sign(table["difference"]), MEASURED if measured else "")
    return table


def _measurement(claim: Claim, measured: Sequence[Measured]) -> Difference | None:
    """Returns the difference from the first table that measured a claim."""
    return next((found for source in measured if (found := source.difference(claim)) is not None), None)


def _columns(difference: Difference | None, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}{column}": _absent(name) if difference is None else getattr(difference, name)
        for column, name in MEASURES.items()
    }


def _absent(name: str) -> object:
    return "" if name == "scope" else float("nan")


def _correct(table: "pd.DataFrame", prefix: str, distinct: list[str]) -> None:
    """Adds Holm's p-values within each of the paper's tables; tests that agree in these columns count once."""
    tests = table.dropna(subset=[f"{prefix}p"]).drop_duplicates(distinct)
    corrected: dict[tuple[object, ...], float] = {}
    for _, family in tests.groupby("table"):
        values = holm(family[f"{prefix}p"].to_numpy(float))
        corrected |= dict(zip(family[distinct].itertuples(index=False, name=None), values, strict=True))
    keys = table[distinct].itertuples(index=False, name=None)
    table[f"{prefix}p_holm"] = [corrected.get(key, float("nan")) for key in keys]


def _verdicts(table: "pd.DataFrame", expected: Sequence[float], prefix: str) -> list[str]:
    columns = [table[f"{prefix}{name}"] for name in ("difference", "equivalent_within", "p_holm")]
    return [verdict(int(sign), *values) for sign, *values in zip(expected, *columns, strict=True)]


def statement_table(claims: "pd.DataFrame", *, measured: Sequence[Measured]) -> "pd.DataFrame":
    """Returns one row per statement: the mean difference over the comparisons it covers.

    The prompts of two abilities are independent. Their training runs are the same: the seeds' part of the variance is
    that of each run's mean over the abilities (`eval/statistics/pooled.py`). Published differences have no seeds.
    """
    import pandas as pd

    rows = []
    for statement in STATEMENTS:
        covered = claims[
            (claims["model"] == statement.model)
            & (claims["against"] == statement.against)
            & claims["ability"].isin(statement.abilities)
        ]
        # Models without a recipe have the same numbers for every recipe; count them once.
        own = covered.dropna(subset=["measured_p"]).drop_duplicates(
            ["ability", "measured_share", "measured_share_against"]
        )
        if set(own["ability"]) != set(statement.abilities):
            own = own.iloc[:0]  # incomplete measurements cannot support it
        expected = {1: "better", -1: "worse", 0: "no different"}[statement.expected]
        head = {"statement": statement.words, "model": statement.model, "against": statement.against}
        head |= {"abilities": ", ".join(statement.abilities), "expected": expected}
        seeds = _seeds(own, measured)
        rows.append(head | _mean(covered, "", (0.0, 0)) | _mean(own, MEASURED, seeds))
    table = pd.DataFrame(rows)
    for prefix in ("", MEASURED):
        tested = table[f"{prefix}p"].notna()
        table[f"{prefix}p_holm"] = float("nan")
        table.loc[tested, f"{prefix}p_holm"] = holm(table.loc[tested, f"{prefix}p"].to_numpy(float))
    table["verdict"] = _verdicts(table, [statement.expected for statement in STATEMENTS], MEASURED if measured else "")
    return table


def _seeds(rows: "pd.DataFrame", measured: Sequence[Measured]) -> tuple[float, int]:
    """Returns the seeds' part of the variance of the rows' mean difference, and its degrees of freedom."""
    variance, num_degrees = 0.0, 0
    for recipe, own in rows.groupby("recipe", sort=False):
        claims = [
            Claim(row["table"], str(recipe), row["ability"], row["model"], row["against"]) for _, row in own.iterrows()
        ]
        if len(own) == 1:
            row = own.iloc[0]
            variance += (row[f"{MEASURED}seed_error"] / len(rows)) ** 2
            num_degrees += int(row[f"{MEASURED}seed_degrees"])
            continue
        source = next(found for found in measured if found.difference(claims[0]) is not None)
        sides = source.seed_means(claims)
        degrees = sum(len(side) - 1 for side in sides)
        if not degrees:
            continue
        squares = sum(float(np.sum((side - side.mean()) ** 2)) for side in sides)
        # A model with a single score is one run of several, or exists once; then its seeds add nothing.
        runs = [len(side) for side in sides if len(side) > 1]
        variance += (len(own) / len(rows)) ** 2 * squares / degrees * sum(1 / number for number in runs)
        num_degrees += degrees
    return variance, num_degrees


def _mean(rows: "pd.DataFrame", prefix: str, seeds: tuple[float, int]) -> dict[str, Any]:
    names = ("difference", "standard_error", "low", "high", "p", "equivalent_within")
    if not len(rows):
        empty = {f"{prefix}{name}": float("nan") for name in names}
        return {f"{prefix}num_comparisons": 0, **empty, f"{prefix}scope": ""}
    found = Contrast(
        estimate=np.array([rows[f"{prefix}difference"].mean()]),
        n=np.array([rows[f"{prefix}n"].sum()]),
        prompts=np.array([(rows[f"{prefix}prompt_error"] ** 2).sum() / len(rows) ** 2]),
        seeds=np.array([seeds[0]]),
        num_clusters=np.array([rows[f"{prefix}num_clusters"].min()]),
        num_degrees=seeds[1],
        residual=np.zeros(1),
    )
    interval = found.one()
    values = (
        interval.estimate, interval.standard_error, interval.low, interval.high, float(found.p()[0]),
        abs(interval.estimate) + float(found.half_width(2 * LEVEL)[0]),
    )  # fmt: skip
    return {
        f"{prefix}num_comparisons": len(rows),
        **{f"{prefix}{name}": value for name, value in zip(names, values, strict=True)},
        f"{prefix}scope": TRAINING if seeds[1] else CHECKPOINTS,
    }
