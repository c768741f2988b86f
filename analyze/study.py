"""What does a finished necessity study hold? Its tables and proofs, read back and nothing recomputed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.run import read_run
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

STUDY_COMMAND = "train.necessity"


@dataclass(frozen=True)
class ArmRun:
    """One arm trained with one seed: what it froze, the proof, and its curves."""

    arm: str
    seed: int
    proof: dict[str, Any]
    metrics: "pd.DataFrame"

    @property
    def num_trainable(self) -> int:
        return sum(tensor["num_elements"] for tensor in self.proof["tensors"] if not tensor["frozen"])

    @property
    def num_elements(self) -> int:
        return sum(tensor["num_elements"] for tensor in self.proof["tensors"])


@dataclass(frozen=True)
class NecessityStudy:
    """All that the report shows."""

    directory: Path
    run: dict[str, Any]
    scores: "pd.DataFrame"
    comparison: "pd.DataFrame"
    layers: "pd.DataFrame"
    runs: list[ArmRun]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.runs))

    @property
    def abilities(self) -> list[str]:
        return list(dict.fromkeys(self.comparison["ability"]))

    @property
    def partition(self) -> dict[str, list[int]]:
        """Layers of early, mid and late."""
        return dict(self.runs[0].proof["partition"])

    def pooled(self, ability: str, metric: str, against: str) -> "pd.DataFrame":
        """Returns the pooled comparison rows of one ability, a row an arm."""
        table = self.comparison
        return table[
            (table["ability"] == ability)
            & (table["metric"] == metric)
            & (table["against"] == against)
            & (table["seed"].astype(str) == "pooled")
        ]


def read_study(directory: Path) -> NecessityStudy:
    """Reads a study's folder.

    Raises:
        ValueError: where it is no study, or a table it should hold is missing.
    """
    run = read_run(directory)
    if run["command"] != STUDY_COMMAND:
        raise ValueError(f"{directory} is a run of {run['command']}; expected one of {STUDY_COMMAND}")
    runs = []
    for path in sorted((directory / "arms").iterdir()):
        arm, _, seed = path.name.rpartition("-seed")
        report = path / "freeze_report.json"
        if not report.is_file():
            raise ValueError(f"{report} does not exist; run the study to its end first")
        proof = json.loads(report.read_text(encoding="utf-8"))
        runs.append(ArmRun(arm, int(seed), proof, read_table(path / "metrics.csv")))
    wanted = [arm.partition("=")[0] for arm in run["settings"]["arms"]]
    runs.sort(key=lambda entry: (wanted.index(entry.arm), entry.seed))
    return NecessityStudy(
        directory,
        run,
        read_table(directory / "scores.csv"),
        read_table(directory / "comparison.csv"),
        read_table(directory / "deltas" / "layers.csv"),
        runs,
    )
