"""Does another comparison on the page hold the same difference? Then one is the source, and the other quotes it.

A difference is corrected within its own comparison, so two comparisons that share it would give it two p-values. Models
are the same if the fingerprints of their checkpoints are equal, and their answers if prompts and settings of the
evaluations are equal (other conditions of the same prompts make no difference to it).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyze.report.inputs import Output
from eval.compare.alike import shared_settings
from eval.compare.scope import read_comparison, runs, verdict
from eval.compare.sentences import row_ability, row_change, with_labels
from eval.display.formatting import MINUS, listed
from eval.statistics.differences import POOLED
from eval.statistics.pairing import ACCURACY
from tracking.run import read_run

if TYPE_CHECKING:
    import pandas as pd

APART = ("conditions", "descriptions", "batch_size")
"""Settings of an evaluation that do not change the replies to prompts as given."""
PLACE = ["task", "ability", "metric", "arm", "against"]
QUOTED = (
    "scope", "num_seeds", "num_seeds_against", "difference", "standard_error", "low", "high", "p", "p_holm", "low_holm",
    "high_holm", "family", "num_tests", "detectable", "equivalent_within",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What a comparison of splices has in common with a comparison of trained models on the same page."""

    source: "pd.DataFrame"
    """The pooled rows of the other comparison, with labels."""
    labels: Mapping[str, str]
    """Name of a model here -> its label there, with the seed if it has one."""
    num_runs: Mapping[str, int]
    """Name of a model there -> number of its runs."""
    baseline: str
    reference: str | None

    def name_there(self, model: str) -> str:
        return self.labels.get(model, "").partition("@")[0]

    def quoted_in(self, rows: "pd.DataFrame") -> "pd.DataFrame":
        """Returns the rows with the numbers of the source, if it compares exactly the same checkpoints."""
        there = self.source.set_index(PLACE)
        rows = rows.copy()
        for index, row in rows.iterrows():
            names = [self.name_there(row["arm"]), self.name_there(row["against"])]
            place = (row["task"], row["ability"], row["metric"], *names)
            if all(self.num_runs.get(name) == 1 for name in names) and place in there.index:
                for column in QUOTED:
                    rows.at[index, column] = there.loc[place, column]
        return rows

    @property
    def short(self) -> str:
        """Names the run that the reference is, if its arm has more; otherwise empty."""
        name = self.name_there(self.reference or "")
        if self.num_runs.get(name, 0) < 2:
            return ""
        seed = self.labels[self.reference or ""].partition("@")[2]
        return f"{self.reference} is seed {seed} of {name} alone."

    @property
    def sentence(self) -> str:
        """Says what all runs of the reference's arm show, if it has more than one; otherwise empty."""
        name, start = self.name_there(self.reference or ""), self.name_there(self.baseline)
        rows = self.source[(self.source["arm"] == name) & (self.source["against"] == start)]
        rows = rows[rows["metric"] == ACCURACY]
        if not self.short or rows.empty:
            return ""
        said = [f"{row_change(row)} on {row_ability(row)} ({verdict(row)})" for _, row in rows.iterrows()]
        return (
            f"{self.short} All numbers here are of this one run. {runs(rows.iloc[0]).capitalize()}, {name} {MINUS} "
            f"{start} in accuracy is {listed(said)}: see “What did RL change?”."
        )


def shared_start(output: Output, compared: Sequence[Output]) -> Shared | None:
    """Returns what a comparison has in common with the first of the others that contains its baseline; None if none."""
    own = _models(output.run)
    baseline, reference = output.settings["baseline"], output.settings.get("reference")
    for other in compared:
        theirs = _models(other.run)
        found = {
            name: next((label for label, there in theirs.items() if there == values), "")
            for name, values in own.items()
        }
        labels = {name: label for name, label in found.items() if label}
        if baseline in labels:
            return Shared(
                source=with_labels(_pooled(other)),
                labels=labels,
                num_runs=_num_runs(theirs),
                baseline=baseline,
                reference=reference,
            )
    return None


def source_of(study: Output, compared: Sequence[Output]) -> Output | None:
    """Returns the comparison with the same runs of every model of a necessity study on the same prompts, if any."""
    try:
        own = _models(read_run(study.directory / "comparison"))
    except ValueError:
        return None  # the study has not come to its comparison
    for other in compared:
        theirs = _models(other.run)
        runs_here, runs_there = _num_runs(own), _num_runs(theirs)
        same_runs = all(runs_there.get(name) == number for name, number in runs_here.items())
        if own and same_runs and all(theirs.get(label) == values for label, values in own.items()):
            return other
    return None


def _pooled(output: Output) -> "pd.DataFrame":
    table = read_comparison(output.directory / "comparison.csv")
    return table[table["seed"].astype(str) == POOLED]


def _models(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns label -> what determines a model's answers to prompts as given."""
    return {
        label: {
            "fingerprint": settings["model_fingerprint"],
            **{key: value for key, value in shared_settings(settings).items() if key not in APART},
        }
        for label, settings in run["settings"].get("models", {}).items()
    }


def _num_runs(models: Mapping[str, Any]) -> dict[str, int]:
    names = [label.partition("@")[0] for label in models]
    return {name: names.count(name) for name in names}
