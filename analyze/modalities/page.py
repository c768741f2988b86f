"""The page of a study by modality: the answer per modality first, then the paper's three axes and its statements."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.modalities.answers import Answer, contrast_sentence, first_table, headline
from analyze.modalities.inputs import Evidence
from analyze.modalities.sharpening import sharpening_section
from analyze.modalities.support import support_section
from analyze.modalities.transfer import transfer_section
from analyze.modalities.vision import saw_enough, vision_section
from analyze.report.parts import Section
from data_builders.prompt_sets.fields import plain_name
from eval.claims.tables import CONTRADICTED, SUPPORTED
from eval.compare.scope import MARGIN
from eval.display.formatting import format_difference, probability
from eval.display.page import page_environment

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "modalities.html.j2"


def make_sections(evidence: Evidence, answers: list[Answer]) -> list[Section]:
    """Returns the three axes, each with what there is to answer it."""
    return [
        vision_section(evidence),
        support_section(evidence),
        sharpening_section(evidence, answers),
        transfer_section(evidence),
    ]


def render(evidence: Evidence, answers: list[Answer], sections: list[Section]) -> str:
    """Returns the page as HTML, without links to other files."""
    rows = first_table(answers, evidence)
    for row, answer in zip(rows, answers, strict=True):
        row["tower"] = saw_enough(evidence, answer.place[2])
    return (
        page_environment(TEMPLATES)
        .get_template(PAGE)
        .render(
            study=str(evidence.study),
            headline=headline(answers),
            contrast=contrast_sentence(evidence),
            rows=rows,
            num_samples=int(evidence.tables["support"]["num_samples"].max()),
            tower=any(row["tower"] for row in rows),
            own=all(plain_name(each.model) == plain_name(f"data-{each.place[2]}") for each in answers),
            margin=f"{100 * MARGIN:.0f}",
            missing=evidence.missing,
            sections=sections,
            statements=statement_rows(evidence.tables.get("statements")),
        )
    )


def statement_rows(table: "pd.DataFrame | None") -> list[dict[str, Any]]:
    """Returns the statements of arXiv 2603.01301 as text, with a style for each verdict."""
    if table is None:
        return []
    return [
        {
            "statement": row["statement"],
            "rule": f"{row['rule']}; expected: {row['expected']}",
            "verdict": row["verdict"],
            "css": {SUPPORTED: "supported", CONTRADICTED: "contradicted"}.get(str(row["verdict"]), "soft"),
            "model": row["model"] if isinstance(row["model"], str) else "",
            **_numbers(row),
        }
        for _, row in table.iterrows()
    ]


def _numbers(row: Any) -> dict[str, str]:
    """Returns a statement's numbers as text; empty where nothing was measured."""
    if row["difference"] != row["difference"]:
        return dict.fromkeys(("difference", "p", "n"), "")
    return {
        "difference": format_difference(row["difference"], row["low"], row["high"]),
        "p": probability(row["p_holm"]),
        "n": f"{int(row['n'])} × {int(row['num_seeds'])}",
    }
