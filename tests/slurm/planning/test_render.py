"""Scripts as they are submitted: the golden ones, what bash and shellcheck say of them, and what they do when they run.

After a wanted change of a template: REWRITE_GOLDEN=1 python -m pytest tests/slurm/test_render.py, then read the diff.
"""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slurm.planning.cluster import Cluster
from slurm.planning.render import SHAPES, ClusterJob, render
from slurm.planning.study import StudyJob

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path("/home/me/frankenstein suite")
CLUSTER = Cluster(
    time=["default=04:00:00", "arm=1-00:00:00"], gpus_per_node=8, account="lab 7", partition="gpu", cpu_partition="cpu",
    memory="64G", memory_per_gpu="120G", gpu_type="h100", environment=["source .venv/bin/activate"], signal_s=600,
    options=["reservation=it's mine"],
)  # fmt: skip
WITHOUT_REQUEUE = replace(CLUSTER, requeue=False, max_attempts=3, container=["apptainer", "exec", "--nv", "a b.sif"])
SIZES: dict[str, dict[str, int]] = {
    "cpu": {}, "process": {"gpus": 1}, "node": {"gpus": 8}, "nodes": {"gpus": 8, "nodes": 2},
    "vllm": {"gpus": 6, "server_gpus": 2},
}  # fmt: skip


def make_job(shape: str, *, num_tasks: int = 1) -> ClusterJob:
    names = ["full-seed0", "freeze-mid-seed0", "it's-seed1"][:num_tasks]
    tasks = tuple(
        StudyJob(
            name=name,
            kind="arm",
            stage="train",
            index=index,
            command=(
                *("train.grpo", "--config", "configs/pocket/grpo.yaml", "--model_name_or_path", "outputs/a study/sft"),
                *("--seed", "0", "--freeze", "mid", "llm:0-8", "--output_dir", f"outputs/a study/arms/{name}"),
            ),
            output_dir=f"outputs/a study/arms/{name}",
        )
        for index, name in enumerate(names)
    )  # fmt: skip
    server = {"server_model": "outputs/a study/sft", "server_options": ("--max-model-len", "6144")}
    return ClusterJob(
        name="train", study="a study", kind="arm", title="Trains the arms.", shape=shape, tasks=tasks,
        folder="outputs/a study/slurm/1", **SIZES[shape], **(server if shape == "vllm" else {}),  # type: ignore[arg-type]
    )  # fmt: skip


CASES = [(shape, num_tasks, requeue) for shape in SHAPES for num_tasks in (1, 3) for requeue in (True, False)]


def script_of(shape: str, num_tasks: int, requeue: bool) -> str:
    return render(make_job(shape, num_tasks=num_tasks), CLUSTER if requeue else WITHOUT_REQUEUE, root=ROOT)


@pytest.mark.parametrize(("shape", "num_tasks", "requeue"), CASES)
def test_scripts_are_the_golden_ones(shape: str, num_tasks: int, requeue: bool) -> None:
    name = "-".join([shape, *(["array"] if num_tasks > 1 else []), *([] if requeue else ["successors"])])
    path = GOLDEN / f"{name}.sh"
    script = script_of(shape, num_tasks, requeue)
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(script)
    assert script == path.read_text()


@pytest.mark.parametrize(("shape", "num_tasks", "requeue"), CASES)
def test_bash_takes_every_script(shape: str, num_tasks: int, requeue: bool) -> None:
    subprocess.run(["bash", "-n"], input=script_of(shape, num_tasks, requeue), text=True, check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    paths = []
    for shape, num_tasks, requeue in CASES:
        paths.append(tmp_path / f"{shape}{num_tasks}{requeue}.sh")
        paths[-1].write_text(script_of(shape, num_tasks, requeue))
    told = subprocess.run(
        ["shellcheck", "--exclude=SC1091", *paths],  # the cluster's own environment files are not followed
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout == ""


def test_values_with_line_breaks_or_directives_are_refused() -> None:
    job = make_job("cpu")
    for word in ("a\nb", "x #SBATCH --uid=0", "a\u2028b"):
        task = replace(job.tasks[0], command=("train.grpo", "--output_dir", word))
        with pytest.raises(ValueError, match=r"contains a line break|contains #SBATCH"):
            render(replace(job, tasks=(task,)), CLUSTER, root=ROOT)
    with pytest.raises(ValueError, match="contains a line break"):
        render(job, CLUSTER, root=Path("/home/a\nb"))


SLURM_STANDINS = """#!/bin/bash
echo "$(basename "$0") $*" >>calls
case $(basename "$0") in
squeue) [[ -n $QUEUE_STATE ]] && echo "$QUEUE_STATE" ;;
scontrol) [[ -z $NO_REQUEUE ]] ;;
curl) touch ready; exit 1 ;;
vllm | accelerate) exec sleep 30 ;;
esac
"""
NASTY = """a 'quoted' "b" $(touch owned) `touch owned` ; touch owned & \\ * ~ !"""


def run_script(
    folder: Path,
    program: str,
    *,
    shape: str = "cpu",
    cluster: Cluster = CLUSTER,
    send: int | None = None,
    state: str = "RUNNING",
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a rendered script whose module is a program of ours; the commands around it write down their calls.

    Args:
        state: what squeue says of the job; empty where it fails.
    """
    (folder / "program.py").write_text(program)
    (folder / "bin").mkdir(exist_ok=True)
    for name in ("squeue", "scontrol", "curl", "vllm", "accelerate"):
        (folder / "bin" / name).write_text(SLURM_STANDINS)
        (folder / "bin" / name).chmod(0o755)
    for name in ("logs", "attempts", "ended"):
        (folder / "launch" / name).mkdir(parents=True, exist_ok=True)
    task = StudyJob(name="it's one", kind="arm", stage="train", index=0, command=("program", NASTY), output_dir="out")
    job = replace(make_job(shape), tasks=(task,), folder="launch")
    lines = [line for line in cluster.environment if not line.startswith("source")]
    script = render(job, replace(cluster, environment=lines, container=[]), root=folder)
    script = script.replace("sleep 60", "sleep 0.1").replace("sleep 5", "sleep 0.1")
    (folder / "job.sh").write_text(script)
    environment = {
        **os.environ,
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "QUEUE_STATE": state,
        **variables,
    }
    process = subprocess.Popen(
        ["bash", "job.sh"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if send is not None:
        deadline = time.monotonic() + 20
        while not (folder / "ready").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(send)
    said, _ = process.communicate(timeout=120)  # many short processes, on a machine that may be busy
    return subprocess.CompletedProcess(process.args, process.returncode, said)


def calls(folder: Path) -> str:
    return (folder / "calls").read_text() if (folder / "calls").exists() else ""


SAVES_ITSELF = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.3)
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(30)
"""


def test_a_command_gets_its_words_unchanged_and_ends_the_script_with_its_status(tmp_path: Path) -> None:
    done = run_script(tmp_path, "import sys; open('words', 'w').write(repr(sys.argv[1:])); print('done')")
    assert done.returncode == 0
    assert (tmp_path / "words").read_text() == repr([NASTY])
    assert not (tmp_path / "owned").exists()
    assert "done" in (tmp_path / "launch" / "logs" / "it's one.1.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["time limit", "preemption"])
def test_a_signalled_command_saves_itself_and_the_job_goes_back_into_the_queue(tmp_path: Path, number: int) -> None:
    run_script(tmp_path, SAVES_ITSELF, send=number)
    assert (tmp_path / "saved").exists()
    assert "scontrol requeue 7" in calls(tmp_path)


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_job_that_slurm_is_ending_by_itself_is_not_requeued(tmp_path: Path, state: str) -> None:
    done = run_script(tmp_path, SAVES_ITSELF, send=signal.SIGTERM, state=state)
    assert (tmp_path / "saved").exists() and "requeue" not in calls(tmp_path)
    assert done.returncode == 75


def test_a_controller_that_does_not_answer_costs_no_requeue(tmp_path: Path) -> None:
    run_script(tmp_path, "raise SystemExit(75)", state="")
    assert "scontrol requeue 7" in calls(tmp_path)


def test_a_refused_requeue_is_told_with_the_way_out(tmp_path: Path) -> None:
    done = run_script(tmp_path, "raise SystemExit(75)", NO_REQUEUE="1")
    assert done.returncode == 75 and "set requeue: false" in done.stdout


def test_a_signal_while_vllm_starts_is_not_lost(tmp_path: Path) -> None:
    run_script(tmp_path, "", shape="vllm", send=signal.SIGUSR1, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")
    assert "scontrol requeue 7" in calls(tmp_path)


def test_a_cancelled_study_is_not_requeued(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "cancelled").touch()
    run_script(tmp_path, SAVES_ITSELF, send=signal.SIGTERM)
    assert "requeue" not in calls(tmp_path)


SLOW_MODULES = replace(CLUSTER, environment=["touch ready; for _ in {1..15}; do sleep 0.1; done"])


def test_a_signal_while_the_environment_is_set_up_is_not_lost(tmp_path: Path) -> None:
    run_script(tmp_path, "import time; time.sleep(20)", cluster=SLOW_MODULES, send=signal.SIGUSR1)
    assert "scontrol requeue 7" in calls(tmp_path)


def test_a_command_that_was_brought_down_from_another_node_is_not_tried_again(tmp_path: Path) -> None:
    done = run_script(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert done.returncode == 143 and "requeue" not in calls(tmp_path)


def test_a_task_of_an_array_requeues_itself_alone() -> None:
    script = render(make_job("cpu", num_tasks=3), CLUSTER, root=ROOT)
    assert 'own="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in script and 'scontrol requeue "$own"' in script


def test_a_failure_is_not_tried_again_and_shows_the_end_of_its_log(tmp_path: Path) -> None:
    done = run_script(tmp_path, "raise SystemExit('the disk is made of cheese')")
    assert done.returncode == 1 and "requeue" not in calls(tmp_path)
    assert "ended with status 1 in attempt 1" in done.stdout and "the disk is made of cheese" in done.stdout


def test_a_launcher_that_hides_the_status_is_known_by_its_run_file(tmp_path: Path) -> None:
    run_file = """import pathlib; pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("out/run.json").write_text('{\\n  "status": "interrupted"\\n}'); raise SystemExit(1)"""
    run_script(tmp_path, run_file)
    assert "scontrol requeue 7" in calls(tmp_path)


def test_after_the_last_attempt_a_job_counts_as_failed(tmp_path: Path) -> None:
    cluster = replace(CLUSTER, max_attempts=2)
    assert "requeued" in run_script(tmp_path, "raise SystemExit(75)", cluster=cluster).stdout
    second = run_script(tmp_path, "print('so far'); raise SystemExit(75)", cluster=cluster)
    assert second.returncode == 75 and calls(tmp_path).count("scontrol requeue") == 1
    third = run_script(tmp_path, "open('again', 'w')", cluster=cluster)
    assert third.returncode == 1 and not (tmp_path / "again").exists()
    assert "was started 2 times" in third.stdout and "so far" in third.stdout


def test_successors_continue_what_was_stopped_and_leave_what_ended(tmp_path: Path) -> None:
    programs = ["raise SystemExit(75)", "raise SystemExit(3)", "open('again', 'w')"]
    statuses = [run_script(tmp_path, program, cluster=WITHOUT_REQUEUE).returncode for program in programs]
    assert statuses == [75, 3, 3]
    assert not (tmp_path / "again").exists() and "requeue" not in calls(tmp_path)
