"""Does RL sharpen? Its gain in pass@1, the share of the start's gap that it closes, and on which prompts it gains."""

from typing import Any

from analyze.modalities.answers import Answer, contrast_sentence, evidence_words, whole_share
from analyze.modalities.inputs import Evidence, on_all
from analyze.report.parts import Figure, Part, Section, Table
from eval.compare.scope import LEVEL, about
from eval.display.forest import Mark, Panel, draw_forest
from eval.display.formatting import NOTHING, change, format_difference, listed, points, probability
from eval.support.gaps import SOMETIMES_LESS_NEVER
from eval.support.tables import ALL


def sharpening_section(evidence: Evidence, answers: list[Answer]) -> Section:
    """Returns the first half of the third axis: where RL gains."""
    section = Section(
        anchor="sharpening",
        question="Sharpening: does RL turn support into answers?",
        lead="The gap is the start's pass@K less its pass@1: what a model gains that answers at once whatever it finds "
        "in K samples.",
    )
    section.parts.append(_gain_part(evidence, answers))
    if "bins" in evidence.tables:
        section.parts.append(_bin_part(evidence))
    else:
        section.gaps.append("gains by the start's pass rate: no bins.csv")
    return section


def _gain_part(evidence: Evidence, answers: list[Answer]) -> Part:
    gaps = evidence.tables["gaps"]
    models = evidence.trained()
    own = gaps[(gaps["task"] != ALL) & gaps["model"].isin(models)]
    sentence = contrast_sentence(evidence)
    helped = [
        f"{each.label} {change(each.row['gain'], each.row['low'], each.row['high'])}"
        for each in answers
        if each.row["p_holm"] < LEVEL
    ]
    panels = [
        Panel(
            title=evidence.label(place),
            rows={
                str(row["model"]): [_mark(row)]
                for _, row in own[_is_at(own, place)].iterrows()
            },
        )
        for place in evidence.places
    ]  # fmt: skip
    return Part(
        title="Gain and gap",
        answer=sentence
        or f"Significant gains in pass@1: {listed(helped) or 'none'}. Not answered: does RL gain more where the start "
        "has support? That needs modalities with support and modalities without.",
        about=about(own["scope"]),
        what="Each model less the start in pass@1. The share of the gap closed has Fieller's interval, and is given "
        "where the gap lies above zero.",
        figures=[
            Figure(
                drawing=draw_forest(
                    panels, label="gain in pass@1, points", alt="Gain in pass@1 per model and modality"
                ),
                caption="Gain in pass@1 over the start, with 95 % intervals. Filled: significant after Holm's "
                "correction.",
            )
        ],
        tables=[
            Table(
                caption="Gains in points and shares of the gap closed, with 95 % intervals.",
                columns=["modality", "model", "start has", "n × seeds", "start's gap", "gain in pass@1",
                         "p, corrected", "gap closed"],
                rows=[_gain_cells(evidence, row) for _, row in own.iterrows()],
                num_words=3,
            )
        ],
        controls=[
            "Models trained on a modality without support, and on other modalities, are in the same table: a gain that "
            "they have too comes from format or answer frequencies, not from this modality's pictures."
        ],
        limits=[
            "pass@1 is a mean over samples at the temperature of the samples; greedy accuracy may differ. Not "
            "significant does not mean zero."
        ],
    )  # fmt: skip


def _is_at(table: Any, place: tuple[str, str, str]) -> Any:
    return (table["task"] == place[0]) & (table["ability"] == place[1]) & (table["modality"] == place[2])


def _mark(row: Any) -> Mark:
    return Mark(value=row["gain"], low=row["low"], high=row["high"], filled=bool(row["p_holm"] < LEVEL))


def _gain_cells(evidence: Evidence, row: Any) -> list[str]:
    closed = whole_share(row["gap_closed"], row["gap_closed_low"], row["gap_closed_high"])
    return [
        evidence.label((row["task"], row["ability"], row["modality"])), str(row["model"]), str(row["start_verdict"]),
        f"{int(row['n'])} × {int(row['num_seeds'])}",
        format_difference(row["start_gap"], row["start_gap_low"], row["start_gap_high"]),
        format_difference(row["gain"], row["low"], row["high"]), probability(row["p_holm"]), closed,
    ]  # fmt: skip


def _bin_part(evidence: Evidence) -> Part:
    bins = evidence.tables["bins"].astype({"bin": str})
    model = on_all(evidence.trained()) or next(iter(evidence.trained()), None)
    own = bins[(bins["model"] == model) & (bins["task"] != ALL)]
    pooled = bins[(bins["model"] == model) & (bins["task"] == ALL)]
    if pooled.empty:
        pooled = own
    rates = own[own["bin"] != SOMETIMES_LESS_NEVER]
    names = list(dict.fromkeys(map(str, rates["bin"])))
    panels = [
        Panel(
            title=evidence.label(place),
            rows={
                name: [_mark(row) for _, row in rates[_is_at(rates, place) & (rates["bin"] == name)].iterrows()]
                for name in names
            },
        )
        for place in evidence.places
    ]
    contrast = pooled[pooled["bin"] == SOMETIMES_LESS_NEVER]
    answer = "Undecided: no prompts that the start sometimes solves beside prompts that it never does."
    if not contrast.empty:
        row = contrast.iloc[0]
        more = row["p_holm"] < LEVEL and row["gain"] > 0
        said = "gains more" if more else "does not gain significantly more"
        answer = (
            f"{model} {said} on prompts that the start sometimes solves than on prompts that it never does: "
            f"{change(row['gain'], row['low'], row['high'])} ({evidence_words(row)})."
        )
    figures = [
        Figure(
            drawing=draw_forest(panels, label="gain in pass rate, points", alt=f"Gain of {model} by pass rate"),
            caption=f"Gain of {model} by the start's pass rate, prompt by prompt, with 95 % intervals. Filled: "
            "significant after Holm's correction.",
        )
    ] if len(rates) else []  # fmt: skip
    return Part(
        title="Gain by the start’s pass rate",
        answer=answer,
        about=about(own["scope"]) if len(own) else about([]),
        what="Prompts are sorted by the start's pass rate over half of its samples.",
        figures=figures,
        tables=[
            Table(
                caption=f"Gain of {model} in points.",
                columns=["modality", "start's pass rate", "n", "seeds", "start", "model", "gain", "p, corrected"],
                rows=[
                    [
                        evidence.label((row["task"], row["ability"], row["modality"])), str(row["bin"]),
                        f"{int(row['n'])}", f"{int(row['num_seeds'])}", _level(row["start_rate"]), _level(row["rate"]),
                        change(row["gain"], row["low"], row["high"]), probability(row["p_holm"]),
                    ]
                    for _, row in own.iterrows()
                ],
                num_words=2,
            )
        ],
        controls=[
            "The gain is measured against the start's other samples, which did not sort the prompts. Otherwise prompts "
            "that were lucky would seem to lose, and unlucky ones to gain, without any training."
        ],
        limits=["Half of the samples sort coarsely: the bin of pass rate 0 also holds prompts of low rates above it."],
    )  # fmt: skip


def _level(value: float) -> str:
    return NOTHING if value != value else points(value, sign=False)
