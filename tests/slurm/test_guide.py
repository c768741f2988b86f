"""The commands of docs/cluster.md, unchanged, on a real Slurm: from a clone to a running study and its cancellation."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.submitting.queueing import latest_launch, read_launch
from tests.slurm.real_slurm import RealSlurm
from tracking.command import REPOSITORY_ROOT

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

GUIDE = (REPOSITORY_ROOT / "docs" / "cluster.md").read_text()
CLONE, SETUP, *REST = GUIDE.partition("```bash\n")[2].partition("```")[0].splitlines()
"""The first two lines were run already where tests run: this is a clone, and set up."""


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """The files of this repository, as a clone of them has it."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True).stdout
    folder = tmp_path / "frankenstein"
    for name in names.rstrip("\0").split("\0"):
        if (REPOSITORY_ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY_ROOT / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    yield folder


def test_ten_lines_lead_from_a_clone_to_a_running_study(slurm: RealSlurm, clone: Path, warm_python: Path) -> None:
    assert CLONE.startswith("git clone URL") and SETUP.startswith("make setup && source .venv/bin/activate")
    assert len(REST) == 8
    lines = ["set -e", f"cd {clone}", "source .venv/bin/activate", f"export PATH={warm_python.parent}:$PATH", *REST]
    told = slurm.run("bash", "-c", "\n".join(lines))
    study = clone / "outputs" / "pocket_study"
    assert "nothing to fetch" in told and "sbatch would take all" in told and "minutes of work" in told
    assert re.search(r"\d+ jobs submitted", told) and re.search(r"\d+ of \d+ jobs are finished", told)
    assert "RUNNING" in told or "PENDING" in told
    launch = latest_launch(study)
    assert launch is not None
    ids = {identifier for entry in read_launch(launch) for identifier in entry.ids}
    assert {name.partition("_")[0] for name in slurm.states()} >= ids

    cancel = f"cd {clone} && .venv/bin/python -m slurm.cancel outputs/pocket_study"
    assert "jobs taken out of the queue" in slurm.run("bash", "-c", cancel)
    states = slurm.wait_until_idle(within_s=60)
    assert {state for name, state in states.items() if name.partition("_")[0] in ids} <= {"CANCELLED", "COMPLETED"}
    cancelled = slurm.run("bash", "-c", f"cd {clone} && .venv/bin/python -m slurm.status outputs/pocket_study")
    assert "RUNNING" not in cancelled and "PENDING" not in cancelled
