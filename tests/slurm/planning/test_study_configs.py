"""Every configuration of a shipped study is read as its command reads it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from analyze.attention.command import AttentionArguments
from analyze.deltas.command import DeltaArguments
from analyze.skip.command import SkipArguments
from analyze.swap.command import SwapArguments
from eval.replies.descriptions import DescriptionArguments
from eval.replies.sampling import SamplingArguments
from eval.run import EvaluationArguments
from eval.tasks import TASKS
from eval.tower.command import TowerArguments
from models.fetch import FetchArguments, find_repositories
from slurm.planning.settings import read_settings
from slurm.planning.study import StudyArguments
from tracking.command import REPOSITORY_ROOT, parse_arguments

STUDIES = sorted(
    path
    for name in ("study", "modalities")
    for path in (REPOSITORY_ROOT / "configs").glob(f"*/{name}.yaml")
    if "\nnecessity:" in path.read_text()
)
"""Of experiments; a calibration has no probes of its own."""
EVALUATION = (EvaluationArguments, SamplingArguments, DescriptionArguments)
GIVEN: dict[str, tuple[Sequence[type], list[str]]] = {
    "swap": ((SwapArguments,), ["--model", "m", "--pairs", "p"]),
    "skip": ((SkipArguments,), ["--model", "m", "--tasks", "d:test"]),
    "attention": ((AttentionArguments,), ["--models", "a=m", "--tasks", "d:test"]),
    "deltas": ((DeltaArguments,), ["--sft", "a", "--rl", "full@0=b"]),
    "abilities": (EVALUATION, ["--model", "m", "--tasks", "d:test"]),
    "samples": (EVALUATION, ["--model", "m", "--tasks", "d:test"]),
    "tower": ((TowerArguments,), ["--model", "a=m"]),
}
"""Kind of job -> its arguments, and what slurm.launch adds."""
OF_EVERY_STUDY = {
    None: {"swap", "skip", "attention", "deltas", "abilities", "samples"},
    "modality": {"samples", "tower"},
}
"""`by` of a study -> the kinds of jobs that a shipped one configures."""


def ids(path: Path) -> str:
    return f"{path.parent.stem}-{path.stem}"


def configured(path: Path) -> dict[str, str]:
    """Returns the configurations that a study names, by kind of job."""
    study = yaml.safe_load(path.read_text())
    return {kind: study[kind] for kind in GIVEN if study.get(kind)}


@pytest.mark.parametrize("path", STUDIES, ids=ids)
def test_a_study_configures_every_kind_of_its_jobs(path: Path) -> None:
    assert set(configured(path)) == OF_EVERY_STUDY[yaml.safe_load(path.read_text()).get("by")]


@pytest.mark.parametrize(
    ("path", "kind"),
    [pytest.param(path, kind, id=f"{ids(path)}-{kind}") for path in STUDIES for kind in configured(path)],
)
def test_configurations_of_a_study_parse(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)
    config = getattr(read_settings(StudyArguments, path), kind)
    classes, given = GIVEN[kind]
    arguments, *others = parse_arguments(["--config", config, *given, "--output_dir", "o"], *classes, description=None)
    if kind == "samples":
        assert others[0].num_samples > 1 and others[0].temperature > 0
    if kind == "abilities":
        assert arguments.abilities or "black" in arguments.conditions, "the vision ability needs a black image"


@pytest.mark.parametrize("path", STUDIES, ids=ids)
def test_models_of_a_study_are_asked_as_they_are_trained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)
    study = read_settings(StudyArguments, path)

    def style(config: str) -> str | None:
        value = yaml.safe_load(Path(config).read_text()).get("prompt_style")
        assert value is None or isinstance(value, str)
        return value

    trained = style(yaml.safe_load(Path(study.necessity).read_text())["grpo_config"])
    for config in filter(None, (study.abilities, study.samples, study.skip, study.attention)):
        assert style(config) == trained, config


@pytest.mark.parametrize("path", STUDIES, ids=ids)
def test_what_a_study_reads_of_the_hub_is_what_is_fetched_for_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)
    study = read_settings(StudyArguments, path)
    benchmarks = [TASKS[task] for task in {*study.tasks, *study.sample_tasks} if task in TASKS]
    assert sorted(study.datasets) == sorted(f"{each.repo}@{each.revision}" for each in benchmarks)
    found = find_repositories(FetchArguments(study=str(path)))
    assert {str(each) for each in found if each.kind == "dataset"} == set(study.datasets)
    by_kind = {key: find_repositories(FetchArguments(study=str(config))) for key, config in vars(study).items()
               if key in GIVEN and config}  # fmt: skip
    assert all(set(named) <= set(found) for named in by_kind.values())
