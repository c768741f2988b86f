"""Does one model do better than another? Paired tests on identical samples, corrected, with the share of gain kept.

    python -m eval.compare sft=outputs/eval/sft full@0=… full@1=… freeze-mid@0=… --baseline sft --reference full \\
        --output-dir outputs/comparison

`NAME=DIR` is one model, `NAME@SEED=DIR` one of several seeds of a model; `DIR` alone is named after its folder. Every
model is compared with the baseline and with the reference, per task and ability (`eval/statistics/pairing.py`). The
interval of a pooled row covers new training seeds and new prompts if one of the models has two seeds or more (`scope`:
training). Otherwise the row is about the evaluated checkpoints only. Prompts that belong together (a record's
`cluster`) have cluster-robust errors. `eval/statistics/pooled.py` has the method. P-values and the intervals `low_holm`
and `high_holm` are Holm-corrected within their family (one metric against one model; pooled, or per seed). `detectable`
is the difference that would be found with a power of 80 % before correction. The two models are equivalent within
`equivalent_within` (two one-sided tests at 5 %).

*Gain kept* = (arm - baseline) / (reference - baseline), with Fieller's interval. It is given only if the interval of
the denominator lies above zero.

`scores.csv` and `comparison.csv` have the numbers, `transitions.csv` every prompt that flipped, `comparison.html` the
flipped prompts with their replies. If it is known which engine sampled the rollouts that a model was trained on,
`rollouts.csv` names it. Reasons to doubt a comparison are printed and shown on the page (`eval/replies/rollouts.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eval.compare.alike import RECORDS_FILE, check_alike, identify
from eval.compare.page import find_tasks, render
from eval.compare.summary import summary
from eval.compare.transitions import transition_table
from eval.replies.outcomes import GIVEN, outcomes
from eval.replies.rollouts import Rollout, doubts, rollout_of, rollout_table
from eval.statistics.differences import add_corrected, compare_group
from eval.statistics.pairing import (
    ABILITY,
    ENTRIES_ARGUMENT,
    FLIPPING_METRICS,
    METRICS,
    Entry,
    collect_groups,
    parse_entry,
)
from eval.statistics.scores import score_table
from tracking.command import did_you_mean, parse_arguments
from tracking.product import write_text
from tracking.progress import progress
from tracking.records import Record, read_records
from tracking.run import OVERWRITE_ARGUMENT, open_run, read_run
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

ROLLOUTS_FILE = "rollouts.csv"
COLUMNS = (
    "task", "ability", "metric", "arm", "against", "seed", "scope", "n", "num_seeds", "num_seeds_against", "difference",
    "standard_error", "low", "high", "num_gained", "num_lost", "num_both_right", "num_both_wrong", "p", "p_holm",
    "low_holm", "high_holm", "family", "test", "detectable", "equivalent_within", "num_clusters", "seed_degrees",
    "prompt_error", "seed_error", "residual_error", "trained", "seed_weight", "mean", "mean_against", "gain_kept",
    "gain_kept_low", "gain_kept_high",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What several models answered, and the tables drawn from it."""

    records: dict[str, list[Record]]
    """Of each model, by its label."""
    scores: "pd.DataFrame"
    """A row per model, seed, task and ability."""
    differences: "pd.DataFrame"
    """A row per comparison."""
    transitions: "pd.DataFrame"
    """A row per flipped prompt."""


def check_roles(entries: Sequence[Entry], **roles: str | None) -> None:
    """Refuses a baseline or reference that is none of the models."""
    names = sorted({entry.name for entry in entries})
    if len(names) < 2:
        raise ValueError(f"only {', '.join(names)} is given; expected two models or more to compare")
    for role, name in roles.items():
        if name is not None and name not in names:
            raise ValueError(f"{role} {name!r} is not among the models {', '.join(names)}{did_you_mean(name, names)}")


def compare(entries: Sequence[Entry], *, baseline: str, reference: str | None) -> Comparison:
    """Compares models that were evaluated alike."""
    import pandas as pd

    check_roles(entries, baseline=baseline, reference=reference)
    check_alike(entries)
    records = {entry.label: read_records(entry.directory / RECORDS_FILE) for entry in entries}
    found = {label: outcomes(own) for label, own in records.items()}
    groups = collect_groups(entries, found)
    metrics = METRICS if _more_than_given(records[entries[0].label]) else [name for name in METRICS if name != ABILITY]
    flipping = [name for name in metrics if name in FLIPPING_METRICS]
    rows = [
        row
        for group in progress(groups, label="comparing", unit="ability")
        for row in compare_group(group, metrics, baseline=baseline, reference=reference)
    ]
    return Comparison(
        records=records,
        scores=pd.concat(
            [_scores(entry, score_table(records[entry.label], found[entry.label])) for entry in entries],
            ignore_index=True,
        ),
        differences=add_corrected(pd.DataFrame(rows).reindex(columns=list(COLUMNS))),
        transitions=transition_table(groups, flipping, baseline=baseline, reference=reference),
    )


def _scores(entry: Entry, table: "pd.DataFrame") -> "pd.DataFrame":
    table.insert(0, "model", entry.name)
    table.insert(1, "seed", "" if entry.seed is None else entry.seed)
    return table


def _more_than_given(records: Sequence[Record]) -> bool:
    return any(record.get("condition", GIVEN) != GIVEN for record in records)


def write_comparison(
    output_dir: Path,
    entries: Sequence[Entry],
    *,
    baseline: str,
    reference: str | None,
    tasks: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Writes the tables and the page of these models into their own run directory.

    Args:
        tasks: where the prompts stand now, named as for eval.run; by default where the evaluations read them.
    """
    check_roles(entries, baseline=baseline, reference=reference)
    check_alike(entries)
    rollouts = rollouts_of(entries)
    settings = {
        **identify(entries),
        "baseline": baseline,
        "reference": reference,
        **({"rollouts": rollouts} if rollouts else {}),
    }
    with open_run(output_dir, command="eval.compare", settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return
        found = compare(entries, baseline=baseline, reference=reference)
        sources = find_tasks(read_run(entries[0].directory), tasks)
        write_table(output_dir / "scores.csv", found.scores)
        write_table(output_dir / "comparison.csv", found.differences)
        write_table(output_dir / "transitions.csv", found.transitions)
        if rollouts:
            write_table(output_dir / ROLLOUTS_FILE, rollout_table(rollouts))
        open_to_doubt = [*doubts(rollouts), *judge_doubts(entries), *base_doubts(entries)]
        page = render(found.differences, found.transitions, found.records, sources, doubts=open_to_doubt)
        write_text(output_dir / "comparison.html", page)


def rollouts_of(entries: Sequence[Entry]) -> dict[str, Rollout]:
    """Returns how the models' rollouts were drawn, by their labels; without those of which nothing is known."""
    found = {entry.label: rollout_of(read_run(entry.directory)) for entry in entries}
    return {label: rollout for label, rollout in found.items() if rollout is not None}


def judge_doubts(entries: Sequence[Entry]) -> list[str]:
    """Returns a sentence for each model whose judge left questions unanswered (`--judge-unanswered keep`)."""
    found = []
    for entry in entries:
        noted = [attempt["judge"] for attempt in read_run(entry.directory)["attempts"] if "judge" in attempt]
        judged = noted[-1] if noted else {"unanswered": {}}
        lost = sum(judged["unanswered"].values())
        if lost:
            found.append(
                f"{lost} of {judged['num_questions']} judge questions about {entry.label} had no answer; these answers "
                "are unscored and not compared."
            )
    return found


def base_doubts(entries: Sequence[Entry]) -> list[str]:
    """Returns a sentence if the models are adapters that were merged into bases with different weights."""
    bases: dict[str, list[str]] = {}
    for entry in entries:
        noted = [attempt["adapter"] for attempt in read_run(entry.directory)["attempts"] if "adapter" in attempt]
        if noted:
            bases.setdefault(noted[-1]["base_fingerprint"], []).append(f"{entry.label} on {noted[-1]['base']}")
    if len(bases) < 2:
        return []
    named = "; ".join(", ".join(models) for models in bases.values())
    return [f"The adapters were merged into different bases ({named}), so a difference may come from the bases."]


@dataclass(frozen=True, kw_only=True)
class ComparisonArguments:
    """The models, and what they are compared with."""

    models: list[str] = field(metadata=ENTRIES_ARGUMENT)
    baseline: str = field(metadata={"help": "model that all others are compared with: its name or DIR"})
    reference: str | None = field(
        default=None,
        metadata={
            "help": "second model that all others are compared with; gain kept is the share of its gain over the "
            "baseline"
        },
    )
    output_dir: str = field(
        default="outputs/comparison", metadata={"help": "where tables, page and run.json are written"}
    )
    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "current location of prompt sets that were moved after eval.run, named as its --tasks"},
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ComparisonArguments, description=__doc__, check_inputs=True)
    output_dir = Path(arguments.output_dir)
    entries = [parse_entry(text) for text in arguments.models]
    names = {str(entry.directory): entry.name for entry in entries}
    write_comparison(
        output_dir,
        entries,
        baseline=names.get(arguments.baseline, arguments.baseline),
        reference=names.get(arguments.reference, arguments.reference),
        tasks=arguments.tasks,
        overwrite=arguments.overwrite,
    )
    baseline = names.get(arguments.baseline, arguments.baseline)
    print(*summary(output_dir, baseline=baseline), sep="\n")
    for doubt in [*doubts(rollouts_of(entries)), *judge_doubts(entries), *base_doubts(entries)]:
        print(f"open to doubt: {doubt}")
    print(f"comparison: {output_dir / 'comparison.csv'}, to read: {output_dir / 'comparison.html'}")
