r"""Did training widen what a model can do, or sharpen what it could? pass@k over many samples, side by side.

    python -m eval.support base=D sft=D full@0=D full@1=D --baseline sft --output-dir O

Each D is a finished `eval.run` with `--num-samples K --temperature T`. For a prompt with n judged samples of which c
are right, pass@k = 1 - C(n - c, k) / C(n, k) estimates without bias the chance that one of k samples is right (M. Chen
et al., arXiv 2107.03374, section 2.1). At k = 1 it is accuracy@1. A model that is better than the baseline at k = 1 and
worse at k = K has been *sharpened*; one that is better at k = K answers prompts that were out of the baseline's reach:
its support is *widened*.

    majority          share of prompts whose most frequent answer is right. A tie counts as a fair draw among the tied
                      answers. All right answers count as one answer, however they are written; wrong ones are the same
                      if they mean the same under their kind (`votes.py`). Samples without an answer, and those that
                      could not be judged, are not counted
    sometimes right   share of prompts with 0 < pass rate < 1, from which reinforcement learning learns

O/support.csv    per task, ability and model: each metric and k with its interval
O/changes.csv    each model minus the baseline on the same prompts, at every k, and a verdict per model
O/figures/…      pass@k over k, and its difference to the baseline

If a model has two seeds or more, intervals cover new training seeds as well as new prompts (`scope`: training);
otherwise they are about the evaluated checkpoints (`eval/statistics/pooled.py`). A prompt counts for k only if it has
at least k judged samples.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from eval.compare.alike import check_alike
from eval.compare.command import check_roles
from eval.compare.scope import covers, read_current
from eval.display.formatting import format_difference
from eval.grading import CORRECT, UNSCORED
from eval.replies.outcomes import GIVEN
from eval.statistics.differences import CHECKPOINTS, TRAINING
from eval.statistics.pairing import ENTRIES_ARGUMENT, Entry, parse_entry
from eval.statistics.pooled import Contrast, Term, contrast
from eval.support.votes import RIGHT, vote
from tracking.command import parse_arguments
from tracking.progress import progress
from tracking.records import Record, read_records
from tracking.run import OVERWRITE_ARGUMENT, open_run, read_run
from tracking.tables import format_first, write_table

if TYPE_CHECKING:
    import pandas as pd

NUM_ROWS = 8
"""Rows of the table on the terminal."""
PASS, MAJORITY, SOMETIMES = "pass@k", "majority", "sometimes right"
SHARPENED, WIDENED, NARROWED, NO_CHANGE = "sharpened", "widened", "narrowed", "not decidable"


def pass_at_k(num_judged: Int[np.ndarray, " n"], num_right: Int[np.ndarray, " n"], k: int) -> Float[np.ndarray, " n"]:
    """Returns the unbiased estimate of each prompt; NaN where fewer than k samples were judged.

    1 - C(n - c, k) / C(n, k) as a product, which neither overflows nor cancels.
    """
    missed = np.ones(len(num_judged))
    for step in range(k):
        with np.errstate(divide="ignore", invalid="ignore"):
            missed *= np.clip((num_judged - num_right - step) / (num_judged - step), 0, None)
    return np.where(num_judged >= k, 1 - missed, np.nan)


def majority_share(samples: Sequence[Record]) -> float | None:
    """Returns the chance that a vote of one prompt's samples gives the right answer; None where none was judged."""
    judged = [sample for sample in samples if sample["status"] != UNSCORED]
    if not judged:
        return None
    votes = Counter(vote(sample) for sample in judged if sample["extracted"] is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return float(RIGHT in winners) / len(winners)


@dataclass(frozen=True)
class Support:
    """One model's samples of one ability of one task, a row a seed."""

    seeds: tuple[int | None, ...]
    num_judged: Int[np.ndarray, "seeds n"]
    num_right: Int[np.ndarray, "seeds n"]
    majority: Float[np.ndarray, "seeds n"]
    """NaN where no sample was judged."""

    def values(self, metric: str, k: int) -> Float[np.ndarray, "seeds n"]:
        """Returns what each prompt counts for a metric; NaN where it cannot be said."""
        if metric == MAJORITY:
            return self.majority
        if metric == SOMETIMES:
            between = (self.num_right > 0) & (self.num_right < self.num_judged)
            return np.where(self.num_judged > 0, between, np.nan)
        return np.stack(
            [pass_at_k(judged, right, k) for judged, right in zip(self.num_judged, self.num_right, strict=True)]
        )


@dataclass(frozen=True)
class Group:
    """One ability of one task, answered by every model."""

    task: str
    ability: str
    num_samples: int
    clusters: Int[np.ndarray, " n"] | None
    models: dict[str, Support]

    def metrics(self) -> list[tuple[str, int | None]]:
        """Returns every metric, pass@k once for each k."""
        return [*((PASS, k) for k in range(1, self.num_samples + 1)), (MAJORITY, None), (SOMETIMES, None)]


def collect(entries: Sequence[Entry]) -> list[Group]:
    """Reads all evaluations, prompt by prompt in one order.

    Raises:
        ValueError: where they were not asked alike, or with one sample only.
    """
    check_alike(entries)
    by_label = {entry.label: _by_prompt(read_records(entry.directory / "records.jsonl")) for entry in entries}
    first = by_label[entries[0].label]
    groups = []
    for task, ability in dict.fromkeys((key[0], key[1]) for key in first):
        keys = [key for key in first if key[:2] == (task, ability)]
        num_samples = max(len(first[key]) for key in keys)
        if num_samples < 2:
            raise ValueError(
                f"{entries[0].directory}: one reply a prompt; evaluate with --num-samples K --temperature T"
            )
        models = {
            name: _support([entry for entry in entries if entry.name == name], by_label, keys)
            for name in dict.fromkeys(entry.name for entry in entries)
        }
        groups.append(Group(task, ability, num_samples, _clusters([first[key][0] for key in keys]), models))
    return groups


def _by_prompt(records: Sequence[Record]) -> dict[tuple[str, str, str], list[Record]]:
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.get("condition", GIVEN) == GIVEN:
            found.setdefault((record["task"], record["ability"], record["id"]), []).append(record)
    return found


def _support(
    entries: Sequence[Entry],
    by_label: dict[str, dict[tuple[str, str, str], list[Record]]],
    keys: Sequence[tuple[str, str, str]],
) -> Support:
    samples = [[by_label[entry.label][key] for key in keys] for entry in entries]
    return Support(
        seeds=tuple(entry.seed for entry in entries),
        num_judged=np.array([[sum(one["status"] != UNSCORED for one in own) for own in row] for row in samples]),
        num_right=np.array([[sum(one["status"] == CORRECT for one in own) for own in row] for row in samples]),
        majority=np.array([[majority_share(own) for own in row] for row in samples], dtype=float),
    )


def _clusters(records: Sequence[Record]) -> Int[np.ndarray, " n"] | None:
    names = [record.get("cluster") for record in records]
    if all(name is None for name in names):
        return None
    labels = [f"prompt {place}" if name is None else f"cluster {name}" for place, name in enumerate(names)]
    return np.unique(labels, return_inverse=True)[1]


def support_table(groups: Sequence[Group]) -> "pd.DataFrame":
    """Returns a row per model and metric."""
    import pandas as pd

    rows: list[dict[str, object]] = []
    for group in progress(groups, label="pass@k", unit="ability"):
        for name, support in group.models.items():
            found = contrast([_term(group, support, 1.0)], clusters=group.clusters, shares=True)
            rows += [
                _head(group, name, len(support.seeds), metric, k) | _columns(found, column)
                for column, (metric, k) in enumerate(group.metrics())
            ]
    return pd.DataFrame(rows)


def change_table(groups: Sequence[Group], baseline: str) -> "pd.DataFrame":
    """Returns each model minus the baseline, on the prompts that count for both, and the verdict about it."""
    import pandas as pd

    rows: list[dict[str, object]] = []
    for group in progress(groups, label="differences in pass@k", unit="ability"):
        for name, support in group.models.items():
            if name == baseline:
                continue
            terms = [_term(group, support, 1.0), _term(group, group.models[baseline], -1.0)]
            difference = contrast(terms, clusters=group.clusters, shares=True)
            found = [
                {**_head(group, name, len(support.seeds), metric, k), "against": baseline}
                | _columns(difference, column)
                for column, (metric, k) in enumerate(group.metrics())
            ]
            said = verdict(found[0], found[group.num_samples - 1])
            rows += [{**row, "verdict": said} for row in found]
    return pd.DataFrame(rows)


def _term(group: Group, support: Support, coefficient: float) -> Term:
    values = [support.values(metric, k or 0) for metric, k in group.metrics()]
    return Term(coefficient=coefficient, values=np.stack(values, axis=-1), trained=support.seeds != (None,))


def verdict(at_one: dict[str, object], at_all: dict[str, object]) -> str:
    """Returns what the differences at k = 1 and at k = K say together, by their intervals."""
    low = float(at_one["low"])  # type: ignore[arg-type]
    low_all, high_all = (float(at_all[end]) for end in ("low", "high"))  # type: ignore[arg-type]
    if low_all > 0:
        return WIDENED
    if high_all < 0:
        return SHARPENED if low > 0 else NARROWED
    return f"better at k = 1, at k = {at_all['k']} {NO_CHANGE}" if low > 0 else NO_CHANGE


def _head(group: Group, name: str, num_seeds: int, metric: str, k: int | None) -> dict[str, object]:
    return {
        "task": group.task, "ability": group.ability, "model": name, "num_seeds": num_seeds,
        "num_samples": group.num_samples, "metric": metric, "k": k,
    }  # fmt: skip


def _columns(found: Contrast, column: int) -> dict[str, object]:
    own = found.one(column)
    return {
        "n": int(found.n[column]),
        "value": own.estimate,
        "standard_error": own.standard_error,
        "low": own.low,
        "high": own.high,
        "scope": TRAINING if found.num_degrees else CHECKPOINTS,
    }


def write_support(output_dir: Path, entries: Sequence[Entry], *, baseline: str, overwrite: bool = False) -> None:
    """Writes the tables and the figure into their own run directory."""
    from eval.support.figures import draw

    check_roles(entries, baseline=baseline)
    check_alike(entries)
    settings = {
        "models": {entry.label: read_run(entry.directory)["settings"] for entry in entries},
        "baseline": baseline,
    }
    with open_run(output_dir, command="eval.support", settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return
        groups = collect(entries)
        table, changes = support_table(groups), change_table(groups, baseline)
        write_table(output_dir / "support.csv", table)
        write_table(output_dir / "changes.csv", changes)
        draw(table, changes, baseline, output_dir / "figures")


def summary(changes: "pd.DataFrame", baseline: str) -> list[str]:
    """Returns what is said on the terminal: each model's difference at k = 1 and at k = K, with its verdict."""
    if changes.empty:
        return []
    num_samples = int(changes["num_samples"].max())
    rows = [["task", "ability", "model", "about", "pass@1, in points", f"pass@{num_samples}, in points", "verdict"]]
    for (task, ability, model), own in changes[changes["metric"] == PASS].groupby(
        ["task", "ability", "model"], sort=False
    ):
        ends = [own.iloc[place] for place in (0, -1)]
        cells = [format_difference(row["value"], row["low"], row["high"]) for row in ends]
        about = own.iloc[0]["scope"]
        seeds = f", {int(own.iloc[0]['num_seeds'])} seeds" if about == TRAINING else ""
        rows.append([str(task), str(ability), str(model), f"{about}{seeds}", *cells, own.iloc[0]["verdict"]])
    return [
        f"less {baseline}, with 95 % intervals over {covers(changes['scope'])}, not corrected",
        *format_first(rows, right=(), most=NUM_ROWS, table="changes.csv"),
    ]


@dataclass(frozen=True, kw_only=True)
class SupportArguments:
    """The models whose sampled replies are compared."""

    models: list[str] = field(metadata=ENTRIES_ARGUMENT)
    baseline: str = field(default="sft", metadata={"help": "model that training of the others started from"})
    output_dir: str = field(default="outputs/support", metadata={"help": "where tables, page and run.json are written"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, SupportArguments, description=__doc__, check_inputs=True)
    output_dir = Path(arguments.output_dir)
    entries = [parse_entry(text) for text in arguments.models]
    write_support(output_dir, entries, baseline=arguments.baseline, overwrite=arguments.overwrite)
    changes = read_current(output_dir / "changes.csv", "eval.support", ("scope",))
    print(*summary(changes, arguments.baseline), sep="\n")
    print(f"support: {output_dir / 'support.csv'}, {output_dir / 'changes.csv'}")
