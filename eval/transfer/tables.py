"""What does training on one modality change on each? The rows of `transfer.csv` and `contrasts.csv`.

For a model that was trained on modality X, with d[Y] its difference to the start on modality Y:

    own               d[X]
    others            the mean of d[Y] over all other modalities Y, each counted equally
    own less others   own - others; zero if what was learned helps everywhere alike

*Pooled* rows are the mean over all models of a method that were trained on one modality. `rl less sft` compares the
models of both methods that were trained on the same modality. `eval/statistics/strata.py` has the intervals; all models
of a method help to estimate how much its training runs differ.

P-values are Holm-corrected within a family: one method and one question, over what was trained on (and evaluated on);
pooled rows apart.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from eval.statistics.differences import add_corrected
from eval.statistics.pooled import Contrast, Term
from eval.statistics.strata import Stratum, stratified
from eval.transfer.models import MIXED, RL, SFT, Answers

if TYPE_CHECKING:
    import pandas as pd

OWN, OTHERS, OWN_LESS_OTHERS = "own", "others", "own less others"
QUESTIONS = (OWN, OTHERS, OWN_LESS_OTHERS)
POOLED = "pooled"
RL_LESS_SFT = "rl less sft"
SMALLEST_WEIGHT = 1e-12
"""Coefficients below it have cancelled."""
CONTRAST_COLUMNS = (
    "method", "question", "trained_on", "num_modalities", "num_seeds", "family", "n", "difference", "standard_error",
    "low", "high", "p", "scope", "detectable", "equivalent_within", "prompt_error", "seed_error", "num_clusters",
    "seed_degrees", "p_holm", "low_holm", "high_holm",
)  # fmt: skip
"""Of `contrasts.csv`, also if no model was trained on one modality and it has no rows."""
LARGEST = 2.0
"""The largest difference between two differences of shares."""

Weights = Mapping[tuple[str, str], float]
"""Model and modality -> its coefficient."""
Row = dict[str, object]


def estimate(answers: Answers, weights: Weights) -> Contrast:
    """Returns the weighted sum of the models' means on the modalities."""
    weights = {place: weight for place, weight in weights.items() if abs(weight) > SMALLEST_WEIGHT}
    standing_in = _companions(answers, {model for model, _ in weights})
    strata = []
    for modality, clusters in answers.clusters.items():
        own = {model: weight for (model, place), weight in weights.items() if place == modality}
        if own:
            companions = {name: own[model] for name, model in standing_in.items() if model in own}
            terms, others = (
                {
                    name: Term(
                        coefficient=weight, values=answers.values[name][modality], trained=name in answers.seeded
                    )
                    for name, weight in coefficients.items()
                }
                for coefficients in (own, companions)
            )
            strata.append(Stratum(terms=terms, clusters=clusters, companions=others))
    return stratified(strata, shares=True)


def _companions(answers: Answers, involved: set[str]) -> dict[str, str]:
    """Returns models that help to estimate the variance between seeds, each with the model that it stands in for."""
    found: dict[str, str] = {}
    for model in sorted(involved & answers.trained.keys()):
        for name, trained in answers.trained.items():
            alike = trained.method == answers.trained[model].method and trained.on not in MIXED
            if alike and name not in involved and name not in found:
                found[name] = model
    return found


def transfer_table(answers: Answers) -> "pd.DataFrame":
    """Returns a row per model and modality: its difference to the start."""
    import pandas as pd

    rows: list[Row] = []
    for model, trained in answers.trained.items():
        for modality in answers.modalities:
            found = estimate(answers, {(model, modality): 1.0, (answers.start, modality): -1.0})
            rows.append(
                {
                    "method": trained.method,
                    "trained_on": trained.on,
                    "evaluated_on": modality,
                    "model": model,
                    "against": answers.start,
                    "num_seeds": answers.num_seeds(model),
                    "mean": _mean(answers, model, modality),
                    "mean_against": _mean(answers, answers.start, modality),
                    "family": f"{trained.method}, difference to {answers.start}",
                    **_tested(found),
                }
            )
    return add_corrected(pd.DataFrame(rows))


def contrast_table(answers: Answers) -> "pd.DataFrame":
    """Returns a row per method, question and modality trained on, and pooled ones."""
    import pandas as pd

    rows: list[Row] = []
    for method, models in _compared(answers):
        for question in QUESTIONS:
            family = f"{method}, {question}"
            chosen = {on: question_weights(answers, own, question) for on, own in models.items()}
            if len(models) > 1:
                chosen[POOLED] = mean_weights(list(chosen.values()))
            for on, weights in chosen.items():
                involved = {model for model, _ in weights if model != answers.start}
                rows.append(
                    {
                        "method": method,
                        "question": question,
                        "trained_on": on,
                        "num_modalities": len(models) if on == POOLED else 1,
                        "num_seeds": min(answers.num_seeds(model) for model in involved),
                        "family": f"{family}, {POOLED}" if on == POOLED else family,
                        **_tested(estimate(answers, weights)),
                    }
                )
    if not rows:
        return pd.DataFrame(columns=list(CONTRAST_COLUMNS))
    return add_corrected(pd.DataFrame(rows), largest=LARGEST)


def _compared(answers: Answers) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Yields each method, with the model and the one it is compared with for every modality trained on."""
    by_method: dict[str, dict[str, str]] = {}
    for model, trained in answers.trained.items():
        if trained.on not in MIXED:
            by_method.setdefault(trained.method, {})[trained.on] = model
    for method, models in by_method.items():
        yield method, {on: (model, answers.start) for on, model in models.items()}
    if RL in by_method and SFT in by_method:
        both = {on: (model, by_method[SFT][on]) for on, model in by_method[RL].items() if on in by_method[SFT]}
        if both:
            yield RL_LESS_SFT, both


def question_weights(answers: Answers, models: tuple[str, str], question: str) -> dict[tuple[str, str], float]:
    """Returns the coefficients of a question about a model and the one it is compared with.

    Args:
        models: the model, whose training names its own modality, and the model it is compared with.
    """
    model, against = models
    own = answers.trained[model].on
    share = -1.0 if question == OWN_LESS_OTHERS else 1.0
    found: dict[tuple[str, str], float] = {}
    for modality in answers.modalities:
        if (modality == own and question == OTHERS) or (modality != own and question == OWN):
            continue
        weight = 1.0 if modality == own else share / (len(answers.modalities) - 1)
        found[model, modality], found[against, modality] = weight, -weight
    return found


def mean_weights(weights: list[dict[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Returns the coefficients of the mean of several contrasts."""
    found: dict[tuple[str, str], float] = {}
    for own in weights:
        for place, weight in own.items():
            found[place] = found.get(place, 0.0) + weight / len(weights)
    return found


def _mean(answers: Answers, model: str, modality: str) -> float:
    return float(estimate(answers, {(model, modality): 1.0}).estimate[0])


def _tested(found: Contrast) -> Row:
    own = found.one()
    return {
        "n": int(found.n[0]),
        "difference": own.estimate,
        "standard_error": own.standard_error,
        "low": own.low,
        "high": own.high,
        "p": float(found.p()[0]),
        "scope": found.scope,
        "detectable": float(found.detectable()[0]),
        "equivalent_within": found.equivalent_within(),
        "prompt_error": float(found.prompts[0] ** 0.5),
        "seed_error": float(found.seeds[0] ** 0.5),
        "num_clusters": int(found.num_clusters[0]),
        "seed_degrees": found.num_degrees,
    }
