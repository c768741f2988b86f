"""Which jobs compare modalities? The towers, the transfer of gains, the statements about them, and their page.

A study with `by: modality` (arXiv 2603.01301: when does RL help?) has, beside pass@k by modality:

    tower/         probes of the vision towers of base, sft and the arms in `probed`, with `tower`
    transfer/      gains of every model trained on one modality, on all modalities
    statements/    eval.claims: each statement of arXiv 2603.01301, with its rule and verdict
    modalities/    the page
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slurm.planning.study import StudyArguments

SUPPORT, TOWER, TRANSFER, STATEMENTS, PAGE = "support", "tower", "transfer", "statements", "modalities"
_BY_DATA = re.compile(r"(?:data|sft)-.+")
"""Arms by data, with a freezing or without: data-negative, sft-all, data-negative-freeze-mid."""


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """A job that uses the results of others."""

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...]


def trained_by_data(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the labels of the runs whose arm names the part of the prompts that it was trained on."""
    return [str(run["label"]) for run in runs if _BY_DATA.fullmatch(run["arm"])]


def modality_jobs(
    arguments: StudyArguments, runs: Sequence[Mapping[str, Any]], evaluations: Mapping[str, str]
) -> Iterator[Gathering]:
    """Yields the jobs of a study `by: modality` that follow pass@k and the towers.

    Args:
        runs: arm, seed and label of every run.
        evaluations: label of a run, or `sft` -> output directory of its greedy evaluation.

    Raises:
        ValueError: if no arm is trained on a part of the prompts.
    """
    out, by_label = arguments.output_dir, {run["label"]: run for run in runs}
    labels = trained_by_data(runs)
    if not labels:
        raise ValueError(
            f"by is {arguments.by}, but {arguments.necessity} has no arm by data; expected arms such as each-data, "
            "data-all or each-sft"
        )
    entries = [f"sft={evaluations['sft']}"]
    entries += [f"{by_label[label]['arm']}@{by_label[label]['seed']}={evaluations[label]}" for label in labels]
    yield Gathering(
        name=TRANSFER,
        command=("eval.transfer", *entries, "--baseline", "sft"),
        after=tuple(f"eval-{label}" for label in ("sft", *labels)),
    )
    read = [SUPPORT, TRANSFER, *([TOWER] if arguments.tower else [])]
    folders = [word for name in read for word in (f"--{name}", f"{out}/{name}")]
    yield Gathering(name=STATEMENTS, command=("eval.claims", *folders), after=tuple(read))
