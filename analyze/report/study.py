"""What does a necessity study consist of? Its tables and proofs, as they were written."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


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
    """The tables and proofs that the report shows."""

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
