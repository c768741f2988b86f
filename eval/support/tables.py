"""What do pass@k and the other metrics come to, and what do they say? The rows of `support.csv` and `changes.csv`.

With `--by modality` there is a row per modality, and one of all: the mean over tasks, abilities and modalities, each
counted equally. The runs of all models with seeds help to estimate how much seeds differ; their variance is taken as
equal (`eval/statistics/strata.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.compare.scope import LEVEL, MARGIN
from eval.statistics.intervals import add_holm
from eval.statistics.pooled import EQUIVALENCE_LEVEL, Contrast, Term, contrast
from eval.statistics.strata import Stratum, stratified
from eval.support.samples import SUPPORT, Group
from tracking.progress import progress

if TYPE_CHECKING:
    import pandas as pd

SHARPENED, WIDENED, NARROWED, NO_CHANGE = "sharpened", "widened", "narrowed", "not decidable"
FOUND, NONE = "support found", "no support"
ALL = "all"
"""Task, ability and modality of a mean over all of them."""

Row = dict[str, object]


def support_table(groups: Sequence[Group]) -> "pd.DataFrame":
    """Returns a row per model and metric."""
    import pandas as pd

    rows: list[Row] = []
    for part in progress(parts(groups), label="pass@k", unit="ability"):
        for name in part[0].models:
            found = estimate(part, {name: 1.0})
            metrics = part[0].metrics()
            own = [_head(part, name, metric, k) | columns(found, column) for column, (metric, k) in enumerate(metrics)]
            if part[0].modality is not None:
                for column in (place for place, (metric, _) in enumerate(metrics) if metric == SUPPORT):
                    own[column] |= {"p": float(found.p()[column]), "highest": highest(found, column)}
            rows += own
    table = pd.DataFrame(rows)
    return table if groups[0].modality is None else _with_verdicts(table)


def _with_verdicts(table: "pd.DataFrame") -> "pd.DataFrame":
    """Adds the verdict on each model's support, corrected over its tasks, abilities and modalities."""
    add_holm(table, "model", "k", table["task"] == ALL)
    table["verdict"] = ""
    for place in table.index[table["p"].notna()]:
        row = table.loc[place]
        table.loc[place, "verdict"] = support_verdict(row["value"], row["highest"], row["p_holm"])
    return table.drop(columns="highest")


def support_verdict(value: float, highest: float, p_holm: float) -> str:
    """Returns whether pass@K exceeds what guessing reaches.

    Args:
        value: pass@K less guessing.
        highest: upper end of its 90 % interval; below the margin, there is no relevant support.
        p_holm: two-sided p-value of no support.
    """
    if p_holm < LEVEL and value > 0:
        return FOUND
    return NONE if highest < MARGIN else NO_CHANGE


def change_table(groups: Sequence[Group], baseline: str) -> "pd.DataFrame":
    """Returns each model minus the baseline, on the prompts that count for both, and the verdict about it."""
    import pandas as pd

    rows: list[Row] = []
    for part in progress(parts(groups), label="differences in pass@k", unit="ability"):
        for name in part[0].models:
            if name == baseline:
                continue
            difference = estimate(part, {name: 1.0, baseline: -1.0})
            found = [
                {**_head(part, name, metric, k), "against": baseline}
                | columns(difference, column)
                | ({} if part[0].modality is None else _tests(difference, column))
                for column, (metric, k) in enumerate(part[0].metrics())
            ]
            said = verdict(found[0], found[part[0].num_samples - 1])
            rows += [{**row, "verdict": said} for row in found]
    return pd.DataFrame(rows)


def parts(groups: Sequence[Group]) -> list[Sequence[Group]]:
    """Returns what has rows of its own: every group, and with modalities all of them together."""
    found: list[Sequence[Group]] = [[group] for group in groups]
    alike = len({group.num_samples for group in groups}) == 1
    return [*found, groups] if groups[0].modality is not None and len(groups) > 1 and alike else found


def estimate(part: Sequence[Group], coefficients: Mapping[str, float]) -> Contrast:
    """Returns a contrast of models, a column per metric; over several groups their mean."""
    if part[0].modality is None:
        terms = [_term(part[0], name, weight) for name, weight in coefficients.items()]
        return contrast(terms, clusters=part[0].clusters, shares=True)
    return stratified(list(_strata(part, coefficients)), shares=True)


def _strata(part: Sequence[Group], coefficients: Mapping[str, float]) -> Iterator[Stratum]:
    for group in part:
        terms = {name: _term(group, name, weight / len(part)) for name, weight in coefficients.items()}
        companions = {name: _term(group, name, 1 / len(part)) for name in group.companions(coefficients)}
        yield Stratum(terms=terms, clusters=group.clusters, companions=companions)


def _term(group: Group, name: str, coefficient: float) -> Term:
    support = group.models[name]
    values = [support.values(metric, k or 0) for metric, k in group.metrics()]
    return Term(coefficient=coefficient, values=np.stack(values, axis=-1), trained=support.trained)


def verdict(at_one: Row, at_all: Row) -> str:
    """Returns what the differences at k = 1 and at k = K say together, by their intervals."""
    low = float(at_one["low"])  # type: ignore[arg-type]
    low_all, high_all = (float(at_all[end]) for end in ("low", "high"))  # type: ignore[arg-type]
    if low_all > 0:
        return WIDENED
    if high_all < 0:
        return SHARPENED if low > 0 else NARROWED
    return f"better at k = 1, at k = {at_all['k']} {NO_CHANGE}" if low > 0 else NO_CHANGE


def _head(part: Sequence[Group], name: str, metric: str, k: int | None) -> Row:
    return {
        **place_of(part), "model": name, "num_seeds": len(part[0].models[name].seeds),
        "num_samples": part[0].num_samples, "metric": metric, "k": k,
    }  # fmt: skip


def place_of(part: Sequence[Group]) -> Row:
    """Returns the columns that name a group, or all groups."""
    if len(part) > 1:
        return {"task": ALL, "ability": ALL, "modality": ALL}
    group = part[0]
    modality = {} if group.modality is None else {"modality": group.modality}
    return {"task": group.task, "ability": group.ability, **modality}


def columns(found: Contrast, column: int = 0) -> Row:
    """Returns a contrast's estimate with its interval."""
    own = found.one(column)
    return {
        "n": int(found.n[column]),
        "value": own.estimate,
        "standard_error": own.standard_error,
        "low": own.low,
        "high": own.high,
        "scope": found.scope,
    }


def _tests(found: Contrast, column: int) -> Row:
    return {"p": float(found.p()[column]), "equivalent_within": found.equivalent_within(column)}


def highest(found: Contrast, column: int = 0) -> float:
    """Returns the upper end of the 90 % interval."""
    return float(found.estimate[column] + found.half_width(EQUIVALENCE_LEVEL)[column])
