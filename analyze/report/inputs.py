"""Which outputs are there to report on, and which are missing? Directories are recognised by their `run.json`.

A folder given to the report is the output directory of one command, a study that `slurm.launch` planned (`plan.json`),
or a folder that holds output directories.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.run import RUN_FILE, read_run

PLAN_FILE = "plan.json"
NECESSITY = "train.necessity"
SHOWN = (
    "analyze.swap", "analyze.skip", "analyze.attention", "analyze.deltas", "merge.all", "eval.compare", "eval.support",
    "eval.claims", NECESSITY,
)  # fmt: skip
"""Commands whose output the page shows."""
DEEPEST = 4


@dataclass(frozen=True, kw_only=True)
class Output:
    """What one command wrote."""

    name: str
    directory: Path
    run: dict[str, Any]

    @property
    def command(self) -> str:
        return str(self.run["command"])

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.run["settings"])

    @property
    def finished(self) -> bool:
        return bool(self.run["status"] == "finished")


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Something that was planned and is missing or incomplete."""

    name: str
    kind: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The contents of the given folders."""

    outputs: list[Output]
    gaps: list[Gap]
    planned: bool
    """True where a plan lists what should be there."""

    def of(self, command: str) -> list[Output]:
        """Returns the finished outputs of a command; of the necessity study unfinished ones too."""
        return [each for each in self.outputs if each.command == command and (each.finished or command == NECESSITY)]

    def gaps_of(self, *words: str) -> list[str]:
        """Returns what is missing from jobs of these kinds or names."""
        return [f"{gap.name}: {gap.why}" for gap in self.gaps if gap.kind in words or gap.name in words]


def read_inputs(directories: Sequence[Path]) -> Inputs:
    """Reads the folders.

    Raises:
        ValueError: where a folder contains nothing that the page can show.
    """
    outputs: list[Output] = []
    gaps: list[Gap] = []
    for directory in directories:
        if (directory / PLAN_FILE).is_file():
            found, missing = _read_planned(directory)
            gaps += missing
        else:
            found = list(_walk(directory, directory, DEEPEST))
            if not any(each.command in SHOWN for each in found):
                held = ", ".join(dict.fromkeys(each.command for each in found)) or f"no {RUN_FILE}"
                raise ValueError(f"{directory} holds {held}; expected the output of {', '.join(SHOWN)}, or a study")
            gaps += [
                Gap(name=each.name, kind=each.command, why=_state(each.run))
                for each in found
                if not each.finished and each.command in SHOWN and not _writes_own_page(each)
            ]
        outputs += found
    studies = [each.directory for each in outputs if each.command == NECESSITY]
    outputs = [each for each in outputs if not any(folder in each.directory.parents for folder in studies)]
    planned = any((directory / PLAN_FILE).is_file() for directory in directories)
    return Inputs(outputs=outputs, gaps=gaps, planned=planned)


def _read_planned(study: Path) -> tuple[list[Output], list[Gap]]:
    """Returns the outputs of a study's jobs and what is missing; the study's folder may have been moved."""
    try:
        plan = json.loads((study / PLAN_FILE).read_text(encoding="utf-8"))
        jobs, planned_at = plan["jobs"], Path(plan["study"]["output_dir"])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{study / PLAN_FILE} is not a plan of slurm.launch ({error!r}); launch the study again"
        ) from error
    outputs, gaps, missing = [], [], set()
    for job in jobs:
        if job["kind"] == "report":
            continue
        place = Path(job["output_dir"])
        directory = study / place.relative_to(planned_at) if place.is_relative_to(planned_at) else place
        name = job["name"]
        try:
            run = read_run(directory)
        except ValueError:
            blocked = [need for need in job["needs"] if need in missing]
            why = f"not run, since {', '.join(blocked)} is missing" if blocked else "not run"
            gaps.append(Gap(name=name, kind=job["kind"], why=why))
            missing.add(name)
            continue
        outputs.append(Output(name=name, directory=directory, run=run))
        if run["status"] != "finished":
            gaps.append(Gap(name=name, kind=job["kind"], why=_state(run)))
            missing.add(name)
        left_out = study / "missing" / f"{name}.txt"
        words = left_out.read_text(encoding="utf-8").splitlines() if left_out.is_file() else []
        if words:
            models = ", ".join(word.partition("=")[0] for word in words)
            gaps.append(Gap(name=name, kind=job["kind"], why=f"made without {models}"))
    return outputs, gaps


def _walk(directory: Path, top: Path, depth: int) -> Iterator[Output]:
    """Yields the output directories below a folder, without those inside another output directory."""
    if (directory / RUN_FILE).is_file():
        name = str(directory.relative_to(top)) if directory != top else directory.resolve().name
        yield Output(name=name, directory=directory, run=read_run(directory))
    elif directory.is_dir() and depth:
        for child in sorted(directory.iterdir()):
            yield from _walk(child, top, depth - 1)


def _writes_own_page(output: Output) -> bool:
    """True for a necessity study that is still running because it is writing this page, its last step."""
    return output.command == NECESSITY and output.run["status"] == "running"


def _state(run: dict[str, Any]) -> str:
    if run["status"] == "running":
        return "not finished: it still runs, or was killed"
    error = run["attempts"][-1].get("error") if run["attempts"] else None
    return f"{run['status']}: {error}" if error else str(run["status"])
