r"""Does training on one modality help on the others? Models that saw one modality each, evaluated on all of them.

    python -m eval.transfer sft=D data-negative@0=D data-negative@1=D data-speckle@0=D … sft-negative@0=D … \
        --baseline sft --output-dir O

Each D is a finished `eval.run` on the same prompts, whose `meta` has a `modality`; they may be one task or several. A
model's name says what it was trained on (`models.py`): `data-X` with reinforcement learning, `sft-X` with further
supervised training, both from the baseline.

O/transfer.csv     per model and modality: accuracy less that of the start, with interval and corrected p
O/contrasts.csv    per method and modality trained on, and pooled: the difference on the own modality, on the others
                   (their mean), own less others; and the same for rl less sft
O/figures/…        one matrix per method

If a model has two seeds or more, intervals cover new training seeds as well as new prompts (`scope`: training).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eval.compare.alike import check_alike, identify
from eval.compare.command import check_roles
from eval.compare.scope import LEVEL, covers, read_current
from eval.display.formatting import format_difference, probability
from eval.statistics.pairing import ENTRIES_ARGUMENT, Entry, parse_entry
from eval.transfer.models import collect
from eval.transfer.tables import POOLED, QUESTIONS, contrast_table, transfer_table
from tracking.command import parse_arguments
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd


def write_transfer(output_dir: Path, entries: Sequence[Entry], *, baseline: str, overwrite: bool = False) -> None:
    """Writes the tables and figures into their own run directory."""
    from eval.transfer.figures import draw

    check_roles(entries, baseline=baseline)
    check_alike(entries)
    answers = collect(entries, baseline)
    settings = {**identify(entries), "baseline": baseline}
    with open_run(output_dir, command="eval.transfer", settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return
        transfer = transfer_table(answers)
        write_table(output_dir / "transfer.csv", transfer)
        write_table(output_dir / "contrasts.csv", contrast_table(answers))
        draw(transfer, output_dir / "figures")


def summary(transfer: "pd.DataFrame", contrasts: "pd.DataFrame") -> list[str]:
    """Returns what is said on the terminal: a line per method, and how many differences are significant."""
    lines = [f"points less {transfer.iloc[0]['against']}, with 95 % intervals over {covers(transfer['scope'])}"]
    for method, own in contrasts.groupby("method", sort=False):
        chosen = own[own["trained_on"] == POOLED] if (own["trained_on"] == POOLED).any() else own
        said = []
        for question in QUESTIONS:
            row = chosen[chosen["question"] == question].iloc[0]
            numbers = format_difference(row["difference"], row["low"], row["high"])
            said.append(f"{question} {numbers} (p {probability(row['p_holm'])})")
        on = int(chosen.iloc[0]["num_modalities"])
        lines.append(
            f"{method}, {f'mean of {on} modalities' if on > 1 else chosen.iloc[0]['trained_on']}: {'; '.join(said)}"
        )
    apart = transfer[(transfer["trained_on"] != transfer["evaluated_on"])]
    counts = [
        f"{method} {int((own['p_holm'] < LEVEL).sum())} of {len(own)}"
        for method, own in apart.groupby("method", sort=False)
    ]
    lines.append(
        f"significant on a modality that was not the only one trained on, after correction: {', '.join(counts)}"
    )
    return lines


@dataclass(frozen=True, kw_only=True)
class TransferArguments:
    """The models whose transfer is measured."""

    models: list[str] = field(metadata=ENTRIES_ARGUMENT)
    baseline: str = field(default="sft", metadata={"help": "model that training of the others started from"})
    output_dir: str = field(
        default="outputs/transfer", metadata={"help": "where tables, figures and run.json are written"}
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, TransferArguments, description=__doc__, check_inputs=True)
    output_dir = Path(arguments.output_dir)
    entries = [parse_entry(text) for text in arguments.models]
    write_transfer(output_dir, entries, baseline=arguments.baseline, overwrite=arguments.overwrite)
    transfer, contrasts = (
        read_current(output_dir / name, "eval.transfer", ("method",)) for name in ("transfer.csv", "contrasts.csv")
    )
    print(*summary(transfer, contrasts), sep="\n")
    print(f"transfer: {output_dir / 'transfer.csv'}, {output_dir / 'contrasts.csv'}")
