"""How is a job rendered as a script? One readable Jinja2 template per shape, with values quoted for the shell.

    cpu      no GPU                              node    accelerate on one node
    process  one process on one GPU              nodes   accelerate on several nodes, c10d rendezvous
    vllm     a vLLM server and the trainers      array   a block in any of these: one task per arm and seed

The common parts are in `job.sh.j2`: header, attempt counter, one log per attempt, the signal before the time limit,
requeueing. Scripts contain no branches that their job does not use.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.planning.cluster import Cluster, slurm_time
from slurm.planning.settings import check_one_line
from slurm.planning.study import StudyJob

TEMPLATES = Path(__file__).parents[1] / "templates"
SHAPES = ("cpu", "process", "node", "nodes", "vllm")
LINE = 116
"""Maximum line length of a command."""
SHUTDOWN_MARGIN_S = 5
"""A launcher kills its processes this many seconds before Slurm would."""


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """One submission with sbatch."""

    name: str
    study: str
    kind: str
    title: str
    shape: str
    tasks: tuple[StudyJob, ...]
    """One, or those of an array; an index stands for the same arm and seed in all arrays."""
    folder: str
    """Folder of the launch: scripts, logs, attempts."""
    nodes: int = 1
    gpus: int = 0
    """GPUs per node used by its processes."""
    server_gpus: int = 0
    server_model: str = ""
    server_options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name in Slurm's lists."""
        return f"{self.study}/{self.name}"

    @property
    def script(self) -> str:
        return f"{self.folder}/scripts/{self.name}.sh"

    @property
    def is_array(self) -> bool:
        return len(self.tasks) > 1

    @property
    def own(self) -> str:
        """The job id used in its script: SLURM_JOB_ID of an array task could be the array's id."""
        return '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if self.is_array else '"$SLURM_JOB_ID"'

    @property
    def processes(self) -> int:
        """Number of processes on all nodes."""
        return self.nodes * max(1, self.gpus)


def render(job: ClusterJob, cluster: Cluster, *, root: Path) -> str:
    """Renders a job's script.

    Args:
        root: the repository, base of the script's paths.

    Raises:
        ValueError: if a value contains a line break or `#SBATCH`.
    """
    import jinja2

    texts = {task.name: [task.name, task.output_dir, *task.command] for task in job.tasks}
    check_one_line({"repository": str(root), "study": job.folder, "title": job.title, **texts})
    check_one_line({"server model": job.server_model, "server options": list(job.server_options)})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # scripts, not HTML; values are quoted by the filters
    )
    environment.filters |= {"q": shlex.quote, "words": words, "flags": flags}
    return environment.get_template(f"{job.shape}.sh.j2").render(
        job=job,
        cluster=cluster,
        root=str(root),
        options=list(sbatch_options(job, cluster, root=root)),
        container="".join(f"{shlex.quote(word)} " for word in cluster.container),
        shutdown_s=cluster.signal_s - SHUTDOWN_MARGIN_S,
    )


def sbatch_options(job: ClusterJob, cluster: Cluster, *, root: Path) -> Iterator[tuple[str, str | None]]:
    """Yields the options of a script's header; the value is None for a flag."""
    gpus = job.gpus + job.server_gpus
    partition = cluster.partition if gpus else cluster.cpu_partition or cluster.partition
    for name, value in (("account", cluster.account), ("partition", partition), ("qos", cluster.qos)):
        if value is not None:
            yield name, value
    if gpus and cluster.constraint is not None:
        yield "constraint", cluster.constraint
    yield "nodes", str(job.nodes)
    yield "ntasks-per-node", "1"
    if gpus:
        yield "gres", ":".join(["gpu", *([cluster.gpu_type] if cluster.gpu_type else []), str(gpus)])
    yield "cpus-per-task", str(gpus * cluster.cpus_per_gpu if gpus else cluster.cpus)
    if gpus and cluster.memory_per_gpu is not None:
        yield "mem", _times(cluster.memory_per_gpu, gpus)
    elif not gpus and cluster.memory is not None:
        yield "mem", cluster.memory
    yield "time", slurm_time(cluster.limit(job.kind))
    if job.is_array:
        limit = f"%{cluster.max_parallel}" if cluster.max_parallel else ""
        yield "array", ",".join(str(task.index) for task in job.tasks) + limit
    yield ("requeue" if cluster.requeue else "no-requeue"), None
    yield "signal", f"B:USR1@{cluster.signal_s}"
    yield "open-mode", "append"
    logs = f"{root / job.folder}/logs/{job.name}".replace("%", "%%")
    yield "output", logs + (".%A_%a.out" if job.is_array else ".%j.out")
    for option in cluster.options:
        name, _, value = option.partition("=")
        yield name, value


def words(command: Sequence[str], indent: int = 0) -> str:
    """Formats a command as the content of a bash array: on one line if it fits, else one flag per line."""
    line = " ".join(map(_quoted, command))
    if len(line) <= LINE - indent - len("command=()"):
        return line
    space = " " * indent
    return "\n" + "".join(f"{space}    {part}\n" for part in _lines(command, LINE - indent - 4)) + space


def flags(command: Sequence[str]) -> str:
    """Formats further flags of a command, one per line."""
    return " \\\n    ".join(_lines(command, LINE - 4))


def _lines(command: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for word in map(_quoted, command):
        if not lines or word.startswith("--") or len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def _quoted(word: str) -> str:
    """Quotes a word for bash; in an array, NAME=VALUE could be parsed as an index."""
    quoted = shlex.quote(word)
    return f"'{word}'" if quoted == word and "=" in word else quoted


def _times(memory: str, number: int) -> str:
    digits = memory.rstrip("KMGT")
    return f"{int(digits) * number}{memory[len(digits) :]}"
