"""Which tables has a study by modality, and which models are its answers about?

Outputs are found as the report finds them: in a study's plan, or by the `run.json` of each folder.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.report.inputs import Output, read_inputs
from data_builders.prompt_sets.fields import plain_name
from eval.claims.when import BASE
from eval.compare.scope import read_current
from eval.support.tables import ALL

if TYPE_CHECKING:
    import pandas as pd

START = "sft"
TABLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "support": ("eval.support", "support.csv", ("modality", "metric", "verdict")),
    "changes": ("eval.support", "changes.csv", ("modality", "metric", "equivalent_within")),
    "gaps": ("eval.support", "gaps.csv", ("modality", "start_gap", "gap_closed", "start_verdict")),
    "bins": ("eval.support", "bins.csv", ("modality", "bin", "gain")),
    "transfer": ("eval.transfer", "transfer.csv", ("trained_on", "evaluated_on", "method", "difference")),
    "contrasts": ("eval.transfer", "contrasts.csv", ("trained_on", "question", "difference")),
    "statements": ("eval.claims", "when_rl_helps.csv", ("statement", "rule", "expected", "verdict")),
    "tower": ("eval.tower", "tower.csv", ("model", "layer", "probe", "cv_accuracy")),
    "differences": ("eval.tower", "differences.csv", ("model", "against", "against_layer", "p_holm")),
    "areas": ("eval.tower", "auc.csv", ("model", "against", "against_layer", "p_holm")),
}
"""Name -> the command, its file, and columns that the page needs."""
NEEDED = ("support", "gaps")
REWARDED = ("data-all", "full", "rl")
"""Names of a model that RL trained on all modalities."""
Place = tuple[str, str, str]
"""Task, ability, modality."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The tables of a study."""

    study: Path
    tables: Mapping[str, "pd.DataFrame"]
    encoders: tuple[str, ...]
    """Vision-only encoders in the tables of `eval.tower`."""
    missing: tuple[str, ...]
    """What was planned and is not there."""
    fingerprints: Mapping[str, str]

    @property
    def places(self) -> list[Place]:
        """Every task, ability and modality, in the tables' order."""
        own = self.tables["gaps"]
        own = own[own["task"] != ALL]
        return list(dict.fromkeys(zip(own["task"], own["ability"], own["modality"], strict=True)))

    def label(self, place: Place) -> str:
        """Returns the modality, with the ability or task where there are several."""
        words = [place[2]]
        for column in (1, 0):
            if len({each[column] for each in self.places}) > 1:
                words.append(place[column])
        return " · ".join(words)

    def at(self, name: str, place: Place) -> "pd.DataFrame":
        """Returns the rows of a table about a place; none without the table."""
        import pandas as pd

        if name not in self.tables:
            return pd.DataFrame(columns=["model", "metric", "bin"])
        own = self.tables[name]
        return own[(own["task"] == place[0]) & (own["ability"] == place[1]) & (own["modality"] == place[2])]

    def trained(self) -> list[str]:
        """Returns the models that RL trained: all in `gaps.csv` but base, and what supervised training made."""
        names = dict.fromkeys(map(str, self.tables["gaps"]["model"]))
        return [name for name in names if name != BASE and not name.startswith("sft-")]


def on_all(models: Iterable[str]) -> str | None:
    """Returns the model that RL trained on all modalities, if there is one."""
    known = list(models)
    return next((name for name in REWARDED if name in known), None)


def on_modality(models: Iterable[str], modality: str) -> str | None:
    """Returns the model that RL trained on one modality; else that of all modalities; else the first."""
    known = list(models)
    own = [name for name in known if plain_name(name) == plain_name(f"data-{modality}")]
    return next(iter([*own, *filter(None, [on_all(known)]), *known]), None)


def read_evidence(study: Path) -> Evidence:
    """Reads all tables of a study.

    Raises:
        ValueError: if it has no pass@k by modality, or an older version wrote a table.
    """
    if not study.is_dir():
        raise ValueError(f"{study} does not exist; expected the folder of a study with `by: modality`")
    inputs = read_inputs([study])
    tables: dict[str, pd.DataFrame] = {}
    prints: dict[str, str] = {}
    encoders: tuple[str, ...] = ()
    for name, (command, file, columns) in TABLES.items():
        output = _output_with(inputs.of(command), file)
        if output is None:
            if name in NEEDED:
                raise ValueError(
                    f"{study} has no {file} of `{command} --by modality`; expected a study with `by: modality`"
                )
            continue
        path = output.directory / file
        tables[name] = read_current(path, command, columns)
        prints[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if name == "tower":
            encoders = tuple(output.settings.get("encoders", ()))
    wanted = {command for command, _, _ in TABLES.values()}
    kinds = {command.partition(".")[2] for command in wanted} | wanted | {"samples", "statements"}
    missing = tuple(f"{gap.name}: {gap.why}" for gap in inputs.gaps if {gap.kind, gap.name} & kinds)
    return Evidence(study=study, tables=tables, encoders=encoders, missing=missing, fingerprints=prints)


def _output_with(outputs: Iterable[Output], file: str) -> Output | None:
    """Returns the first output that has a file; support.csv of another study's pass@k has no modality."""
    return next((each for each in outputs if (each.directory / file).is_file()), None)
