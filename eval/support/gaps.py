"""How much of the start's gap does training close, and on which prompts does it gain? `gaps.csv` and `bins.csv`.

The *gap* of the start is its pass@K - pass@1: what a model would gain that is always right where the start is right
once in K. The share of it that a model closes,

    (pass@1 of the model - pass@1 of the start) / (pass@K of the start - pass@1 of the start)

has Fieller's interval (`eval/statistics/pooled.py`), if the gap lies above zero by its own interval.

Rows `with support` and `without support` are means over the modalities with that verdict on the start's support, and
`with less without` is their difference. Known limit: the samples that decide the verdict also give the start's pass@1.
A start that was lucky on a modality is more often found to have support there, and then seems to gain less. This
lowers the difference. In simulated studies of six modalities, K = 8 and no gain at all, it was -1.0 points on average
with 150 prompts per modality and clear support in half of them (81 studies with both verdicts), and -1.3 points with
300 prompts and weak support of several strengths (26 studies). It had p < 5 % in 6 % and 15 % of them, always below
zero. So a positive difference does not come from this choice; a negative one of a few points may.

`bins.csv` divides the prompts by the start's pass rate. A prompt that was right by chance too often looks worse later,
without any training. So the rate that sorts a prompt comes from the start's samples with even numbers, and its gain is
measured against those with odd numbers. A bin with fewer than 10 prompts has no row.

P-values are Holm-corrected over all models: those of the modalities together, and those of every summary apart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from eval.statistics.intervals import Estimate, add_holm
from eval.statistics.pooled import Contrast, Term, fieller
from eval.statistics.strata import Stratum, stratified
from eval.support.samples import GAP, GUESSING, PASS, Group, Support
from eval.support.tables import ALL, FOUND, NONE, Row, columns, parts, place_of

if TYPE_CHECKING:
    import pandas as pd

WITH, WITHOUT, DIFFERENCE = "with support", "without support", "with less without"
"""Rows over the modalities in which the start's support was found, or shown to be none, and of their difference."""
BIN_COLUMNS = (
    "task", "ability", "modality", "model", "against", "num_seeds", "num_samples", "bin", "start_rate", "rate", "n",
    "gain", "standard_error", "low", "high", "scope", "p", "equivalent_within",
)  # fmt: skip
MIN_IN_BIN = 10
"""Fewer prompts give intervals of many times the gain."""
NEVER, ALWAYS, SOMETIMES_LESS_NEVER = "0", "1", "sometimes less never"
BINS: dict[str, Callable[[Float[np.ndarray, " n"]], Bool[np.ndarray, " n"]]] = {
    NEVER: lambda rate: rate == 0,
    "(0, 0.5]": lambda rate: (rate > 0) & (rate <= 0.5),
    "(0.5, 1)": lambda rate: (rate > 0.5) & (rate < 1),
    ALWAYS: lambda rate: rate == 1,
}
"""Name -> which of the start's pass rates are in it."""

Values = Callable[[Support], Float[np.ndarray, "seeds n"]]
"""What each prompt counts for."""


def gap_table(groups: Sequence[Group], support: "pd.DataFrame", baseline: str) -> "pd.DataFrame":
    """Returns a row per modality and model: the start's gap, the gain, and the share of the gap that it closes.

    Args:
        support: rows of `support.csv`, with the verdict on the start's support.
    """
    import pandas as pd

    verdicts = [_verdict_on(group, support, baseline) for group in groups]
    rows: list[Row] = []
    for name in groups[0].models:
        if name == baseline:
            continue
        for number, part in enumerate(parts(groups)):
            said = verdicts[number] if len(part) == 1 else ""
            rows.append(_row(part, place_of(part), name, baseline) | {"start_verdict": said})
        split = {
            label: [group for group, said in zip(groups, verdicts, strict=True) if said == wanted]
            for label, wanted in ((WITH, FOUND), (WITHOUT, NONE))
        }
        rows += [_row(part, _summary(label), name, baseline) for label, part in split.items() if part]
        if all(split.values()):
            signed = [(split[WITH], 1.0), (split[WITHOUT], -1.0)]
            found = _gain([(group, sign / len(part)) for part, sign in signed for group in part], name, baseline)
            rows.append(_head(groups[0], _summary(DIFFERENCE), name, baseline) | _gained(found))
    table = pd.DataFrame(rows)
    add_holm(table, table["modality"].where(table["modality"].isin([ALL, WITH, WITHOUT, DIFFERENCE]), ""))
    return table


def _verdict_on(group: Group, support: "pd.DataFrame", baseline: str) -> str:
    own = support[(support["model"] == baseline) & (support["verdict"] != "")]
    for column, value in place_of([group]).items():
        own = own[own[column] == value]
    return str(own.iloc[0]["verdict"])


def _summary(label: str) -> Row:
    return {"task": ALL, "ability": ALL, "modality": label}


def _head(group: Group, place: Row, name: str, baseline: str) -> Row:
    return {**place, "model": name, "against": baseline, "num_seeds": len(group.models[name].seeds),
            "num_samples": group.num_samples}  # fmt: skip


def _row(part: Sequence[Group], place: Row, name: str, baseline: str) -> Row:
    k = part[0].num_samples
    weighted = [(group, 1 / len(part)) for group in part]
    gap = _of(weighted, {baseline: (1.0, lambda own: own.values(GAP, k)), name: (0.0, _at_one)}).one()
    levels = {
        "start_pass_at_1": _at_one,
        "start_pass_at_k": lambda own: own.values(PASS, k),
        "start_guessing": lambda own: own.values(GUESSING, k),
    }
    closed = _closed(weighted, name, baseline, k)
    return {
        **_head(part[0], place, name, baseline),
        **{column: float(_of(weighted, {baseline: (1.0, own)}).estimate[0]) for column, own in levels.items()},
        "start_gap": gap.estimate,
        "start_gap_low": gap.low,
        "start_gap_high": gap.high,
        **_gained(_gain(weighted, name, baseline)),
        "gap_closed": None if closed is None else closed.estimate,
        "gap_closed_low": None if closed is None else closed.low,
        "gap_closed_high": None if closed is None else closed.high,
    }


def _gain(weighted: Sequence[tuple[Group, float]], name: str, baseline: str) -> Contrast:
    return _of(weighted, {name: (1.0, _at_one), baseline: (-1.0, _at_one)})


def _closed(weighted: Sequence[tuple[Group, float]], name: str, baseline: str, k: int) -> Estimate | None:
    def at(share: float) -> Contrast:
        def moved(own: Support) -> Float[np.ndarray, "seeds n"]:
            return own.values(PASS, 1) + share * own.values(GAP, k)

        return _of(weighted, {name: (1.0, _at_one), baseline: (-1.0, moved)})

    gap = _of(weighted, {baseline: (1.0, lambda own: own.values(GAP, k)), name: (0.0, _at_one)})
    return fieller(at, gap)


def _at_one(own: Support) -> Float[np.ndarray, "seeds n"]:
    return own.values(PASS, 1)


def _of(weighted: Sequence[tuple[Group, float]], models: Mapping[str, tuple[float, Values]]) -> Contrast:
    """Returns a contrast of models within groups, summed over the groups with their weights."""
    strata = []
    for group, weight in weighted:
        terms = {
            name: Term(
                coefficient=weight * coefficient,
                values=values(group.models[name])[..., None],
                # A model with no weight only says which prompts are used.
                trained=group.models[name].trained and coefficient != 0,
            )
            for name, (coefficient, values) in models.items()
        }
        seeded = [values for name, (_, values) in models.items() if terms[name].trained]
        companions = {
            name: Term(coefficient=weight, values=seeded[0](group.models[name])[..., None], trained=True)
            for name in (group.companions(models) if seeded else [])
        }
        strata.append(Stratum(terms=terms, clusters=group.clusters, companions=companions))
    return stratified(strata, shares=True)


def _gained(found: Contrast) -> Row:
    own = columns(found)
    return {
        "n": own["n"],
        "gain": own["value"],
        **{name: own[name] for name in ("standard_error", "low", "high", "scope")},
        "p": float(found.p()[0]),
        "equivalent_within": found.equivalent_within(),
    }


def bin_table(groups: Sequence[Group], baseline: str) -> "pd.DataFrame":
    """Returns a row per modality, model and bin: the gain over the start on the prompts of this bin."""
    import pandas as pd

    rows: list[Row] = []
    for name in groups[0].models:
        for part in parts(groups) if name != baseline else []:
            head = _head(part[0], place_of(part), name, baseline)
            chosen = {label: _bin(part, name, baseline, inside) for label, inside in BINS.items()}
            chosen[SOMETIMES_LESS_NEVER] = _sometimes_less_never(part, name, baseline)
            for label, strata in chosen.items():
                if not strata:
                    continue
                found = stratified(strata, shares=True)
                if found.n[0]:
                    levels = {} if label == SOMETIMES_LESS_NEVER else _levels(strata, name, baseline)
                    rows.append({**head, "bin": label, **levels, **_gained(found)})
    # With few prompts there may be no row at all; the table then still has its columns.
    table = pd.DataFrame(rows, columns=None if rows else list(BIN_COLUMNS))
    add_holm(table, table["bin"] == SOMETIMES_LESS_NEVER, table["task"] == ALL)
    return table


def _bin(
    part: Sequence[Group],
    name: str,
    baseline: str,
    inside: Callable[[Float[np.ndarray, " n"]], Bool[np.ndarray, " n"]],
    weight: float = 1.0,
) -> list[Stratum]:
    """Returns the prompts of all groups whose rate is inside a bin, as one stratum; none with too few prompts."""
    sorting = np.concatenate([_rate(group.models[baseline].halves[0]) for group in part])
    used = inside(sorting)
    if used.sum() < MIN_IN_BIN:
        return []
    clusters = _clusters(part)

    def term(model: str, coefficient: float, values: Values) -> Term:
        joined = np.concatenate([values(group.models[model]) for group in part], axis=1)
        return Term(coefficient=coefficient, values=joined[:, used, None], trained=part[0].models[model].trained)

    return [
        Stratum(
            terms={
                name: term(name, weight, _at_one),
                baseline: term(baseline, -weight, lambda own: own.halves[1]),
            },
            clusters=None if clusters is None else clusters[used],
            companions={other: term(other, weight, _at_one) for other in part[0].companions((name, baseline))},
        )
    ]


def _rate(halves: Float[np.ndarray, "seeds n"]) -> Float[np.ndarray, " n"]:
    known = np.isfinite(halves)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(known, halves, 0.0).sum(0) / known.sum(0))


def _clusters(part: Sequence[Group]) -> np.ndarray | None:
    """Returns the groups' clusters; the same cluster in two groups has one number."""
    numbers = [group.clusters for group in part if group.clusters is not None]
    return np.concatenate(numbers) if numbers else None


def _sometimes_less_never(part: Sequence[Group], name: str, baseline: str) -> list[Stratum]:
    sometimes = _bin(part, name, baseline, lambda rate: (rate > 0) & (rate < 1))
    never = _bin(part, name, baseline, BINS[NEVER], weight=-1.0)
    return [*sometimes, *never] if sometimes and never else []


def _levels(strata: Sequence[Stratum], name: str, baseline: str) -> Row:
    (own,) = strata
    return {
        column: float(np.nanmean(own.terms[model].values))
        for column, model in (("start_rate", baseline), ("rate", name))
    }
