"""When did RL help here? One row per modality: the start's support, RL's gain, and what they say together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyze.modalities.inputs import START, Evidence, Place, on_all, on_modality
from eval.compare.scope import LEVEL, MARGIN
from eval.display.formatting import MINUS, NOTHING, change, format_difference, listed, points, probability
from eval.support.gaps import DIFFERENCE, WITH, WITHOUT
from eval.support.samples import PASS
from eval.support.tables import ALL

if TYPE_CHECKING:
    import pandas as pd

HELPED, HURT, NO_GAIN, OPEN = "helped", "hurt", "no gain", "not decidable"
SPLIT = (WITH, WITHOUT, DIFFERENCE)
"""Modality of the rows of `gaps.csv` over modalities with and without support, and of their difference."""
WITHIN = f"{100 * MARGIN:.0f} points"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What RL did in one modality."""

    place: Place
    label: str
    model: str
    """The model that RL trained on this modality, or on all."""
    support: str
    """The verdict on the start's support."""
    verdict: str
    row: Any
    """The model's row of `gaps.csv`."""


def read_answers(evidence: Evidence) -> list[Answer]:
    """Returns an answer per task, ability and modality."""
    found = []
    for place in evidence.places:
        own = evidence.at("gaps", place)
        model = on_modality([name for name in evidence.trained() if name in set(own["model"])], place[2])
        if model is None:
            continue
        row = own[own["model"] == model].iloc[0]
        found.append(
            Answer(
                place=place, label=evidence.label(place), model=model, support=str(row["start_verdict"]),
                verdict=gain_verdict(row), row=row,
            )
        )  # fmt: skip
    return found


def gain_verdict(row: Any) -> str:
    """Returns what a gain in pass@1 says, by its corrected p-value and by two one-sided tests at the margin."""
    if row["p_holm"] < LEVEL:
        return HELPED if row["gain"] > 0 else HURT
    return NO_GAIN if row["equivalent_within"] <= MARGIN else OPEN


def headline(answers: list[Answer]) -> str:
    """Returns the answer of the page in a sentence."""
    if not answers:
        return "Undecided: no model that RL trained was sampled."
    parts = []
    for verdict, words in (
        (HELPED, "RL helped in"), (HURT, "it hurt in"), (NO_GAIN, f"it changed less than {WITHIN} in"),
        (OPEN, "it is not decidable in"),
    ):  # fmt: skip
        own = [f"{each.label} ({each.support})" for each in answers if each.verdict == verdict]
        if own:
            parts.append(f"{words} {listed(own)}")
        elif verdict == HELPED:
            parts.append("RL helped nowhere")
    counts = sum(each.verdict == HELPED for each in answers)
    return f"{counts} of {len(answers)}: {'; '.join(parts)}. In brackets: what pass@K says about the start."


def contrast_sentence(evidence: Evidence) -> str:
    """Returns whether RL gained more where the start has support; empty without modalities of both kinds."""
    gaps = evidence.tables["gaps"]
    own = gaps[gaps["task"] == ALL]
    model = on_all(evidence.trained()) or next(iter(evidence.trained()), None)
    rows = {name: own[(own["modality"] == name) & (own["model"] == model)] for name in SPLIT}
    if any(each.empty for each in rows.values()):
        return ""
    with_support, without, difference = (rows[name].iloc[0] for name in SPLIT)
    more = difference["p_holm"] < LEVEL and difference["gain"] > 0
    said = "gained more" if more else "did not gain significantly more"
    return (
        f"RL on all modalities ({model}) {said} where the start has support: "
        f"{_gain(with_support)} with support, {_gain(without)} without; difference {_gain(difference)} "
        f"({evidence_words(difference)})."
    )


def evidence_words(row: Any) -> str:
    """Returns the corrected p-value, n and the number of seeds."""
    return f"corrected p = {probability(row['p_holm'])}, n = {int(row['n'])}, {int(row['num_seeds'])} seeds"


def _gain(row: Any) -> str:
    return change(row["gain"], row["low"], row["high"])


def first_table(answers: list[Answer], evidence: Evidence) -> list[dict[str, str]]:
    """Returns the rows of the first screen as text."""
    rows = []
    for each in answers:
        row = each.row
        rows.append(
            {
                "modality": each.label,
                "one": points(row["start_pass_at_1"], sign=False),
                "all": points(row["start_pass_at_k"], sign=False),
                "guessing": points(row["start_guessing"], sign=False),
                "support": each.support,
                "model": each.model,
                "gain": format_difference(row["gain"], row["low"], row["high"]),
                "p": probability(row["p_holm"]),
                "closed": whole_share(*(row[f"gap_closed{end}"] for end in ("", "_low", "_high"))),
                "n": f"{int(row['n'])}",
                "seeds": f"{int(row['num_seeds'])}",
                "verdict": each.verdict,
                "css": {HELPED: "supported", HURT: "contradicted"}.get(each.verdict, "soft"),
            }
        )
    return rows


def whole_share(value: float, low: float, high: float) -> str:
    """Formats a share with its interval in whole percent: `61 % [51, 71]`."""
    if value != value:
        return NOTHING
    first, *ends = (f"{100 * each:.0f}".replace("-", MINUS) for each in (value, low, high))
    return f"{first} % [{', '.join(ends)}]"


def start_row(evidence: Evidence, place: Place, metric: str, k: int, model: str = START) -> "pd.Series | None":
    """Returns a row of `support.csv`; None if it is not there."""
    own = evidence.at("support", place)
    own = own[(own["model"] == model) & (own["metric"] == metric)]
    if metric == PASS:
        own = own[own["k"] == k]
    return None if own.empty else own.iloc[0]
