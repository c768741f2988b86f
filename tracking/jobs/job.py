"""What is a job? One command of a study, its output directory, and the jobs it depends on."""

import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tracking.run import is_finished


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command of a study."""

    name: str
    kind: str
    """Jobs of the same kind take about the same time."""
    command: tuple[str, ...]
    output_dir: Path
    needs: tuple[str, ...] = ()
    """Jobs that must finish successfully before it starts."""
    after: tuple[str, ...] = ()
    """Jobs that must end, successfully or not, before it starts."""

    @property
    def shell(self) -> str:
        """The command line."""
        first = "python" if self.command[0] == sys.executable else self.command[0]
        return shlex.join((first, *self.command[1:]))


class Placed(Protocol):
    """A job's dependencies on other jobs."""

    @property
    def name(self) -> str: ...
    @property
    def output_dir(self) -> str | Path: ...
    @property
    def after(self) -> tuple[str, ...]: ...


def settled(jobs: Collection[Placed]) -> set[str]:
    """Returns the finished jobs whose `after` jobs are finished too, so that they have no new inputs."""
    finished = {job.name for job in jobs if is_finished(Path(job.output_dir))}
    while stale := {job.name for job in jobs if job.name in finished and set(job.after) - finished}:
        finished -= stale
    return finished
