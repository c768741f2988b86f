"""The jobs of a study, their dependencies, and jobs that use the available results."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from slurm.gather import main as gather_main
from slurm.gather import split_inputs
from slurm.planning.cluster import Cluster
from slurm.planning.hours import Costs, TrainingPlan
from slurm.planning.plan import plan_study
from slurm.planning.rehearse import check_settings
from slurm.planning.settings import read_settings
from slurm.planning.stages import Stage, make_stages
from slurm.planning.study import StudyArguments, StudyJob
from slurm.submitting.submit import unfinished
from tracking.command import REPOSITORY_ROOT
from tracking.run import open_run

STUDIES = sorted(
    path for path in (REPOSITORY_ROOT / "configs").glob("*/study.yaml") if "\nnecessity:" in path.read_text()
)
"""Of experiments."""
CPU = Cluster(time=["default=01:00:00"], gpus_per_node=0)
GPU = Cluster(time=["default=01:00:00"], gpus_per_node=8)
ARMS = ("full", "freeze-mid")
SEEDS = (0, 1)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)


def necessity(out: str, *, built: bool = True, arms: Sequence[str] = ARMS) -> dict[str, Any]:
    """A plan as train.necessity prints it: two seeds an arm."""
    folder = f"{out}/necessity"
    runs = [{"arm": arm, "seed": seed, "label": f"{arm}-seed{seed}"} for arm in arms for seed in SEEDS]
    labels = [str(run["label"]) for run in runs]

    def job(name: str, kind: str, place: str, module: str, *needs: str, launcher: str = "python -m") -> dict[str, Any]:
        asked = ["--config", "configs/pocket/eval.yaml", "--model", "m", "--tasks", f"{folder}/data/data:test"]
        argv = [*launcher.split(), module, *(asked if kind == "eval" else []), "--output_dir", f"{folder}/{place}"]
        return {"name": name, "kind": kind, "argv": argv, "output_dir": f"{folder}/{place}", "needs": list(needs)}

    sources = [
        job("data", "data", "data", "data_builders.build"),
        job("base", "base", "base", "train.sft", "data"),
        job("sft", "sft", "sft", "train.sft", "data", "base"),
    ]
    at_hand = [] if built else ["base", "sft"]
    jobs = [entry for entry in sources if built] + [
        *(job(label, "arm", f"arms/{label}", "train.grpo", *(["data", "sft"] if built else []),
              launcher="accelerate launch --num_processes 2 -m") for label in labels),
        *(job(f"eval-{model}", "eval", f"eval/{model}", "eval.run", *([] if model in at_hand else [model]))
          for model in ("base", "sft", *labels)),
    ]  # fmt: skip
    compared = [f"{run['arm']}@{run['seed']}={folder}/eval/{run['label']}" for run in runs]
    comparison = job("comparison", "compare", "comparison", "eval.compare", *(f"eval-{label}" for label in labels))
    comparison["argv"][3:3] = compared
    jobs += [comparison, job("deltas", "deltas", "deltas", "analyze.deltas", *labels)]
    return {
        "output_dir": folder, "num_layers": 6, "partition": "thirds", "cuts": [], "prompts": f"{folder}/data/data",
        "checkpoints": {name: f"{folder}/{name}/final" if built else f"hub/{name}" for name in ("base", "sft")},
        "runs": runs, "configs": [], "expected_s": {}, "jobs": jobs,
    }  # fmt: skip


def pocket(**changes: Any) -> StudyArguments:
    return replace(read_settings(StudyArguments, Path("configs/pocket/study.yaml")), **changes)


def stages_of(
    jobs: list[StudyJob], arguments: StudyArguments, cluster: Cluster = CPU, arm_gpus: int = 8
) -> dict[str, Stage]:
    stages = make_stages(jobs, arguments, cluster, folder="out/slurm/1", arm_gpus=arm_gpus, start="start")
    return {stage.job.name: stage for stage in stages}


def waits(stage: Stage) -> set[str]:
    return {f"{wait.kind}:{wait.stage}" + ("" if wait.index is None else f"_{wait.index}") for wait in stage.waits}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.stem)
def test_shipped_studies_are_read(path: Path) -> None:
    arguments = read_settings(StudyArguments, path)
    assert read_settings(Cluster, Path(arguments.cluster)).limits
    assert arguments.samples
    assert (arguments.tower and not arguments.splices) if arguments.by else (
        arguments.splices == "paper" and arguments.claims
    )  # fmt: skip


def test_abilities_reuse_the_replies_of_evaluations_with_the_same_settings(tmp_path: Path) -> None:
    arguments = pocket()
    jobs = {job.name: job for job in plan_study(arguments, necessity(arguments.output_dir))}
    assert jobs["abilities-sft"].words_after("--reuse") == [jobs["eval-sft"].output_dir]
    assert "eval-sft" in jobs["abilities-sft"].needs and "eval-sft" not in jobs["samples-sft"].needs
    other = tmp_path / "abilities.yaml"
    other.write_text(Path(str(arguments.abilities)).read_text().replace("max_new_tokens: 32", "max_new_tokens: 33"))
    changed = replace(arguments, abilities=str(other))
    jobs = {job.name: job for job in plan_study(changed, necessity(arguments.output_dir))}
    assert not jobs["abilities-sft"].words_after("--reuse") and "eval-sft" not in jobs["abilities-sft"].needs


def test_an_arm_waits_for_its_own_predecessor_and_tables_for_nobodys_success() -> None:
    arguments = pocket()
    stages = stages_of(plan_study(arguments, necessity(arguments.output_dir)), arguments)
    assert [task.name for task in stages["train"].job.tasks] == [f"{arm}-seed{seed}" for arm in ARMS for seed in SEEDS]
    assert waits(stages["train"]) == {"afterok:data", "afterok:sft"}
    own = {"evaluate": set(), "samples": set(), "abilities": {"aftercorr:evaluate", "afterok:descriptions"}}
    for name, others in own.items():
        assert waits(stages[name]) == {"aftercorr:train", "afterok:data", *others}
        assert [task.index for task in stages[name].job.tasks] == [0, 1, 2, 3]
    assert waits(stages["skip"]) == {"afterok:data", "afterok:train_0"}
    assert waits(stages["swap"]) == {"afterok:pairs", "afterok:train_0"}
    assert waits(stages["splices"]) == {"afterok:sft", "afterok:train_0"}
    assert waits(stages["splice_abilities"]) == {"afterok:data", "afterok:splices", "afterok:descriptions"}
    assert waits(stages["attention"]) == {"afterany:data", "afterany:base", "afterany:sft", "afterany:train_0"}
    for name in ("comparison", "deltas", "ability_comparison", "support", "splice_comparison", "claims", "necessity"):
        assert all(wait.kind == "afterany" for wait in stages[name].waits), name
    assert waits(stages["report"]) == {f"afterany:{name}" for name in stages if name != "report"}


def test_every_stage_comes_after_what_it_waits_for() -> None:
    arguments = pocket()
    seen: set[str] = set()
    for name, stage in stages_of(plan_study(arguments, necessity(arguments.output_dir)), arguments).items():
        assert {wait.stage for wait in stage.waits} <= seen, name
        seen.add(name)


def test_models_and_prompts_at_hand_are_waited_for_by_nobody() -> None:
    arguments = pocket(prompts=None, pairs=[], swap=None)
    stages = stages_of(plan_study(arguments, necessity(arguments.output_dir, built=False)), arguments)
    assert waits(stages["train"]) == waits(stages["evaluate_start"]) == waits(stages["skip_start"]) == set()
    arguments = pocket(prompts="rl:configs/pocket/data.yaml")
    plan = necessity(arguments.output_dir, built=False)
    stages = stages_of(plan_study(arguments, {**plan, "prompts": "outputs/rl/data"}), arguments)
    assert waits(stages["train"]) == {"afterok:prompts"}
    assert stages["prompts"].job.tasks[0].output_dir == "outputs/rl"


def test_jobs_get_the_gpus_they_need() -> None:
    arguments = pocket()
    jobs = plan_study(arguments, necessity(arguments.output_dir))
    shapes = {name: stage.job.shape for name, stage in stages_of(jobs, arguments, GPU).items()}
    assert shapes["train"] == "node" and shapes["evaluate"] == "process" and shapes["report"] == "cpu"
    train = stages_of(jobs, arguments, GPU, arm_gpus=16)["train"].job
    assert (train.shape, train.nodes, train.gpus, train.processes) == ("nodes", 2, 8, 16)
    beside = stages_of(jobs, replace(arguments, vllm_gpus=2), GPU, arm_gpus=6)["train"].job
    assert (beside.shape, beside.gpus, beside.server_gpus) == ("vllm", 6, 2)
    assert {stage.job.shape for stage in stages_of(jobs, arguments, CPU).values()} == {"cpu"}
    across = stages_of(jobs, replace(arguments, arm_nodes=2), CPU)["train"].job
    assert (across.shape, across.nodes, across.processes) == ("nodes", 2, 2)
    with pytest.raises(ValueError, match="12 GPUs do not fill whole nodes of 8"):
        stages_of(jobs, arguments, GPU, arm_gpus=12)
    with pytest.raises(ValueError, match="8 GPUs for training and 2 for vLLM do not fit a node of 8"):
        stages_of(jobs, replace(arguments, vllm_gpus=2), GPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skip_tasks": []}, "skip is given without skip_tasks"),
        ({"splices": "some"}, "splices is 'some'; expected paper or all"),
        ({"pairs": ["ocr"]}, "'ocr'; expected TASK:CONFIG"),
        ({"swap": "configs/pocket/swop.yaml"}, "configs/pocket/swop.yaml does not exist"),
        ({"output_dir": "a\nb"}, "contains a line break"),
        ({"expected_s": ["arm=long"]}, "expected KIND=SECONDS"),
        ({"expected_s": ["amr=3"]}, "expected_s 'amr' is no kind of job; did you mean 'arm'"),
        ({"num_prompts": ["study:test=all"]}, "num_prompts study:test=all; expected TASK=N"),
        ({"training_tokens_per_s": 0.0}, "training_tokens_per_s is 0.0; it must be above 0"),
        ({"output_dir": " "}, "output_dir is empty"),
        ({"output_dir": "~/study"}, "'~/study' is taken as it stands; write the folder out"),
        ({"output_dir": "seed=1"}, "'seed=1' holds =, which separates NAME=PATH"),
        ({"arm_gpus": 0}, "arm_gpus is 0; it must be at least 1"),
        ({"probed": []}, "swap is given without probed"),
        ({"splice_rest": ["vision=sft"]}, "splice_rest 'vision=sft'; expected in, rl"),
        ({"vllm_gpus": 1, "vllm_options": ["--max-model-len 6144"]}, r"expected \[--max-model-len, 6144\]"),
        ({"skip": "README.md"}, "README.md: not readable as YAML"),
        ({"by": "look"}, "by is 'look'; expected modality"),
        ({"by": "modality", "samples": None}, "by is given without samples, the replies whose pass@k is compared"),
        ({"samples": None, "sampled": ["full"]}, "sampled is given without samples, what these arms answer"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pocket(**change)


def test_a_model_that_is_not_in_the_study_is_refused() -> None:
    arguments = pocket(probed=["sft", "freeze-mod"])
    with pytest.raises(ValueError, match=r"'freeze-mod' is not a model of the study; did you mean 'freeze-mid'"):
        plan_study(arguments, necessity(arguments.output_dir))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": ["ocr:configs/pairs/ocr.yaml"] * 2}, "pairs names two sets 'ocr'; give their files different names"),
        ({"probed": ["sft", "sft"]}, "probed is sft, sft; expected each model once"),
        ({"probed": ["base", "sft"]}, "deltas is given, but probed, base, sft, has no arm"),
        ({"by": "modality"}, "by is modality, but configs/pocket/necessity.yaml has no arm by data"),
        ({"sampled": ["freeze-mod"]}, "sampled 'freeze-mod' is no arm of the study; did you mean 'freeze-mid'"),
    ],
)
def test_what_cannot_be_planned_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = pocket(**change)
    with pytest.raises(ValueError, match=message):
        plan_study(arguments, necessity(arguments.output_dir))


def test_a_study_by_modality_has_its_tables_and_its_page(tmp_path: Path) -> None:
    tower = tmp_path / "tower.yaml"
    tower.write_text("data: pocket:100\n")
    arguments = pocket(by="modality", tower=str(tower), probed=["base", "sft", "data-all"], swap=None, skip=None,
                       attention=None, deltas=None, splices=None, claims=None, output_dir="o")  # fmt: skip
    arms = ("data-negative", "data-all", "sft-all", "data-negative-freeze-mid")
    stages = stages_of(plan_study(arguments, necessity("o", arms=arms)), arguments, GPU)
    commands = {name: stage.jobs[0] for name, stage in stages.items()}
    assert commands["support"].words_after("--by") == ["modality"]
    assert not [job.name for job in stages["samples"].jobs if job.name.startswith("samples-sft")]
    compared = [word for word in commands["transfer"].command if "=" in word]
    assert [word.partition("=")[0] for word in compared] == [
        "sft", *(f"{arm}@{seed}" for arm in arms for seed in SEEDS)
    ]  # fmt: skip
    assert compared[1] == "data-negative@0=o/necessity/eval/data-negative-seed0"
    assert commands["tower"].words_after("--model") == [
        "base=o/necessity/base/final", "sft=o/necessity/sft/final",
        "data-all=o/necessity/arms/data-all-seed0/final",
    ]  # fmt: skip
    assert stages["tower"].job.shape == "process" and stages["modalities"].job.shape == "cpu"
    assert waits(stages["statements"]) == {"afterany:support", "afterany:tower", "afterany:transfer"}
    assert waits(stages["modalities"]) == waits(stages["statements"]) | {"afterany:statements"}
    assert commands["modalities"].command == ("analyze.modalities", "o", "--output_dir", "o/modalities")
    few = replace(arguments, sampled=["data-all"], support_k=4)
    jobs = {job.name: job for job in plan_study(few, necessity("o", arms=arms))}
    asked = [job.removeprefix("samples-") for job in jobs if job.startswith("samples-")]
    assert asked == ["base", "sft", *(f"data-all-seed{seed}" for seed in SEEDS)]
    assert jobs["support"].words_after("--k") == ["4"]


def test_only_the_arms_of_selected_prompts_wait_for_the_selection(tmp_path: Path) -> None:
    plan = necessity("o", arms=("data-all", "data-boundary"))
    config = tmp_path / "boundary.yaml"
    config.write_text("max_new_tokens: 32\n")
    argv = ["python", "-m", "eval.boundary", "--config", str(config), "--model", "m", "--data", plan["prompts"]]
    place = "o/necessity/boundary"
    selection = {"name": "boundary", "kind": "boundary", "argv": [*argv, "--output_dir", place], "output_dir": place,
                 "needs": ["data", "sft"]}  # fmt: skip
    first = [job["kind"] for job in plan["jobs"]].index("arm")
    plan["jobs"].insert(first, selection)
    for job in plan["jobs"]:
        if job["kind"] == "arm" and job["name"].startswith("data-boundary"):
            job["needs"].append("boundary")
    arguments = pocket(swap=None, skip=None, attention=None, deltas=None, splices=None, claims=None, probed=["sft"],
                       output_dir="o", arm="data-all", num_prompts=["study:rl=100"])  # fmt: skip
    jobs = plan_study(arguments, plan)
    stages = stages_of(jobs, arguments, GPU)
    assert "afterok:boundary" in waits(stages["train_boundary"]) - waits(stages["train"])
    assert "aftercorr:train" in waits(stages["evaluate"]) and stages["boundary"].job.shape == "process"
    assert {wait.stage for wait in stages["evaluate_boundary"].waits} == {"data", "train_boundary"}
    (comparison,) = [job for job in jobs if job.name == "comparison"]
    assert set(comparison.after) >= {"eval-data-boundary-seed0", "eval-data-all-seed1"}
    costs = Costs(arguments, plan, TrainingPlan(num_gpus=1, tokens={"data-all": 10}))
    by_name = {job.name: job for job in jobs}
    assert costs.num_replies(by_name["boundary"]) == 100 * 8
    assert costs.gpu_hours(by_name["data-boundary-seed0"]) is None


def test_one_mode_is_counted_as_a_list_of_one_is(tmp_path: Path) -> None:
    config = tmp_path / "swap.yaml"
    for text in ("mode: from", "mode: [from]"):
        config.write_text(text)
        arguments = pocket(swap=str(config))
        plan = necessity(arguments.output_dir)
        jobs = {job.name: job for job in plan_study(arguments, plan)}
        assert Costs(arguments, plan, TrainingPlan(num_gpus=2, tokens={})).num_replies(jobs["swap-sft"]) == 100 * 7


def probes_of(arguments: StudyArguments) -> list[StudyJob]:
    jobs = plan_study(arguments, necessity(arguments.output_dir))
    return [job for job in jobs if "/necessity/" not in job.output_dir]


MISTAKEN = {
    "swap": ("max_new_tokns: 3", "swap-base: .*swap.yaml: unknown key 'max_new_tokns'; did you mean 'max_new_tokens'"),
    "samples": ("num_samples: 0", "samples-base: num_samples is 0"),
    "deltas": ("measures: [energie]", "all_deltas: measure 'energie' is unknown; did you mean 'energy'"),
}


@pytest.mark.parametrize("kind", MISTAKEN)
@pytest.mark.cases_slow
def test_a_mistake_in_a_probes_settings_is_told_when_the_study_is_planned(kind: str, tmp_path: Path) -> None:
    text, message = MISTAKEN[kind]
    (tmp_path / f"{kind}.yaml").write_text(text)
    arguments = pocket(**{kind: str(tmp_path / f"{kind}.yaml")})
    with pytest.raises(ValueError, match=f"a job of the study: {message}"):
        check_settings(probes_of(arguments))


def test_names_that_a_command_does_not_know_are_told_when_the_study_is_planned() -> None:
    for changes, message in (
        ({"pairs": ["ocre:configs/pairs/ocr.yaml"]}, "pairs-ocr: task 'ocre' is unknown.*did you mean 'ocr'"),
        ({"described": "tests"}, "descriptions: split 'tests' is unknown"),
    ):
        arguments = pocket(**changes)
        with pytest.raises(ValueError, match=message):
            check_settings(probes_of(arguments))


def test_costs_count_replies_by_hand() -> None:
    arguments = pocket(num_prompts=["study:test=100", "study:validation=10"], training_tokens_per_s=50.0,
                       reply_tokens_per_s=10.0)  # fmt: skip
    plan = necessity(arguments.output_dir)
    jobs = {job.name: job for job in plan_study(arguments, plan)}
    costs = Costs(arguments, plan, TrainingPlan(num_gpus=2, tokens={"full": 360_000, "freeze-mid": None}))
    assert costs.gpu_hours(jobs["full-seed1"]) == 360_000 / 50 / 3600
    assert costs.gpu_hours(jobs["freeze-mid-seed0"]) is None
    assert costs.num_replies(jobs["swap-sft"]) == 100 * 2 * 7  # pairs x modes x (layers and none)
    assert costs.num_replies(jobs["skip-sft"]) == 100 * (2 + 6 + 3)  # controls, layers, blocks
    assert costs.num_replies(jobs["abilities-sft"]) == 100 * 3  # given, black, described
    assert costs.num_replies(jobs["samples-sft"]) == 10 * 16
    assert costs.gpu_hours(jobs["samples-sft"]) == 10 * 16 * 32 / 10 / 3600


def test_arms_take_the_assumed_speed_where_none_is_configured() -> None:
    assumed = TrainingPlan(
        num_gpus=2, tokens={"full": 360_000, "freeze-mid": None}, tokens_per_s=20.0, source="a guess"
    )
    for configured, speed in ((None, 20.0), (50.0, 50.0)):
        arguments = pocket(training_tokens_per_s=configured)
        plan = necessity(arguments.output_dir)
        jobs = {job.name: job for job in plan_study(arguments, plan)}
        costs = Costs(arguments, plan, assumed)
        assert costs.training_tokens_per_s == speed
        assert costs.gpu_hours(jobs["full-seed1"]) == 360_000 / speed / 3600


def finish(directory: Path) -> None:
    with open_run(directory, command="eval.run", settings={}):
        pass


def test_gathering_leaves_out_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path / "eval" / "sft")
    finish(tmp_path / "arms" / "full-seed0")
    (tmp_path / "arms" / "full-seed0" / "final").mkdir()
    with pytest.raises(RuntimeError), open_run(tmp_path / "eval" / "full", command="eval.run", settings={}):
        raise RuntimeError("died")
    there = [f"sft={tmp_path}/eval/sft", f"full@0={tmp_path}/arms/full-seed0/final", "base=Qwen/Qwen2.5-VL-3B-Instruct"]
    missing = [f"full@1={tmp_path}/eval/full", f"mid={tmp_path}/eval/mid", f"paper={tmp_path}/c/scores.csv"]
    rest = ["eval.compare", "--baseline", "sft", "--output_dir", str(tmp_path / "comparison")]
    kept, lost = split_inputs([*rest[:1], *there, *missing, *rest[1:]], tmp_path)
    assert kept == [*rest[:1], *there, *rest[1:]]
    assert lost == missing
    for reference in ("full", "mid"):
        kept, lost = split_inputs([*there, *missing, "--reference", reference], tmp_path)
        assert kept == [*there, *(["--reference", "full"] if reference == "full" else [])]
        assert lost == [*missing, *([] if reference == "full" else ["--reference mid"])]


def test_gathering_leaves_out_a_folder_of_tables_with_its_option(tmp_path: Path) -> None:
    finish(tmp_path / "support")
    support, tower = ["--support", f"{tmp_path}/support"], ["--tower", f"{tmp_path}/tower"]
    rest = ["--output_dir", f"{tmp_path}/statements"]
    kept, lost = split_inputs(["eval.claims", *support, *tower, *rest], tmp_path)
    assert (kept, lost) == (["eval.claims", *support, *rest], [f"tower={tmp_path}/tower"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the command is ''; expected MODULE … --output_dir DIR"),
        (["eval.compare", "a=b"], "the command is 'eval.compare a=b'; expected MODULE … --output_dir DIR"),
        (["eval.compare", "--output_dir"], "expected MODULE … --output_dir DIR"),
    ],
)
def test_gathering_without_a_folder_for_the_table_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_main(["--study", str(tmp_path), "--name", "t", *words])
    with pytest.raises(ValueError, match="does not exist; expected the folder of a study"):
        gather_main(["--study", str(tmp_path / "typo"), "--name", "t", *words])
    assert list(tmp_path.iterdir()) == []
    assert split_inputs(["eval.compare", "--reference"], tmp_path) == (["eval.compare", "--reference"], [])


@pytest.mark.slow
def test_tables_are_made_anew_when_their_inputs_are_others(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import pathlib, sys; pathlib.Path('words').write_text(repr(sys.argv[1:]))")
    output = ["--output_dir", str(tmp_path / "table")]

    def gather() -> tuple[list[str], str]:
        command = ["--study", tmp_path, "--name", "t", "program", f"a={tmp_path}/a", f"b={tmp_path}/b", *output]
        subprocess.run(
            [sys.executable, "-m", "slurm.gather", *map(str, command)],
            cwd=tmp_path, env={"PYTHONPATH": f"{REPOSITORY_ROOT}:{tmp_path}", "PATH": ""}, check=True,
            capture_output=True,
        )  # fmt: skip
        finish(tmp_path / "table")
        words = ast.literal_eval((tmp_path / "words").read_text())
        return words, (tmp_path / "missing" / "t.txt").read_text()

    a, b = f"a={tmp_path}/a", f"b={tmp_path}/b"
    finish(tmp_path / "a")
    assert gather() == ([a, *output], f"{b}\n")
    assert gather() == ([a, *output], f"{b}\n")
    finish(tmp_path / "b")
    assert gather() == ([a, b, *output, "--overwrite"], "")
    shutil.rmtree(tmp_path / "table")
    assert gather() == ([a, b, *output], "")
    assert gather() == ([a, b, *output], "")
    run = json.loads((tmp_path / "b" / "run.json").read_text())
    run["attempts"][-1]["end"] = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    (tmp_path / "b" / "run.json").write_text(json.dumps(run))
    assert gather() == ([a, b, *output, "--overwrite"], "")


def test_what_gathers_runs_again_when_it_comes_after_something_that_does(tmp_path: Path) -> None:
    def job(name: str, *after: str) -> StudyJob:
        return StudyJob(
            name=name, kind=name, stage=name, index=0, command=(name,), output_dir=str(tmp_path / name), after=after
        )

    jobs = [job("arm"), job("other"), job("table", "arm", "other"), job("claims", "table"), job("lone", "other")]
    for each in jobs:
        finish(Path(each.output_dir))
    assert unfinished(jobs) == []
    shutil.rmtree(tmp_path / "arm")
    left = {each.name: each.after for each in unfinished(jobs)}
    assert left == {"arm": (), "table": ("arm",), "claims": ("table",)}


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.stem)
def test_shipped_studies_are_planned_without_weights_or_network(path: Path, warm_python: Path) -> None:
    told = subprocess.run(
        [warm_python, "-m", "slurm.launch", "--config", str(path), "--dry-run"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    by_modality = ("tower", "transfer", "statements", "modalities")
    by_block = ("swap", "skip", "attention", "splices", "claims")
    own = by_modality if read_settings(StudyArguments, path).by else by_block
    for name in ("train", "evaluate", "support", "report", *own):
        assert f"\n{name} " in told
    assert "GPU-hours: at most" in told or "minutes of work" in told
    # 1,500 steps with replies of 28,696 tokens at most: weeks, and 20 attempts of a day are fewer
    assert ("longer than the cluster's settings allow" in told) == (path.parent.stem == "openmmreasoner_7b")


def test_the_plan_of_a_necessity_study_is_plain_json(capsys: pytest.CaptureFixture[str]) -> None:
    from train.necessity import main

    main(["--config", "configs/pocket/necessity.yaml", "--output_dir", "outputs/nowhere", "--plan_json", "true"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["prompts"] == "outputs/nowhere/data/data" and plan["num_layers"] == 6
    assert plan["checkpoints"] == {"base": "outputs/nowhere/base/final", "sft": "outputs/nowhere/sft/final"}
    (arm,) = [job for job in plan["jobs"] if job["name"] == "freeze-mid-seed1"]
    assert arm["argv"][:3] == ["python", "-m", "train.grpo"] and arm["needs"] == ["data", "sft"]
    assert not Path("outputs/nowhere").exists()
