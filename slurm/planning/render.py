"""How does a job read as a script? One Jinja2 template a shape, quoted for the shell, for people to read and submit.

    cpu      no GPU                              node    accelerate on one node
    process  one process on one GPU              nodes   accelerate on several nodes, c10d rendezvous
    vllm     a vLLM server beside the trainers   array   a block in any of these: a task an arm and seed

What all share stands in `job.sh.j2`: the header, the count of attempts, a log an attempt, the signal ahead of the time
limit, requeueing. Scripts are free of branches that their job does not take.
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
"""Characters of a line, beyond which a command is broken."""
SHUTDOWN_MARGIN_S = 5
"""A launcher kills its processes this long before Slurm would."""


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """What one call of sbatch submits."""

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
    """GPUs of each node that its processes use."""
    server_gpus: int = 0
    server_model: str = ""
    server_options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name in Slurm's own lists."""
        return f"{self.study}/{self.name}"

    @property
    def script(self) -> str:
        return f"{self.folder}/scripts/{self.name}.sh"

    @property
    def is_array(self) -> bool:
        return len(self.tasks) > 1

    @property
    def own(self) -> str:
        """How its script names itself to Slurm: SLURM_JOB_ID of an array's task could be the array's own number."""
        return '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if self.is_array else '"$SLURM_JOB_ID"'

    @property
    def processes(self) -> int:
        """Processes of all nodes together."""
        return self.nodes * max(1, self.gpus)


def render(job: ClusterJob, cluster: Cluster, *, root: Path) -> str:
    """Returns a job's script.

    Args:
        root: the repository, where the script's paths begin.

    Raises:
        ValueError: where a value holds a line break or `#SBATCH`.
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
        autoescape=False,  # these are scripts; what they hold is quoted by the filters
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
    """Yields the options of a script's header, None where one takes no value."""
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
    """Returns a command as the inside of a bash array: on one line where it fits, else a flag a line."""
    line = " ".join(map(_quoted, command))
    if len(line) <= LINE - indent - len("command=()"):
        return line
    space = " " * indent
    return "\n" + "".join(f"{space}    {part}\n" for part in _lines(command, LINE - indent - 4)) + space


def flags(command: Sequence[str]) -> str:
    """Returns further flags of a command, a flag a line."""
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
    """Returns a word as bash reads it; in an array NAME=VALUE could be taken for an index."""
    quoted = shlex.quote(word)
    return f"'{word}'" if quoted == word and "=" in word else quoted


def _times(memory: str, number: int) -> str:
    digits = memory.rstrip("KMGT")
    return f"{int(digits) * number}{memory[len(digits) :]}"
