"""A complete study on a real Slurm: a failed arm blocks no other, the report names it, and a relaunch completes it."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.slurm.real_slurm import MEMORY_PER_NODE_MB, RealSlurm
from tests.small_study import write_study_settings
from tracking.command import REPOSITORY_ROOT
from tracking.run import is_finished, read_run

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

BROKEN = "freeze-mid-seed0"
WHOLE = ("full-seed0",)
SMALLER: dict[str, dict[str, Any]] = {
    "pairs": {"num_pairs": 8},
    "swap": {},
    "skip": {"limit": 8},
    "attention": {"limit": 8, "baseline": ["sft"]},
    "abilities": {},
    "samples": {"num_samples": 4},
}
"""Configuration of a probe -> what a test's study has less of."""
STUDIES = sorted((REPOSITORY_ROOT / "configs").glob("*/study.yaml"))


def command(slurm: RealSlurm, python: Path, module: str, *words: object) -> str:
    return slurm.run(str(python), "-m", module, *map(str, words))


def write_study(folder: Path, cluster: Path) -> Path:
    """Writes a whole pocket study small enough for a test: necessity, every probe, splices, samples and claims."""
    folder.mkdir()
    shipped = REPOSITORY_ROOT / "configs" / "pocket"
    study = yaml.safe_load((shipped / "study.yaml").read_text())
    for name, changes in SMALLER.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load((shipped / f"{name}.yaml").read_text()), **changes}))
        study[name] = str(path)
    necessity = write_study_settings(folder / "necessity", seeds=[0])
    changes = {
        "output_dir": str(folder / "study"),
        "necessity": str(necessity),
        "cluster": str(cluster),
        "pairs": [f"pocket_pairs:{study['pairs']}"],
        "probed": ["sft", "full"],
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**study, **changes}))
    return path


def gaps(study: Path) -> list[str]:
    """Returns what the page lists as missing."""
    page = (study / "report.html").read_text()
    start = page.find('<div class="missing"><p><b>Missing.</b>')
    return re.findall(r"<li><b>([^<]+)</b>", page[start : page.index("</details>", start)]) if start >= 0 else []


def test_a_study_comes_to_its_report_without_an_arm_that_fails_and_a_second_launch_completes_it(
    slurm: RealSlurm, cluster_file: Callable[..., Path], warm_python: Path, tmp_path: Path
) -> None:
    warm = [f"export PATH={warm_python.parent}:$PATH"]
    config = write_study(tmp_path / "settings", cluster_file(memory=f"{MEMORY_PER_NODE_MB // 2}M", environment=warm))
    study = tmp_path / "settings" / "study"
    command(slurm, warm_python, "slurm.launch", "--config", config)
    in_the_way = study / "necessity" / "arms" / BROKEN / "notes.txt"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("no run of this suite")
    slurm.wait_until_idle(within_s=900)
    shown = command(slurm, Path(sys.executable), "slurm.status", study)
    for label in WHOLE:
        for folder in ("necessity/arms", "necessity/eval", "abilities", "samples"):
            assert is_finished(study / folder / label), shown
    for folder in ("swap/sft", "skip/full-seed0", "attention", "all_deltas", "splices", "splice_comparison", "claims"):
        assert is_finished(study / folder), shown
    assert "holds 'notes.txt' but no run.json" in shown
    assert not (study / "necessity" / "eval" / BROKEN / "run.json").exists(), shown
    tables = ("comparison", "ability_comparison", "support")
    for table in tables:
        assert "freeze-mid@0" in (study / "missing" / f"{table}.txt").read_text()
    scores = study / "necessity" / "comparison" / "scores.csv"
    assert "full" in scores.read_text() and "freeze-mid" not in scores.read_text()
    missing = {BROKEN, *(f"{kind}-{BROKEN}" for kind in ("eval", "abilities", "samples")), "necessity", *tables}
    assert missing <= set(gaps(study)), gaps(study)
    begun = read_run(study / "swap" / "sft")["attempts"]

    in_the_way.unlink()
    command(slurm, warm_python, "slurm.launch", "--config", config)
    slurm.wait_until_idle(within_s=600)
    shown = command(slurm, Path(sys.executable), "slurm.status", study)
    number = len(json.loads((study / "plan.json").read_text())["jobs"])
    assert f"{number} of {number} jobs are finished" in shown
    assert {path.name: path.read_text() for path in (study / "missing").iterdir() if path.read_text()} == {}
    assert gaps(study) == []
    assert "freeze-mid" in scores.read_text()
    assert "Not answered" not in (study / "report.html").read_text()
    assert read_run(study / "swap" / "sft")["attempts"] == begun  # what was finished stays


@pytest.mark.parametrize("config", STUDIES, ids=[path.parent.name for path in STUDIES])
def test_sbatch_takes_every_script_of_a_shipped_study(
    config: Path, slurm: RealSlurm, warm_python: Path, tmp_path: Path
) -> None:
    said = command(
        slurm, warm_python, "slurm.launch", "--config", config, "--output-dir", tmp_path / "study", "--test-only"
    )
    assert "sbatch would take all" in said
