r"""Did training widen what a model can do, or sharpen what it could? pass@k over many samples, side by side.

    python -m eval.support base=D sft=D full@0=D full@1=D --baseline sft --output-dir O

Each D is a finished `eval.run` with `--num-samples N --temperature T`; K is N, or less with `--k`. For a prompt with n
judged samples of which c are right, pass@k = 1 - C(n - c, k) / C(n, k) estimates without bias the chance that one of k
samples is right (M. Chen et al., arXiv 2107.03374, section 2.1). At k = 1 it is accuracy@1. A model that is better than
the baseline at k = 1 and worse at k = K has been *sharpened*; one that is better at k = K answers prompts that were out
of the baseline's reach: its support is *widened*.

    majority          share of prompts whose most frequent answer is right. A tie counts as a fair draw among the tied
                      answers. All right answers count as one answer, however they are written; wrong ones are the same
                      if they mean the same under their kind (`votes.py`). Samples without an answer, and those that
                      could not be judged, are not counted
    sometimes right   share of prompts with 0 < pass rate < 1, from which reinforcement learning learns

O/support.csv    per task, ability and model: each metric and k with its interval
O/changes.csv    each model minus the baseline on the same prompts, at every k, and a verdict per model
O/figures/…      pass@k over k, and its difference to the baseline

With `--by modality`, tasks and abilities are divided by the prompts' `meta: {"modality": …}`, the tables have a column
`modality` and a mean over all, and there is more to read (the questions of arXiv 2603.01301):

    gap               pass@K - pass@1
    guessing          pass@K that the model's replies to other prompts of the modality would reach (`guessing.py`)
    support           pass@K - guessing; found, none (the 90 % interval ends below 5 points), or not decidable. If there
                      are few possible answers, guessing reaches much at K; both are given at k = 1 as well

O/gaps.csv       per modality and model: the start's gap, the gain at k = 1, and the share of the gap that it closes
O/bins.csv       the gain by the start's pass rate on a prompt (`gaps.py`)

If a model has two seeds or more, intervals cover new training seeds as well as new prompts (`scope`: training);
otherwise they are about the evaluated checkpoints (`eval/statistics/pooled.py`). A prompt counts for k only if it has
at least k judged samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.compare.alike import check_alike
from eval.compare.command import check_roles
from eval.compare.scope import covers, read_current
from eval.display.formatting import NOTHING, format_difference, format_share
from eval.statistics.pairing import ENTRIES_ARGUMENT, Entry, parse_entry
from eval.statistics.pooled import TRAINING
from eval.support.gaps import bin_table, gap_table
from eval.support.samples import MODALITY, PASS, collect
from eval.support.tables import ALL, change_table, support_table
from tracking.command import check_least, parse_arguments
from tracking.run import OVERWRITE_ARGUMENT, open_run, read_run
from tracking.tables import format_first, write_table

if TYPE_CHECKING:
    import pandas as pd

NUM_ROWS = 8
"""Rows of the table on the terminal."""


def write_support(
    output_dir: Path, entries: Sequence[Entry], *, baseline: str, by: str | None = None, k: int | None = None,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Writes the tables and the figures into their own run directory."""
    from eval.support.figures import draw, draw_gaps

    check_roles(entries, baseline=baseline)
    check_alike(entries)
    settings: dict[str, Any] = {
        "models": {entry.label: read_run(entry.directory)["settings"] for entry in entries},
        "baseline": baseline,
        **({} if by is None else {"by": by}),
        **({} if k is None else {"k": k}),
    }
    with open_run(output_dir, command="eval.support", settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return
        groups = collect(entries, by, k)
        table, changes = support_table(groups), change_table(groups, baseline)
        write_table(output_dir / "support.csv", table)
        write_table(output_dir / "changes.csv", changes)
        draw(table, changes, baseline, output_dir / "figures")
        if by is not None:
            gaps, bins = gap_table(groups, table, baseline), bin_table(groups, baseline)
            write_table(output_dir / "gaps.csv", gaps)
            write_table(output_dir / "bins.csv", bins)
            draw_gaps(gaps, bins, table, output_dir / "figures")


def summary(changes: "pd.DataFrame", baseline: str) -> list[str]:
    """Returns what is said on the terminal: each model's difference at k = 1 and at k = K, with its verdict."""
    if changes.empty:
        return []
    num_samples = int(changes["num_samples"].max())
    places = ["task", "ability", *([MODALITY] if MODALITY in changes else []), "model"]
    rows = [[*places, "about", "pass@1, in points", f"pass@{num_samples}, in points", "verdict"]]
    for place, own in changes[changes["metric"] == PASS].groupby(places, sort=False):
        ends = [own.iloc[place] for place in (0, -1)]
        cells = [format_difference(row["value"], row["low"], row["high"]) for row in ends]
        about = own.iloc[0]["scope"]
        seeds = f", {int(own.iloc[0]['num_seeds'])} seeds" if about == TRAINING else ""
        rows.append([*map(str, place), f"{about}{seeds}", *cells, own.iloc[0]["verdict"]])
    return [
        f"less {baseline}, with 95 % intervals over {covers(changes['scope'])}, not corrected",
        *format_first(rows, right=(), most=NUM_ROWS, table="changes.csv"),
    ]


def gap_summary(gaps: "pd.DataFrame") -> list[str]:
    """Returns what is said on the terminal about modalities: the start's support, the gain, and the gap it closes."""
    num_samples = int(gaps["num_samples"].max())
    several = [name for name in ("task", "ability") if gaps.loc[gaps["task"] != ALL, name].nunique() > 1]
    measured = ["start", f"pass@{num_samples}", "guessing", "start's support", "gain, in points", "gap closed"]
    rows = [[MODALITY, *several, "model", *measured]]
    for _, row in gaps[gaps["gain"].notna()].iterrows():
        closed = format_share(row["gap_closed"], row["gap_closed_low"], row["gap_closed_high"])
        levels = [format_share(row[f"start_{name}"]) for name in ("pass_at_1", "pass_at_k", "guessing")]
        gain = format_difference(row["gain"], row["low"], row["high"])
        said = row["start_verdict"] if isinstance(row["start_verdict"], str) else NOTHING
        place = [str(row[name]) for name in (MODALITY, *several, "model")]
        rows.append([*place, *levels, said or NOTHING, gain, closed])
    return [
        "",
        *format_first(rows, right=range(len(several) + 2, len(several) + 5), most=2 * NUM_ROWS, table="gaps.csv"),
    ]


@dataclass(frozen=True, kw_only=True)
class SupportArguments:
    """The models whose sampled replies are compared."""

    models: list[str] = field(metadata=ENTRIES_ARGUMENT)
    baseline: str = field(default="sft", metadata={"help": "model that training of the others started from"})
    by: str | None = field(
        default=None, metadata={"help": "modality: divide the prompts by their modality, and judge the start's support"}
    )
    k: int | None = field(
        default=None,
        metadata={
            "help": "K of pass@K, from 2 to the number of samples; by default their number. A smaller K than there are "
            "samples tells support from guessing more surely"
        },
    )
    output_dir: str = field(default="outputs/support", metadata={"help": "where tables, page and run.json are written"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        if self.by not in (None, MODALITY):
            raise ValueError(f"by is {self.by!r}; expected {MODALITY}, or none")
        check_least(self, k=2)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, SupportArguments, description=__doc__, check_inputs=True)
    output_dir = Path(arguments.output_dir)
    entries = [parse_entry(text) for text in arguments.models]
    write_support(
        output_dir, entries, baseline=arguments.baseline, by=arguments.by, k=arguments.k, overwrite=arguments.overwrite
    )
    changes = read_current(output_dir / "changes.csv", "eval.support", ("scope",))
    print(*summary(changes, arguments.baseline), sep="\n")
    if arguments.by is not None:
        gaps = read_current(output_dir / "gaps.csv", "eval.support", ("gap_closed",))
        print(*gap_summary(gaps), sep="\n")
    print(f"support: {output_dir / 'support.csv'}, {output_dir / 'changes.csv'}")
