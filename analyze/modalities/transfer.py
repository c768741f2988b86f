"""Do gains carry over to other modalities? The matrix of gains, its diagonal and its rest, for RL and for SFT."""

import html
from typing import TYPE_CHECKING, Any

from analyze.modalities.answers import evidence_words
from analyze.modalities.inputs import Evidence
from analyze.report.parts import Figure, Part, Section, Table
from data_builders.prompt_sets.fields import plain_name
from eval.compare.scope import LEVEL
from eval.display.forest import INK, LINE, SOFT
from eval.display.formatting import change, points, probability
from eval.transfer.models import RL, SFT
from eval.transfer.tables import OTHERS, OWN, OWN_LESS_OTHERS, POOLED, RL_LESS_SFT

if TYPE_CHECKING:
    import pandas as pd

METHODS = {RL: "RL", SFT: "SFT"}
CELL, ROW, HEAD = 116, 44, 52
"""Width of a column, height of a row, height above the first row, in the drawing's units."""
LETTER = 8.0
STRONGEST = 0.85
"""Opacity of the largest difference."""
GAIN_COLOUR, LOSS_COLOUR = "0, 114, 178", "213, 94, 0"


def transfer_section(evidence: Evidence) -> Section:
    """Returns the second half of the third axis."""
    section = Section(
        anchor="transfer",
        question="Transfer: does training on one modality help the others?",
        lead="Each model was trained on one modality and is asked about all. Gains are in greedy accuracy over the "
        "start, on held-out prompts.",
    )
    if "transfer" not in evidence.tables:
        section.gaps.append("no transfer.csv; the study needs arms such as each-data and each-sft")
        return section
    table = evidence.tables["transfer"]
    contrasts = evidence.tables.get("contrasts")
    for method, own in table.groupby("method", sort=False):
        section.parts.append(_part(str(method), own, contrasts))
    if contrasts is not None and len(rest := contrasts[contrasts["method"] == RL_LESS_SFT]):
        section.parts.append(_between(rest))
    return section


def _part(method: str, own: "pd.DataFrame", contrasts: "pd.DataFrame | None") -> Part:
    word = METHODS.get(method, method)
    tested = None if contrasts is None else contrasts[contrasts["method"] == method]
    return Part(
        title=f"Transfer of {word}",
        answer=_answer(word, own, tested),
        about=f"{int(own['num_seeds'].min())} seeds a model" if len(own) else "",
        what="Rows: what a model was trained on. Columns: what it is asked.",
        figures=[
            Figure(
                drawing=draw_matrix(part, alt=f"Gains of {word} in points, by training and evaluation{name}"),
                caption=f"Gain of {word} over the start in points{name}. Bold: significant after Holm's correction. "
                "Framed: trained and evaluated on the same modality.",
            )
            for name, part in _by_ability(own)
        ],
        tables=[
            Table(
                caption="Gains in points, with 95 % intervals.",
                columns=["trained on", "evaluated on", "n", "seeds", "gain", "p, corrected"],
                rows=[
                    [str(row["trained_on"]), _where(row, own), f"{int(row['n'])}", f"{int(row['num_seeds'])}",
                     change(row["difference"], row["low"], row["high"]), probability(row["p_holm"])]
                    for _, row in own.iterrows()
                ],
                num_words=2,
            ),
            *([] if tested is None or tested.empty else [_contrast_table(tested)]),
        ],
        controls=[
            "A modality in which the start has no support shows what is learned without reading the pictures. SFT on "
            "the same data shows whether transfer is special to RL."
        ],
        limits=["Equal numbers of steps are not equal numbers of useful prompts: modalities differ in how many the "
                "start sometimes solves."],
    )  # fmt: skip


def _answer(word: str, own: "pd.DataFrame", tested: "pd.DataFrame | None") -> str:
    asked = {plain_name(name) for name in map(str, own["evaluated_on"])}
    own = own[[plain_name(name) in asked for name in map(str, own["trained_on"])]]  # without all, boundary
    same = own.apply(_is_same, axis=1)
    gained = (own["p_holm"] < LEVEL) & (own["difference"] > 0)
    text = (
        f"{word} gains significantly in {int((gained & same).sum())} of {int(same.sum())} cells on the modality "
        f"that it was trained on, and in {int((gained & ~same).sum())} of {int((~same).sum())} on others"
    )
    pooled = None if tested is None else _pooled(tested, OWN_LESS_OTHERS)
    if pooled is None:
        return f"{text}."
    return (
        f"{text}. Own modality less the others: {change(pooled['difference'], pooled['low'], pooled['high'])} "
        f"({evidence_words(pooled)})."
    )


def _pooled(tested: "pd.DataFrame", question: str) -> Any:
    """Returns the row over all modalities trained on, or the only row; None if there is none."""
    own = tested[tested["question"] == question]
    pooled = own[own["trained_on"] == POOLED]
    return next((each.iloc[0] for each in (pooled, own) if len(each)), None)


def _is_same(row: Any) -> bool:
    return plain_name(str(row["trained_on"])) == plain_name(str(row["evaluated_on"]))


def _by_ability(own: "pd.DataFrame") -> list[tuple[str, "pd.DataFrame"]]:
    """Returns one part per ability, if the table is divided by it."""
    if "ability" not in own or own["ability"].nunique() < 2:
        return [("", own)]
    return [(f", {ability}", part) for ability, part in own.groupby("ability", sort=False)]


def _where(row: Any, own: "pd.DataFrame") -> str:
    several = "ability" in own and own["ability"].nunique() > 1
    return f"{row['evaluated_on']}, {row['ability']}" if several else str(row["evaluated_on"])


def _contrast_table(rows: "pd.DataFrame") -> Table:
    return Table(
        caption="Contrasts in points, with 95 % intervals.",
        columns=["on", "trained on", "n", "seeds", "difference", "p, corrected"],
        rows=[
            [_question(row["question"]), str(row["trained_on"]), f"{int(row['n'])}", f"{int(row['num_seeds'])}",
             change(row["difference"], row["low"], row["high"]), probability(row["p_holm"])]
            for _, row in rows.iterrows()
        ],
        num_words=2,
    )  # fmt: skip


def _question(name: str) -> str:
    """Returns on which modalities a contrast is."""
    words = {OWN: "the own modality", OTHERS: "the others", OWN_LESS_OTHERS: "own less others"}
    return words.get(name, name)


def _between(rows: "pd.DataFrame") -> Part:
    found = {question: _pooled(rows, question) for question in (OWN, OTHERS, OWN_LESS_OTHERS)}
    said = [
        f"{_question(question)} {change(row['difference'], row['low'], row['high'])} ({evidence_words(row)})"
        for question, row in found.items()
        if row is not None
    ]
    return Part(
        title="RL and SFT on the same data",
        answer=f"RL less SFT, on {'; '.join(said)}.",
        about="",
        what="Both were trained from the same start on the same modality.",
        tables=[_contrast_table(rows)],
        limits=["RL and SFT differ in compute and in what they see: SFT reads worked answers."],
    )


def draw_matrix(own: "pd.DataFrame", *, alt: str) -> str:
    """Returns an SVG element: a cell per training and evaluation, coloured by its gain, with gain and interval."""
    trained = list(dict.fromkeys(map(str, own["trained_on"])))
    asked = list(dict.fromkeys(map(str, own["evaluated_on"])))
    left = max(len(f"on {name}") for name in trained) * LETTER + 16
    width, height = left + CELL * len(asked) + 2, HEAD + ROW * len(trained) + 4
    largest = max(own["difference"].abs().max(), 1e-9)
    parts = [
        f'<svg class="matrix" role="img" aria-label="{html.escape(alt)}" viewBox="0 0 {width:.0f} {height}" '
        f'style="max-width: {width:.0f}px" font-family="inherit" font-size="13" fill="{INK}">',
        _text(left - 10, HEAD - 12, "trained", SOFT, "end"),
        _text(left + CELL * len(asked) / 2, 16, "evaluated on", SOFT),
        *(_text(left + CELL * (column + 0.5), HEAD - 12, name) for column, name in enumerate(asked)),
    ]
    for number, name in enumerate(trained):
        parts.append(_text(left - 10, HEAD + ROW * (number + 0.5) + 4, f"on {name}", INK, "end"))
        for column, other in enumerate(asked):
            rows = own[(own["trained_on"].astype(str) == name) & (own["evaluated_on"].astype(str) == other)]
            if len(rows):
                place = (left + CELL * column, HEAD + ROW * number)
                parts += _cell(rows.iloc[0], place, largest, framed=plain_name(name) == plain_name(other))
    return "".join([*parts, "</svg>"])


def _cell(row: Any, place: tuple[float, float], largest: float, *, framed: bool) -> list[str]:
    x, y = place
    strength = STRONGEST * min(1.0, abs(row["difference"]) / largest)
    colour = GAIN_COLOUR if row["difference"] >= 0 else LOSS_COLOUR
    edge, thickness = (INK, 2) if framed else (LINE, 1)
    weight = ' font-weight="700"' if row["p_holm"] < LEVEL else ""
    ink = "#fff" if strength > 0.55 else INK
    low, high = points(row["low"]), points(row["high"])
    return [
        f'<rect x="{x + 2:.1f}" y="{y + 2:.1f}" width="{CELL - 4}" height="{ROW - 4}" fill="rgb({colour})" '
        f'fill-opacity="{strength:.2f}" stroke="{edge}" stroke-width="{thickness}"/>',
        f'<text x="{x + CELL / 2:.1f}" y="{y + 19:.1f}" text-anchor="middle" fill="{ink}"{weight}>'
        f"{points(row['difference'])}</text>",
        f'<text x="{x + CELL / 2:.1f}" y="{y + 34:.1f}" text-anchor="middle" font-size="11" fill="{ink}">'
        f"[{low}, {high}]</text>",
    ]


def _text(x: float, y: float, text: str, colour: str = INK, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'
