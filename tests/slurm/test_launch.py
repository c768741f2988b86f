"""What a launch writes, what it submits again, and the same study without Slurm."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm.cancel import cancel
from slurm.launch import main
from slurm.planning.cluster import Cluster
from slurm.planning.hours import TrainingPlan
from slurm.planning.planned import PLAN_FILE, Study, format_plan, plan_as_json
from slurm.planning.settings import read_settings
from slurm.planning.study import StudyArguments, StudyJob
from slurm.status import format_status, study_status
from slurm.submitting.queueing import Submitted, read_launch
from slurm.submitting.submit import check_folder, dependency, sole_launch, submit, unfinished, write_launch
from tracking.command import REPOSITORY_ROOT, Preempted
from tracking.jobs.schedule import Schedule
from tracking.run import open_run

CLUSTER = Cluster(time=["default=01:00:00"], gpus_per_node=0)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two arms, their evaluations, a table of what there is, and a page."""
    monkeypatch.chdir(REPOSITORY_ROOT)
    out = tmp_path / "my study"
    arguments = replace(read_settings(StudyArguments, Path("configs/pocket/study.yaml")), output_dir=str(out))

    def job(name: str, stage: str, index: int = 0, **waits: tuple[str, ...]) -> StudyJob:
        return StudyJob(
            name=name, kind=stage, stage=stage, index=index, command=("program", name), output_dir=str(out / name),
            **waits,
        )  # fmt: skip

    jobs = [
        job("data", "data"),
        job("a", "train", 0, needs=("data",)),
        job("b", "train", 1, needs=("data",)),
        job("eval-a", "evaluate", 0, needs=("a",)),
        job("eval-b", "evaluate", 1, needs=("b",)),
        job("table", "table", after=("eval-a", "eval-b")),
        job("page", "page", after=("table",)),
    ]
    necessity: dict[str, Any] = {
        "checkpoints": {"sft": "s"}, "runs": [], "num_layers": 6, "prompts": "p", "expected_s": {"train": 60.0},
        "configs": ["configs/pocket/grpo.yaml"],
    }  # fmt: skip
    return Study(
        arguments=arguments,
        cluster=CLUSTER,
        necessity=necessity,
        training=TrainingPlan(num_gpus=1, tokens={}),
        jobs=jobs,
    )


def finish(study: Study, *names: str) -> None:
    for name in names:
        with open_run(study.directory / name, command="test", settings={}):
            pass


def test_dependencies_name_the_last_job_of_each_chain_and_single_tasks(study: Study) -> None:
    submitted: dict[str, Submitted] = {}
    for number, stage in enumerate(study.stages(study.jobs, "f"), start=1):
        said = dependency(stage, submitted)
        expected = {
            "data": "",
            "train": "afterok:12",
            "evaluate": "aftercorr:22",
            "table": "afterany:32",
            "page": "afterany:42",
        }
        assert said == expected[stage.job.name]
        submitted[stage.job.name] = Submitted(
            name=stage.job.name, ids=[f"{number}1", f"{number}2"], is_array=stage.job.is_array, waits=said, tasks=[]
        )
    assert submitted["train"].task_ids(1) == ["21_1", "22_1"] and submitted["page"].task_ids(0) == ["51", "52"]


def test_launched_again_a_study_submits_what_is_left_and_waits_for_nothing_that_is_done(study: Study) -> None:
    finish(study, "data", "a", "eval-a")
    left = unfinished(study.jobs)
    assert [job.name for job in left] == ["a", "b", "eval-a", "eval-b", "table", "page"]  # stages are submitted whole
    assert left[0].needs == () and left[3].needs == ("b",)
    finish(study, "b")
    left = unfinished(study.jobs)
    assert [job.name for job in left] == ["eval-a", "eval-b", "table", "page"]
    assert left[0].needs == () and left[2].after == ("eval-a", "eval-b")


def test_a_launch_keeps_its_scripts_settings_and_code(study: Study) -> None:
    folder = study.directory / "slurm" / "1"
    stages = study.stages(study.jobs, str(folder))
    write_launch(study, folder, stages)
    assert {path.stem for path in (folder / "scripts").iterdir()} == {"data", "train", "evaluate", "table", "page"}
    assert f"cd={REPOSITORY_ROOT}" not in (script := (folder / "scripts" / "train.sh").read_text())
    assert f"#SBATCH --chdir={REPOSITORY_ROOT}" in script and "#SBATCH --array=0,1" in script
    copies = {path.name: path.read_text() for path in (folder / "configs").iterdir()}
    assert copies["configs__pocket__grpo.yaml"] == Path("configs/pocket/grpo.yaml").read_text()
    assert copies["configs__slurm__cpu.yaml"] == Path("configs/slurm/cpu.yaml").read_text()
    assert json.loads((folder / "code.json").read_text()).keys() == {"commit", "dirty"}
    assert json.loads((folder / "study.json").read_text())["output_dir"] == str(study.directory)


def test_a_folder_that_holds_something_else_is_refused(study: Study) -> None:
    check_folder(study)
    study.directory.mkdir()
    (study.directory / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds files but no plan\.json"):
        check_folder(study)


def test_a_finished_job_of_another_command_is_refused_by_name(study: Study) -> None:
    study.directory.mkdir()
    (study.directory / PLAN_FILE).write_text(json.dumps(plan_as_json(study)))
    changed = [replace(job, command=("program", "other")) if job.name == "a" else job for job in study.jobs]
    check_folder(replace(study, jobs=changed))
    finish(study, "a")
    check_folder(study)
    with pytest.raises(ValueError, match="has a finished a of another command"):
        check_folder(replace(study, jobs=changed))


def test_a_table_of_other_models_is_made_anew_and_not_refused(study: Study) -> None:
    def with_table(*words: str) -> Study:
        jobs = [replace(job, command=("program", *words)) if job.name == "table" else job for job in study.jobs]
        return replace(study, jobs=jobs)

    study.directory.mkdir()
    (study.directory / PLAN_FILE).write_text(json.dumps(plan_as_json(with_table("a=A"))))
    finish(study, "table")
    check_folder(with_table("a=A", "b=B"))


def test_a_damaged_plan_is_named(study: Study) -> None:
    study.directory.mkdir()
    for left in ("", "[]", '{"jobs": 3}', '{"jobs": [{"name": "a"}]}'):
        (study.directory / PLAN_FILE).write_text(left)
        for command in (lambda: check_folder(study), lambda: study_status(study.directory)):
            with pytest.raises(ValueError, match=r"plan\.json is damaged; restore it"):
                command()


def test_an_output_dir_that_is_a_file_or_in_one_is_refused(study: Study, tmp_path: Path) -> None:
    study.directory.write_text("a note")
    for place in (study.directory, study.directory / "deep" / "down"):
        changed = replace(study, arguments=replace(study.arguments, output_dir=str(place)))
        with pytest.raises(ValueError, match="my study is a file; expected a folder"):
            check_folder(changed)
    assert study.directory.read_text() == "a note"


def test_a_launch_killed_before_its_plan_was_written_is_launched_again(study: Study) -> None:
    with sole_launch(study):
        (study.directory / f".partial-{PLAN_FILE}").touch()
    check_folder(study)


def test_of_two_launches_at_once_one_is_refused(study: Study) -> None:
    with (
        sole_launch(study),
        pytest.raises(ValueError, match="is being launched by another process"),
        sole_launch(study),
    ):
        pass


def test_from_another_folder_nothing_is_launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"relative paths and jobs begin in {REPOSITORY_ROOT}: cd there first"):
        main(["--config", "study.yaml", "--dry-run"])


STANDINS = """#!/bin/bash
name=$(basename "$0")
[[ $1 == --version ]] && exit
echo "$name $*" >>"$SLURM_STANDINS/calls"
number=$(grep -c ^sbatch "$SLURM_STANDINS/calls")
case $name in
sbatch)
    if ((number == $(cat "$SLURM_STANDINS/refused"))); then
        echo "sbatch: error: Invalid account" >&2
        exit 1
    fi
    echo "$number|PENDING|0:00|1:00:00|None|$PWD/${*: -1}" | sed "s|$PWD//|/|" >>"$SLURM_STANDINS/queue"
    printf 'Welcome to the cluster\\n%s;cluster\\n' "$number"
    ;;
squeue) cat "$SLURM_STANDINS/queue" ;;
scancel) true >"$SLURM_STANDINS/queue" ;;
esac
"""


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's clients as scripts: `queue` is what is in the queue, `refused` which call of sbatch fails."""
    folder = tmp_path / "standins"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (folder / name).write_text(STANDINS)
        (folder / name).chmod(0o755)
    for name, text in {"queue": "", "calls": "", "refused": "0"}.items():
        (folder / name).write_text(text)
    monkeypatch.setenv("SLURM_STANDINS", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_without_slurm_a_launch_writes_nothing(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"sbatch is not found; run this on a login node .* or launch with --local"):
        submit(study)
    assert not study.directory.exists()


def test_a_launch_of_which_sbatch_takes_nothing_leaves_no_launch(study: Study, standins: Path) -> None:
    (standins / "refused").write_text("1")
    with pytest.raises(RuntimeError, match="Invalid account"):
        submit(study)
    assert list((study.directory / "slurm").iterdir()) == []
    (standins / "refused").write_text("0")
    assert [entry.ids for entry in read_launch(submit(study))] == [["2"], ["3"], ["4"], ["5"], ["6"]]


def test_a_launch_that_sbatch_refuses_in_the_middle_is_taken_back_whole(study: Study, standins: Path) -> None:
    """With successors, the middle of a chain as well."""
    (standins / "refused").write_text("6")
    with pytest.raises(RuntimeError, match="Invalid account"):
        submit(replace(study, cluster=replace(CLUSTER, requeue=False, max_attempts=4)))
    assert (standins / "calls").read_text().endswith("scancel 1 2 3 4 5\n")
    assert (study.directory / "slurm" / "1" / "cancelled").exists()


def test_what_is_in_the_queue_is_found_though_no_launch_wrote_its_number_down(study: Study, standins: Path) -> None:
    folder = submit(study)
    (folder / "jobs.json").unlink()
    (standins / "queue").open("a").write("9|RUNNING|0:10|1:00|None|/home/me/other/slurm/1/scripts/data.sh\n")
    with pytest.raises(
        ValueError, match=r"5 jobs of .* are still in the queue; wait for them, or: python -m slurm.can"
    ):
        submit(study)
    assert {task.name: task.state for task in study_status(study.directory)} == dict.fromkeys(
        (job.name for job in study.jobs), "PENDING"
    )
    assert cancel(study.directory) == 5
    assert "scancel 1 2 3 4 5\n" in (standins / "calls").read_text()
    assert cancel(study.directory) == 0


def test_what_has_had_its_last_attempt_counts_as_failed_unless_it_was_cancelled(study: Study, standins: Path) -> None:
    folder = submit(study)
    (standins / "queue").write_text("")
    with pytest.raises(Preempted), open_run(study.directory / "a", command="test", settings={}):
        raise Preempted("stopped after step 7")
    (folder / "attempts" / "a").write_text("5\n")
    (folder / "attempts" / "b").write_text("")  # a disk was full
    (folder / "logs" / "a.5.log").write_text("the fifth time\n")
    shown = format_status(study_status(study.directory))
    assert re.search(r"\ba +failed +attempt 5", shown) and "the fifth time" in shown
    (folder / "cancelled").touch()
    assert re.search(r"\ba +stopped +attempt 5", format_status(study_status(study.directory)))


def test_a_cancel_that_slurm_does_not_hear_changes_nothing(
    study: Study, standins: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = submit(study)
    (standins / "scancel").write_text("#!/bin/bash\necho no controller >&2; exit 1")
    with pytest.raises(RuntimeError, match="no controller"):
        cancel(study.directory)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="squeue is not found"):
        cancel(study.directory)
    assert not (folder / "cancelled").exists()


def test_the_plan_shows_every_submission_and_what_it_waits_for(study: Study) -> None:
    lines = {line.split()[0]: line for line in format_plan(study).splitlines() if line}
    assert "aftercorr: train" in lines["evaluate"] and "afterany: evaluate" in lines["table"]
    assert "120 s" in lines["train"] and "2 minutes of work" in lines["expected:"]


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tracking.run import open_run
name = sys.argv[1]
with open({journal!r}, "a") as journal:
    print(name, file=journal)
with open_run(Path({out!r}) / name, command="test", settings={{}}):
    if name == "b":
        raise SystemExit("the disk is made of cheese")
"""


@pytest.mark.slow
def test_without_slurm_an_arm_that_fails_costs_only_what_needs_it(study: Study, tmp_path: Path) -> None:
    program = PROGRAM.format(root=str(REPOSITORY_ROOT), journal=str(tmp_path / "journal"), out=str(study.directory))
    jobs = [replace(job.local(), command=(sys.executable, "-c", program, job.name)) for job in study.jobs]
    schedule = Schedule(jobs, num_parallel=2, log_dir=tmp_path / "logs", expected_s={}, keep_going=True)
    with pytest.raises(
        RuntimeError, match=r"(?s)b failed; .*made of cheese.*not run, since they depend on a failed job: eval-b"
    ):
        schedule.run()
    ran = (tmp_path / "journal").read_text().split()
    assert set(ran) == {"data", "a", "b", "eval-a", "table", "page"}
    assert ran[-2:] == ["table", "page"]
