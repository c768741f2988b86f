"""A cluster's settings: parsing, rejected values, and the options passed to sbatch."""

from pathlib import Path

import pytest

from slurm.planning.cluster import Cluster, seconds_of, slurm_time
from slurm.planning.settings import read_settings
from tracking.command import REPOSITORY_ROOT

GIVEN = {"time": ["default=01:00:00"], "gpus_per_node": 8}


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY_ROOT / "configs" / "slurm").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_clusters_are_read(path: Path) -> None:
    cluster = read_settings(Cluster, path)
    assert cluster.limit("arm") and cluster.limit("a kind without its own") == cluster.limits["default"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"account": "a\n#SBATCH --uid=0"}, "account .* contains a line break"),
        ({"partition": "gpu\r"}, "partition .* contains a line break"),
        ({"qos": "x\x0by"}, "qos .* contains a line break"),
        ({"environment": ["module load cuda", "#SBATCH --time=9"]}, "environment .* contains #SBATCH"),
        ({"constraint": "a #SBATCH b"}, "constraint .* contains #SBATCH"),
        ({"options": ["reservation=a\nb"]}, "options .* contains a line break"),
        ({"options": ["dependency=afterok:1"]}, "'dependency'; expected a long option of sbatch that has no setting"),
        ({"options": ["exclusive"]}, "expected KEY=VALUE"),
        ({"time": ["arm=24:00:00"]}, "time has no default="),
        ({"time": ["default=90"]}, r"default=90; expected \[DAYS-\]HH:MM"),
        ({"time": ["default=00:04:00"]}, "is not above signal_s, 300 s"),
        ({"time": ["default=01:00", "default=02:00"]}, "each key once"),
        ({"signal_s": 70000}, "signal_s is 70000"),
        ({"memory": "lots"}, "memory is 'lots'; expected a number with K, M, G or T"),
        ({"max_parallel": -1}, "max_parallel is -1; it must be at least 0"),
        ({"time": ["default=01:00", "amr=02:00"]}, "time amr=02:00: unknown kind of job; did you mean 'arm'"),
        (
            {"container": ["apptainer exec x.sif"]},
            r"one word 'apptainer exec x.sif'; expected \[apptainer, exec, x.sif\]",
        ),
        ({"max_attempts": 0}, "max_attempts is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(**{**GIVEN, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus_per_node: 8\n", "time is missing; KIND="),
        ("time: [default=01:00:00]\ngpus_per_node: eight\n", "gpus_per_node is 'eight'; expected int"),
        ("time: [default=01:00:00]\ngpus_per_node: true\n", "gpus_per_node is True; expected int"),
        ("time: [default=01:00:00]\ngpus_per_node: 0\nacount: x\n", "unknown key 'acount'; did you mean 'account'"),
        ("time: [default=01:00:00]\ngpus_per_node: 0\naccount: 17\n", "account is 17; expected a text"),
        ("time: [default=01:00:00]\ngpus_per_node: 0\naccount: ''\n", "account is ''; expected a text"),
        ("time: [default=01:00:00]\ngpus_per_node: 0\nenv: [a]\n", "unknown key 'env'"),
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.yaml: {message}"):
        read_settings(Cluster, path)


def test_hours_and_minutes_are_not_read_as_minutes_and_seconds() -> None:
    assert seconds_of("02:30") == 9000 and slurm_time("02:30") == "02:30:00"
    assert slurm_time("48:00:00") == slurm_time("2-00:00:00") == "2-00:00:00"
    assert seconds_of("1-12:00:30") == 36 * 3600 + 30
