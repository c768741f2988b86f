"""Two processes, launched by torchrun, that work and fail together; the tests share one launch of this file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tracking.command import MAIN_FIRST_S, REPOSITORY_ROOT, run_command
from tracking.processes import any_process, num_processes, on_main_process, wait_for_all


class TwoPartError(Exception):
    """Needs two arguments, of which pickle remembers one."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


def raise_mistake() -> None:
    raise ValueError("cuts [3, 1] do not divide 28 layers")


def raise_two_parts() -> None:
    raise TwoPartError("a.json", "torn")


def error_of(work: Any) -> list[str]:
    """Returns what a process learns of an error in the main one."""
    with pytest.raises(Exception) as caught:
        on_main_process(work)
    return [type(caught.value).__name__, str(caught.value)]


@pytest.fixture(scope="module")
def launch(warm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns what each process saw, and what the launch said as both failed."""
    directory = tmp_path_factory.mktemp("launch")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY_ROOT)}
    done = subprocess.run(
        [warm_python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(directory)],
        cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    ended = time.time()
    assert (directory / "1.json").exists(), done.stderr
    return {
        "seen": [json.loads((directory / f"{rank}.json").read_text()) for rank in (0, 1)],
        "stderr": done.stderr.splitlines(),
        "ending_s": ended - float((directory / "failed").read_text()),
        "status": done.returncode,
    }


def test_work_of_the_main_process_is_done_once_and_known_to_all(launch: dict[str, Any]) -> None:
    assert [seen["value"] for seen in launch["seen"]] == [{"pid": launch["seen"][0]["pid"]}] * 2
    assert [seen["num_processes"] for seen in launch["seen"]] == [2, 2]


def test_an_error_of_the_main_process_is_raised_in_all(launch: dict[str, Any]) -> None:
    assert [seen["mistake"] for seen in launch["seen"]] == [["ValueError", "cuts [3, 1] do not divide 28 layers"]] * 2


def test_an_error_that_cannot_travel_stays_itself_at_home(launch: dict[str, Any]) -> None:
    assert [seen["two_parts"] for seen in launch["seen"]] == [
        ["TwoPartError", "a.json: torn"],
        ["RuntimeError", "TwoPartError: a.json: torn"],
    ]


def test_a_flag_of_one_process_is_seen_by_all(launch: dict[str, Any]) -> None:
    assert [seen["any"] for seen in launch["seen"]] == [[True, False]] * 2


def test_processes_that_fail_together_say_it_once_and_end(launch: dict[str, Any]) -> None:
    """The second fails first, at which torchrun would end the first; and it holds SIGTERM, as a run does."""
    assert launch["status"] != 0
    assert [line for line in launch["stderr"] if "a mistake" in line] == ["error: a mistake"]
    assert launch["ending_s"] < MAIN_FIRST_S - 1


def test_a_process_that_fails_alone_speaks_for_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tracking.command.MAIN_FIRST_S", 0.1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as caught:
        run_command(raise_mistake)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error in process 1: cuts [3, 1] do not divide 28 layers\n"


def test_one_process_alone_needs_no_others() -> None:
    assert on_main_process(lambda: 3) == 3 and num_processes() == 1
    assert any_process(True, "cpu") and not any_process(False, "cpu")
    wait_for_all()


def main() -> None:
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    rank, directory = torch.distributed.get_rank(), Path(sys.argv[1])
    seen = {
        "pid": os.getpid(),
        "num_processes": num_processes(),
        "value": on_main_process(lambda: {"pid": os.getpid()}),
        "mistake": error_of(raise_mistake),
        "two_parts": error_of(raise_two_parts),
        "any": [any_process(rank == 1, "cpu"), any_process(False, "cpu")],
    }
    (directory / f"{rank}.json").write_text(json.dumps(seen))
    wait_for_all()
    if rank == 0:
        time.sleep(1)
        (directory / "failed").write_text(str(time.time()))
    else:
        signal.signal(signal.SIGTERM, lambda *_: None)
    raise ValueError("a mistake")


if __name__ == "__main__":
    run_command(main)
