"""A Slurm for the session, empty at the beginning of each test, and the rendering of jobs for it."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm.planning.cluster import Cluster
from slurm.planning.render import ClusterJob, render
from slurm.planning.settings import read_settings
from slurm.planning.study import StudyJob
from tests.slurm.real_slurm import RealSlurm, real_slurm, why_unavailable
from tests.train.conftest import tiny_prompts, warm_checkpoint  # noqa: F401
from tracking.command import REPOSITORY_ROOT

SHIPPED_CLUSTERS = sorted((REPOSITORY_ROOT / "configs" / "slurm").glob("*.yaml"))


@pytest.fixture(scope="session")
def session_slurm() -> Iterator[RealSlurm]:
    """A controller and two nodes, with every partition and constraint that a shipped cluster names."""
    if (reason := why_unavailable()) is not None:
        pytest.skip(reason)
    clusters = [read_settings(Cluster, path) for path in SHIPPED_CLUSTERS]
    partitions = {name for cluster in clusters for name in (cluster.partition, cluster.cpu_partition) if name}
    features = {cluster.constraint for cluster in clusters if cluster.constraint}
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        real_slurm(Path(folder), partitions=partitions, features=features) as slurm,
    ):
        yield slurm


@pytest.fixture
def slurm(session_slurm: RealSlurm) -> Iterator[RealSlurm]:
    yield session_slurm
    session_slurm.cancel_all()


@pytest.fixture
def cluster_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the settings of the loopback cluster, with changes."""

    def write(**changes: Any) -> Path:
        values = {"gpus_per_node": 0, "cpus": 1, "time": ["default=00:10:00"], "signal_s": 10, "max_attempts": 6}
        path = tmp_path / f"cluster{len(list(tmp_path.glob('cluster*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}))
        return path

    return write


@pytest.fixture
def submit(slurm: RealSlurm, tmp_path: Path) -> Callable[..., str]:
    """Renders one command as a job of a shape, submits it and returns Slurm's number of it."""

    def submit_one(name: str, command: Sequence[str], directory: Path, cluster: Path, **shape: Any) -> str:
        folder = tmp_path / "slurm"
        for part in ("scripts", "logs", "attempts", "ended"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        words = tuple(map(str, command))
        task = StudyJob(name=name, kind="arm", stage=name, index=0, command=words, output_dir=str(directory))
        values: dict[str, Any] = {"kind": "arm", "title": "A rehearsal.", "shape": "cpu", **shape}
        job = ClusterJob(name=name, study="rehearsal", tasks=(task,), folder=str(folder), **values)
        script = Path(job.script)
        script.write_text(render(job, read_settings(Cluster, cluster), root=REPOSITORY_ROOT))
        return slurm.run("sbatch", "--parsable", str(script)).strip()

    return submit_one
