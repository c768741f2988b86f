"""Does the start have support? pass@1 and pass@K of every model, against what its guesses would reach."""

from typing import Any

from analyze.modalities.answers import start_row
from analyze.modalities.inputs import START, Evidence, Place, on_all
from analyze.report.parts import Figure, Part, Section, Table
from eval.claims.when import BASE
from eval.compare.scope import MARGIN, about, covers
from eval.display.forest import Mark, Panel, draw_forest
from eval.display.formatting import change, format_difference, format_share, listed, percent, probability
from eval.support.samples import GUESSING, PASS, SUPPORT
from eval.support.tables import FOUND, NONE

PASS_ONE, PASS_ALL, GUESS = "#56B4E9", "#0072B2", "#999999"


def support_section(evidence: Evidence) -> Section:
    """Returns the second axis: what the models reach in K samples."""
    section = Section(
        anchor="support",
        question="Support: is the answer within reach of the start?",
        lead="pass@K says whether one of K sampled replies is right. It counts as support only as far as it exceeds "
        "guessing.",
    )
    table = evidence.tables["support"]
    num_samples = int(table["num_samples"].max())
    models = [name for name in dict.fromkeys(map(str, table["model"])) if _shown(name, evidence)]
    verdicts = {place: start_row(evidence, place, SUPPORT, num_samples) for place in evidence.places}
    section.parts.append(
        Part(
            title="pass@1, pass@K and guessing",
            answer=_answer(evidence, verdicts, num_samples),
            about=about(table["scope"]),
            what=f"{START} is the start of RL. The verdict compares pass@{num_samples} with guessing.",
            figures=[_figure(evidence, models, num_samples)],
            tables=[_table(evidence, models, num_samples, covers(table["scope"]))],
            controls=[
                "Guessing is the pass@K that the model's own replies to other prompts of the same kind and modality "
                "would reach. A model that has learned only the frequent answers does not exceed it."
            ],
            limits=[
                f"No support means: less than {100 * MARGIN:.0f} points above guessing with {num_samples} samples at "
                "this temperature. More samples, or another prompt, may find answers."
            ],
        )
    )
    if BASE in set(table["model"]):
        section.parts.append(_sft_part(evidence, num_samples))
    return section


def _shown(name: str, evidence: Evidence) -> bool:
    """Base, the start and RL on everything; the arms of single modalities are in the table of gains."""
    return name in (BASE, START, on_all(evidence.trained()))


def _answer(evidence: Evidence, rows: dict[Place, Any], num_samples: int) -> str:
    known = {place: row for place, row in rows.items() if row is not None}
    if not known:
        return f"Undecided: {START} was not sampled."
    words = []
    for verdict, said in ((FOUND, "has support in"), (NONE, "has none in")):
        own = [
            f"{evidence.label(place)} ({change(row['value'], row['low'], row['high'])})"
            for place, row in known.items()
            if row["verdict"] == verdict
        ]
        words += [f"{said} {listed(own)}"] if own else []
    rest = [evidence.label(place) for place, row in known.items() if row["verdict"] not in (FOUND, NONE)]
    words += [f"is undecided in {listed(rest)}"] if rest else []
    first = next(iter(known.values()))
    return (
        f"{START} {'; '.join(words)}. Differences are pass@{num_samples} less guessing; n = {int(first['n'])} prompts "
        "each."
    )


def _figure(evidence: Evidence, models: list[str], num_samples: int) -> Figure:
    panels, said = [], []
    for place in evidence.places:
        rows = {}
        for model in models:
            marks = []
            for metric, k, colour in ((PASS, 1, PASS_ONE), (PASS, num_samples, PASS_ALL), (GUESSING, 0, GUESS)):
                row = start_row(evidence, place, metric, k, model)
                if row is not None:
                    marks.append(Mark(value=row["value"], low=row["low"], high=row["high"], colour=colour,
                                      filled=metric == PASS))  # fmt: skip
            if marks:
                rows[model] = marks
                said.append(f"{model} on {evidence.label(place)}: {listed([format_share(m.value) for m in marks])}")
        panels.append(Panel(title=evidence.label(place), rows=rows))
    return Figure(
        drawing=draw_forest(
            panels, label="percent", alt="pass@1, pass@K and guessing. " + "; ".join(said), signed=False, values=False
        ),
        caption=f"From top to bottom in each row: pass@1 (light), pass@{num_samples} (dark), guessing (hollow grey), "
        "with 95 % intervals.",
    )


def _table(evidence: Evidence, models: list[str], num_samples: int, covered: str) -> Table:
    rows = []
    for place in evidence.places:
        for model in models:
            found = [start_row(evidence, place, metric, k, model) for metric, k in (
                (PASS, 1), (PASS, num_samples), (GUESSING, 0), (SUPPORT, 0))]  # fmt: skip
            if any(row is None for row in found):
                continue
            one, most, guess, excess = found
            assert one is not None and most is not None and guess is not None and excess is not None
            rows.append([
                evidence.label(place), model, str(excess["verdict"]),
                f"{int(most['n'])} × {int(most['num_seeds'])}", *(_cell(row) for row in (one, most, guess)),
                format_difference(excess["value"], excess["low"], excess["high"]), probability(excess["p_holm"]),
            ])  # fmt: skip
    return Table(
        caption=f"Percent of prompts, with 95 % intervals over {covered}.",
        columns=["modality", "model", "support", "n × seeds", "pass@1", f"pass@{num_samples}", "guessing",
                 f"pass@{num_samples} less guessing", "p, corr."],
        rows=rows,
        num_words=3,
    )  # fmt: skip


def _cell(row: Any) -> str:
    return f"{percent(row['value'])} [{percent(row['low'])}, {percent(row['high'])}]"


def _sft_part(evidence: Evidence, num_samples: int) -> Part:
    """Returns what supervised training added: base less the start in `changes.csv`, with the sign turned."""
    found = []
    for place in evidence.places:
        own = evidence.at("changes", place)
        own = own[(own["model"] == BASE) & (own["metric"] == PASS)].sort_values("k")
        if not own.empty:
            found.append((place, own.iloc[0], own.iloc[-1]))
    if not found:
        return Part(title="What SFT added", answer="Undecided: base and sft have no prompts in common.", what="")
    raised = [evidence.label(place) for place, _, row in found if row["high"] < 0]
    place, _, first = found[0]
    return Part(
        title="What SFT added",
        answer=f"{START} exceeds {BASE} at k = {num_samples} in {len(raised)} of {len(found)}"
        f"{': ' + listed(raised) if raised else ''}. In {evidence.label(place)}: "
        f"{change(-first['value'], -first['high'], -first['low'])} (n = {int(first['n'])}; by 95 % intervals, not "
        "corrected).",
        about=about([str(first["scope"])]),
        what=f"{START} less {BASE} on the same prompts.",
        figures=[
            Figure(
                drawing=draw_forest(
                    [
                        Panel(
                            title=evidence.label(each),
                            rows={
                                f"k = {int(row['k'])}": [_turned(row)] for row in (one, most)
                            },
                        )
                        for each, one, most in found
                    ],
                    label=f"{START} less {BASE}, points",
                    alt=f"{START} less {BASE} in pass@1 and pass@{num_samples} per modality",
                ),
                caption=f"{START} less {BASE} at k = 1 and k = {num_samples}, with 95 % intervals. Filled: without "
                "zero.",
            )
        ],
        tables=[
            Table(
                caption="In points, with 95 % intervals.",
                columns=["modality", "n", "pass@1", f"pass@{num_samples}"],
                rows=[
                    [evidence.label(each), f"{int(most['n'])}",
                     *(change(-row["value"], -row["high"], -row["low"]) for row in (one, most))]
                    for each, one, most in found
                ],
            )
        ],
        controls=["Both models answered the same prompts with the same sampling settings."],
        limits=["One run of SFT: another may differ by more than these intervals, which cover new prompts only."],
    )  # fmt: skip


def _turned(row: Any) -> Mark:
    low, high = -row["high"], -row["low"]
    return Mark(value=-row["value"], low=low, high=high, filled=bool(low > 0 or high < 0))
