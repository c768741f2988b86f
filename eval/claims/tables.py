"""What does each difference imply for its claim? The rows of `claims.csv` and `statements.csv`, with verdicts.

Columns without prefix are the paper's own, tested as two independent samples; `measured_…` are measured here. A
measured difference that `comparison.csv` holds keeps the corrected p-value that it has there, also as a statement of
its own. Only what is tested here is corrected here: the paper's differences, differences of scores alone, and
statements that are means of several differences.
"""

from collections.abc import Sequence
from statistics import NormalDist
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
from eval.compare.scope import LEVEL, MARGIN
from eval.statistics.intervals import CONFIDENCE, holm
from eval.statistics.pooled import Contrast
from eval.statistics.power import detectable, num_needed

if TYPE_CHECKING:
    import pandas as pd

SUPPORTED, CONTRADICTED, UNDECIDED, UNMEASURED = "supported", "contradicted", "not decidable at this n", "not measured"
KEYS = ["table", "recipe", "ability", "model", "against"]
MEASURES = {
    "share": "share", "share_against": "share_against", "n": "n", "difference": "estimate",
    "standard_error": "standard_error", "low": "low", "high": "high", "p": "p",
}  # fmt: skip
"""Column -> field of `Difference`."""
MEASURED = "measured_"
PARTS = (
    "scope", "num_seeds", "p_holm", "num_tests", "equivalent_within", "prompt_error", "seed_error", "num_clusters",
    "seed_degrees",
)  # fmt: skip
"""Columns of measured differences only, and fields of `Difference`."""


def verdict(expected: int, estimate: float, equivalent_within: float, p_corrected: float) -> str:
    """Returns the verdict of a difference on a claim.

    Args:
        expected: sign of the claimed difference; 0 for no relevant difference.
        estimate: of the difference.
        equivalent_within: the two models are equal within this, by two one-sided tests.
        p_corrected: two-sided p-value of no difference, corrected within its family; NaN if not measured.
    """
    if np.isnan(p_corrected):
        return UNMEASURED
    if p_corrected < LEVEL:
        return SUPPORTED if expected and np.sign(estimate) == expected else CONTRADICTED
    return SUPPORTED if expected == 0 and equivalent_within < MARGIN else UNDECIDED


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
        row |= {
            "equivalent_within": own.equivalent_within,
            "detectable": detectable(own.standard_error),
            "num_needed": num_needed(own.share, own.share_against),
        }
        found = _measurement(claim, measured)
        parts = {f"{MEASURED}{name}": getattr(found, name) if found else None for name in PARTS}
        rows.append(row | _columns(found, MEASURED) | parts | {"measured_test": found.test if found else ""})
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
        f"{prefix}{column}": float("nan") if difference is None else getattr(difference, name)
        for column, name in MEASURES.items()
    }


def _correct(table: "pd.DataFrame", prefix: str, distinct: list[str]) -> None:
    """Adds Holm's p-values to tests without one, within each of the paper's tables.

    Tests that agree in these columns count once.
    """
    p_holm, num_tests = f"{prefix}p_holm", f"{prefix}num_tests"
    if p_holm not in table:
        table[p_holm] = float("nan")
    table[p_holm] = table[p_holm].astype(float)
    new = table[f"{prefix}p"].notna() & table[p_holm].isna()
    tests = table[new].drop_duplicates(distinct)
    corrected: dict[tuple[object, ...], tuple[float, int]] = {}
    for _, family in tests.groupby("table"):
        values = holm(family[f"{prefix}p"].to_numpy(float))
        keys = family[distinct].itertuples(index=False, name=None)
        corrected |= {key: (float(value), len(family)) for key, value in zip(keys, values, strict=True)}
    for place, key in zip(table.index[new], table.loc[new, distinct].itertuples(index=False, name=None), strict=True):
        table.loc[place, p_holm], table.loc[place, num_tests] = corrected[key]


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
        found = {f"{MEASURED}{name}": value for name, value in _measured_mean(own, measured).items()}
        rows.append(head | _mean(covered) | found)
    table = pd.DataFrame(rows)
    for prefix in ("", MEASURED):
        new = table[f"{prefix}p"].notna() & table[f"{prefix}p_holm"].isna()
        table.loc[new, f"{prefix}p_holm"] = holm(table.loc[new, f"{prefix}p"].to_numpy(float))
        table.loc[new, f"{prefix}num_tests"] = int(new.sum())
    table["verdict"] = _verdicts(table, [statement.expected for statement in STATEMENTS], MEASURED if measured else "")
    return table


def _mean(rows: "pd.DataFrame") -> dict[str, Any]:
    """Returns the mean of the paper's differences."""
    from scipy.stats import norm

    estimate = float(rows["difference"].mean())
    error = float(np.sqrt((rows["standard_error"] ** 2).sum())) / len(rows)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    p = 2 * float(norm.sf(abs(estimate) / error)) if error else float(estimate == 0)
    return {
        "num_comparisons": len(rows),
        "difference": estimate,
        "standard_error": error,
        "low": estimate - half,
        "high": estimate + half,
        "p": p,
        "p_holm": float("nan"),
        "num_tests": float("nan"),
        "equivalent_within": abs(estimate) + NormalDist().inv_cdf(CONFIDENCE) * error,
    }


def _seeds(rows: "pd.DataFrame", measured: Sequence[Measured]) -> tuple[float, int]:
    """Returns the seeds' part of the variance of the rows' mean difference, and its degrees of freedom.

    It comes from each seed's mean over the abilities. Without a score of each seed, the seeds' errors of the abilities
    are added as if they were always equal, which makes the interval too wide.
    """
    variance, num_degrees = 0.0, 0
    for recipe, own in rows.groupby("recipe", sort=False):
        claims = [
            Claim(row["table"], str(recipe), row["ability"], row["model"], row["against"]) for _, row in own.iterrows()
        ]
        source = next(found for found in measured if found.difference(claims[0]) is not None)
        squares, degrees, runs = source.seed_squares(claims)
        if degrees:
            own_variance = squares / degrees * sum(1 / number for number in runs)
        else:
            degrees = int(own[f"{MEASURED}seed_degrees"].min())
            own_variance = float(own[f"{MEASURED}seed_error"].mean()) ** 2 if degrees else 0.0
        variance += (len(own) / len(rows)) ** 2 * own_variance
        num_degrees += degrees
    return variance, num_degrees


def _measured_mean(rows: "pd.DataFrame", measured: Sequence[Measured]) -> dict[str, Any]:
    """Returns the mean of measured differences; of a single one its own numbers."""
    names = ("difference", "standard_error", "low", "high", "p", "p_holm", "num_tests", "equivalent_within")
    if len(rows) < 2:
        values = [rows.iloc[0][f"{MEASURED}{name}"] if len(rows) else float("nan") for name in names]
        about = [rows.iloc[0][f"{MEASURED}{name}"] if len(rows) else None for name in ("scope", "num_seeds")]
        return {"num_comparisons": len(rows), **dict(zip((*names, "scope", "num_seeds"), values + about, strict=True))}
    seeds, degrees = _seeds(rows, measured)
    prompts = float((rows["measured_prompt_error"].astype(float) ** 2).sum()) / len(rows) ** 2
    found = Contrast(
        estimate=np.array([rows["measured_difference"].mean()]),
        n=np.array([int(rows["measured_n"].sum())]),
        prompts=np.array([prompts]),
        seeds=np.array([seeds]),
        num_clusters=np.array([int(rows["measured_num_clusters"].min())]),
        num_degrees=degrees,
        residual=np.zeros(1),
    )
    own = found.one()
    return {
        "num_comparisons": len(rows),
        "difference": own.estimate,
        "standard_error": own.standard_error,
        "low": own.low,
        "high": own.high,
        "p": float(found.p()[0]),
        "p_holm": float("nan"),
        "num_tests": float("nan"),
        "equivalent_within": found.equivalent_within(),
        "scope": found.scope,
        "num_seeds": int(rows["measured_num_seeds"].min()),
    }
