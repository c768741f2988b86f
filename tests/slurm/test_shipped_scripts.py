"""Every script of every shipped study, as it is submitted: the golden ones, and what bash and shellcheck say of them.

After a wanted change: REWRITE_GOLDEN=1 python -m pytest -m slow tests/slurm/test_shipped_scripts.py, and read the diff.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.planning.planned import read_study
from slurm.planning.render import render
from slurm.planning.settings import read_settings
from slurm.planning.study import StudyArguments
from tests.slurm.planning.test_render import GOLDEN, ROOT
from tracking.command import REPOSITORY_ROOT

pytestmark = pytest.mark.slow

REST = "# Each attempt has its own log"
"""The first line of a script that is common to all: before it are the script's options and commands."""
STUDIES = {path.parent.name: path for path in sorted((REPOSITORY_ROOT / "configs").glob("*/study.yaml"))}


@pytest.fixture(scope="module", params=STUDIES)
def shipped(request: pytest.FixtureRequest, warm_python: Path) -> tuple[str, dict[str, str]]:
    """A study's name, and its scripts by file name in the order of submission."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY_ROOT)
        patch.setattr(sys, "executable", str(warm_python))  # what reads a study's settings runs in processes
        study = read_study(read_settings(StudyArguments, STUDIES[request.param]))
        stages = study.stages(study.jobs, str(study.directory / "slurm" / "1"))
        return request.param, {Path(s.job.script).name: render(s.job, study.cluster, root=ROOT) for s in stages}


def folded(scripts: dict[str, str]) -> str:
    """Returns scripts one after the other; how one goes on that goes on like an earlier one stands there once."""
    first: dict[str, str] = {}
    parts = []
    for name, content in scripts.items():
        head, mark, rest = content.partition(REST)
        assert mark, name
        earlier = first.setdefault(rest, name)
        parts.append(f"==> {name} <==\n{head}" + (f"{REST}{rest}\n" if earlier == name else f"… as {earlier}\n\n"))
    return "".join(parts)


def test_scripts_of_a_shipped_study_are_the_golden_ones(shipped: tuple[str, dict[str, str]]) -> None:
    name, scripts = shipped
    path = GOLDEN / "studies" / f"{name}.txt"
    text = folded(scripts)
    if os.environ.get("REWRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_bash_and_shellcheck_take_every_script_of_a_shipped_study(
    shipped: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    paths = []
    for script, content in shipped[1].items():
        paths.append(tmp_path / script)
        paths[-1].write_text(content)
        subprocess.run(["bash", "-n", paths[-1]], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; bash took all")
    told = subprocess.run(["shellcheck", "--exclude=SC1091", *paths], capture_output=True, text=True, check=False)
    assert told.stdout == ""
