"""Which jobs are forks of the warm process, and which are started in processes of their own."""

import sys
from pathlib import Path

import pytest

from tracking.command import REPOSITORY_ROOT
from tracking.jobs.job import Job
from tracking.jobs.starting import can_be_forked, has_gpu

PYTHON = (sys.executable, "-m")


def is_forked(*command: str) -> bool:
    return can_be_forked(Job(name="a", kind="a", command=command, output_dir=Path("out")))


def test_commands_of_the_suite_that_need_the_libraries_are_forked() -> None:
    config = str(REPOSITORY_ROOT / "configs" / "pocket" / "grpo.yaml")
    assert is_forked(*PYTHON, "train.grpo", "--config", config, "--seed", "0")
    assert is_forked(*PYTHON, "slurm.gather", "--study", "s", "--name", "n", "eval.compare", "a=b")
    assert not is_forked(*PYTHON, "data_builders.build", "pocket")
    assert not is_forked(*PYTHON, "http.server")
    assert not is_forked(sys.executable, "-c", "pass")
    assert not is_forked("accelerate", "launch", "--num_processes", "2", "-m", "train.grpo", "--config", config)


@pytest.mark.parametrize(
    ("text", "forked"),
    [
        ("env: {OMP_NUM_THREADS: 4}", False),
        ("use_vllm: true", False),
        ("engine: vllm", False),
        ("a: [", False),
        ("env: {}\nuse_vllm: false\nengine: huggingface", True),
    ],
)
def test_a_configuration_with_an_environment_or_vllm_needs_a_new_process(
    text: str, forked: bool, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert is_forked(*PYTHON, "eval.run", "--config", str(tmp_path / "a.yaml")) is forked


def test_a_missing_configuration_is_left_to_the_job(tmp_path: Path) -> None:
    assert not is_forked(*PYTHON, "eval.run", "--config", str(tmp_path / "none.yaml"))


def test_the_drivers_of_both_makers_of_gpus_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "nvidia-uvm").touch()
    assert not has_gpu(tmp_path)
    for name in ("nvidia0", "kfd"):
        (tmp_path / name).touch()
        assert has_gpu(tmp_path)
        (tmp_path / name).unlink()
