"""Several processes that share one command's units, alone and launched by torchrun; killed, continued, merged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tracking.command import REPOSITORY_ROOT, run_command
from tracking.sharding import SharedLog, open_shared_run

KEYS = [f"unit-{number}" for number in range(7)]


def unit(key: str, maker: str = "first") -> dict[str, Any]:
    return {"key": key, "maker": maker}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def work(directory: Path, keys: list[str], monkeypatch: pytest.MonkeyPatch, *, rank: int, of: int) -> list[str]:
    """Does at most two of the units that fall to one of several processes, and returns them."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(of))
    with SharedLog(directory, keys) as log:
        done = log.pending[:2]
        log.append(*[unit(key, f"{rank} of {of}") for key in done])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    return done


def test_one_process_alone_works_on_everything_in_order(tmp_path: Path) -> None:
    with SharedLog(tmp_path, KEYS) as log:
        assert log.pending == KEYS
        for key in reversed(KEYS):
            log.append(unit(key))
        assert log.merge() == [unit(key) for key in KEYS]
    assert lines(tmp_path / "records.jsonl") == [unit(key) for key in KEYS]
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_what_any_number_of_processes_left_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = work(tmp_path, KEYS, monkeypatch, rank=0, of=3)
    second = work(tmp_path, KEYS, monkeypatch, rank=2, of=3)
    assert (first, second) == ([KEYS[0], KEYS[3]], [KEYS[4]])  # the second sees what the first has done
    with (tmp_path / "records-2.jsonl").open("a") as file:
        file.write('{"key": "unit-1", "ma')  # killed while it wrote
    with SharedLog(tmp_path, KEYS) as log:
        assert log.pending == [key for key in KEYS if key not in first + second]
        log.append(*[unit(key, "last") for key in log.pending])
        makers = [record["maker"] for record in log.merge()]
    assert makers == ["0 of 3", "last", "last", "0 of 3", "2 of 3", "last", "last"]


def test_processes_share_what_is_pending_without_gap_or_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(tmp_path, KEYS, monkeypatch, rank=0, of=1)
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        with SharedLog(tmp_path, KEYS) as log:
            shares.append(log.pending)
    assert sorted(key for share in shares for key in share) == KEYS[2:]


def test_a_group_is_redone_whole_and_its_old_records_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(tmp_path, KEYS, monkeypatch, rank=0, of=1)  # units 0 and 1
    groups = [KEYS[:1], KEYS[1:4], KEYS[4:]]
    with SharedLog(tmp_path, KEYS) as log:
        assert log.pending_groups(groups) == [1, 2]
        for number in log.pending_groups(groups):
            log.append(*[unit(key, "again") for key in groups[number]])
        assert [record["maker"] for record in log.merge()] == ["0 of 1"] * 2 + ["again"] * 5
    with SharedLog(tmp_path, KEYS) as log:
        assert log.pending_groups(groups) == []


def test_a_unit_without_a_record_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    with SharedLog(tmp_path, KEYS) as log:
        log.append(unit(KEYS[0]))
        with pytest.raises(RuntimeError, match=r"no record of 'unit-1' \(6 such\); run it again"):
            log.merge()
    with SharedLog(tmp_path, KEYS) as log:
        assert log.pending == KEYS[1:]


def test_records_of_units_that_are_no_longer_asked_for_are_left_out(tmp_path: Path) -> None:
    with SharedLog(tmp_path, KEYS) as log:
        log.append(*[unit(key) for key in KEYS])
    with SharedLog(tmp_path, KEYS[2:4]) as log:
        assert log.pending == []
        assert log.merge() == [unit(key) for key in KEYS[2:4]]


def launch(python: Path, directory: Path, how: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY_ROOT)}
    return subprocess.run(
        [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, how,
         str(directory)],
        cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_processes_of_one_launch_share_one_directory(warm_python: Path, tmp_path: Path) -> None:
    killed = launch(warm_python, tmp_path / "out", "die")
    assert killed.returncode != 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] != "finished"
    done = launch(warm_python, tmp_path / "out", "work")
    assert done.returncode == 0, done.stderr
    records = lines(tmp_path / "out" / "records.jsonl")
    assert [record["key"] for record in records] == KEYS
    assert {record["maker"] for record in records} == {"0", "1"}
    state = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (state["status"], len(state["attempts"])) == ("finished", 2)
    mistaken = launch(warm_python, tmp_path / "out", "other")
    said = [line for line in mistaken.stderr.splitlines() if line.startswith("error")]
    assert mistaken.returncode != 0 and len(said) == 1 and "was made with how = 'work'" in said[0]


def main() -> None:
    """Works as one of the processes: dies after its second unit, works to the end, or comes with other settings."""
    how, directory = sys.argv[1], Path(sys.argv[2])
    settings = {"how": "other" if how == "other" else "work"}
    with open_shared_run(directory, command="tests", settings=settings) as run:
        assert not run.finished
        with SharedLog(directory, KEYS) as log:
            for count, key in enumerate(log.pending):
                if how == "die" and count == 1:
                    os._exit(9)
                log.append(unit(key, os.environ["RANK"]))
            assert [record["key"] for record in log.merge()] == KEYS


if __name__ == "__main__":
    run_command(main)
