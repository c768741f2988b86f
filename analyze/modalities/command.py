"""When did RL help? A study by modality on one page: vision, support, sharpening and transfer (arXiv 2603.01301).

    python -m slurm.launch --config configs/pocket/modalities.yaml --local
    python -m analyze.modalities outputs/pocket_modalities --output-dir outputs/pocket_modalities/modalities

The study has `by: modality` (`slurm/planning/modalities.py`), or its folders were made by hand: `eval.support --by
modality`, and where wanted `eval.tower`, `eval.transfer` and `eval.claims`. Their tables are read; nothing is measured
again. What is missing is named.

    answers.csv        per modality: the start's support, RL's gain, the share of the gap closed, the verdict
    modalities.html    the page to read

Verdicts on RL: *helped* or *hurt* if the gain in pass@1 is significant after Holm's correction; *no gain* if two
one-sided tests show that it is below five points; else *not decidable*.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.modalities.answers import Answer, contrast_sentence, headline, read_answers
from analyze.modalities.inputs import Evidence, read_evidence
from analyze.modalities.page import make_sections, render
from analyze.report.parts import Section
from tracking.command import parse_arguments
from tracking.product import write_text
from tracking.run import OVERWRITE_ARGUMENT, RUN_FILE, open_run, read_run
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

PAGE_FILE = "modalities.html"
ANSWERS_FILE = "answers.csv"
COPIED = (
    "n", "num_seeds", "num_samples", "start_pass_at_1", "start_pass_at_k", "start_guessing", "start_gap", "gain", "low",
    "high", "p", "p_holm", "equivalent_within", "gap_closed", "gap_closed_low", "gap_closed_high",
)  # fmt: skip
"""Columns of `gaps.csv` in `answers.csv`."""


@dataclass(frozen=True, kw_only=True)
class ModalitiesArguments:
    """The study."""

    study: str = field(
        metadata={"help": "folder of a study with `by: modality`", "positional": True, "metavar": "STUDY"}
    )
    output_dir: str = field(metadata={"help": "where the table, the page and run.json are written"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def write_modalities(evidence: Evidence, output_dir: Path, *, overwrite: bool = False) -> list[str]:
    """Writes the table and the page; returns the lines to print.

    A page of earlier tables of the same study is replaced.
    """
    settings = {"study": str(evidence.study.resolve()), "tables": dict(evidence.fingerprints)}
    answers = read_answers(evidence)
    sections = make_sections(evidence, answers)
    overwrite = overwrite or _has_other_tables(output_dir, settings)
    with open_run(output_dir, command="analyze.modalities", settings=settings, overwrite=overwrite) as run:
        if not run.finished:
            write_table(output_dir / ANSWERS_FILE, answer_table(answers))
            write_text(output_dir / PAGE_FILE, render(evidence, answers, sections))
    return summary(evidence, answers, sections)


def _has_other_tables(output_dir: Path, settings: Mapping[str, object]) -> bool:
    if not (output_dir / RUN_FILE).is_file():
        return False
    earlier = read_run(output_dir)
    same = earlier["command"] == "analyze.modalities" and earlier["settings"]["study"] == settings["study"]
    return bool(same and earlier["settings"]["tables"] != settings["tables"])


def answer_table(answers: list[Answer]) -> "pd.DataFrame":
    """Returns `answers.csv`."""
    import pandas as pd

    rows = [
        {
            "task": each.place[0], "ability": each.place[1], "modality": each.place[2], "start_verdict": each.support,
            "model": each.model, **{name: each.row[name] for name in COPIED}, "verdict": each.verdict,
        }
        for each in answers
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "ability", "modality", "start_verdict", "model", *COPIED, "verdict"])


def summary(evidence: Evidence, answers: list[Answer], sections: list[Section]) -> list[str]:
    """Returns a line per question."""
    lines = [f"When did RL help? {headline(answers)}", contrast_sentence(evidence)]
    for section in sections:
        said = section.answer or "; ".join(section.gaps)
        lines.append(f"{section.question} {said}")
    if evidence.missing:
        lines.append(f"missing: {'; '.join(evidence.missing)}")
    return list(filter(None, lines))


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ModalitiesArguments, description=__doc__)
    evidence = read_evidence(Path(arguments.study))
    output_dir = Path(arguments.output_dir)
    print(*write_modalities(evidence, output_dir, overwrite=arguments.overwrite), sep="\n")
    print(f"answers: {output_dir / ANSWERS_FILE}, to read: {output_dir / PAGE_FILE}")
