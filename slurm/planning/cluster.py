"""A cluster's settings: partitions, resources, time limits, and behaviour at the time limit.

One file per cluster (`configs/slurm/`), read into one dataclass. Every value in a script is quoted for the shell
(`render.py`); values with a line break or `#SBATCH` are rejected here.
"""

import re
from dataclasses import asdict, dataclass, field

from slurm.planning.settings import check_one_line, read_pairs
from slurm.planning.study import KINDS
from tracking.command import did_you_mean

DEFAULT = "default"
"""The entry of `time` for all kinds of job without their own."""
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d{1,3}):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d))?")
MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster's settings."""

    time: list[str] = field(
        metadata={"help": "KIND=[DAYS-]HH:MM[:SS], the time limit of one kind of job; `default=…` for all others"}
    )
    gpus_per_node: int = field(metadata={"help": "GPUs per node; 0: everything runs on CPUs"})
    environment: list[str] = field(
        default_factory=list, metadata={"help": "lines of bash to run before each command, such as module load cuda"}
    )
    account: str | None = field(default=None, metadata={"help": "value of sbatch's --account"})
    partition: str | None = field(default=None, metadata={"help": "value of sbatch's --partition for jobs with GPUs"})
    cpu_partition: str | None = field(
        default=None, metadata={"help": "value of sbatch's --partition for jobs without GPUs; by default the same"}
    )
    qos: str | None = field(default=None, metadata={"help": "value of sbatch's --qos"})
    constraint: str | None = field(default=None, metadata={"help": "value of sbatch's --constraint for jobs with GPUs"})
    gpu_type: str | None = field(default=None, metadata={"help": "GPU type, as in sbatch's --gres=gpu:TYPE:8"})
    cpus_per_gpu: int = field(default=8, metadata={"help": "CPU cores per GPU"})
    memory_per_gpu: str | None = field(default=None, metadata={"help": "memory per GPU, such as 120G"})
    cpus: int = field(default=8, metadata={"help": "CPU cores of a job without GPUs"})
    memory: str | None = field(default=None, metadata={"help": "memory of a job without GPUs, such as 64G"})
    container: list[str] = field(
        default_factory=list,
        metadata={"help": "words that precede each command, such as apptainer exec --nv IMAGE; none by default"},
    )
    options: list[str] = field(default_factory=list, metadata={"help": "further options of sbatch, as NAME=VALUE"})
    requeue: bool = field(
        default=True,
        metadata={"help": "whether jobs may requeue themselves; if false, successors are submitted with them"},
    )
    signal_s: int = field(
        default=300,
        metadata={
            "help": "seconds before its time limit at which a job begins to save itself; longer than a step and a "
            "checkpoint"
        },
    )
    max_attempts: int = field(default=5, metadata={"help": "number of starts after which a job counts as failed"})
    max_parallel: int = field(
        default=0, metadata={"help": "maximum number of tasks of an array that run at the same time; 0: no limit"}
    )

    def __post_init__(self) -> None:
        check_one_line(asdict(self))
        limits = {"gpus_per_node": 0, "cpus_per_gpu": 1, "cpus": 1, "max_attempts": 1, "max_parallel": 0}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.container and " " in self.container[0]:
            words = ", ".join(self.container[0].split())
            raise ValueError(f"container begins with the one word {self.container[0]!r}; expected [{words}]")
        if not 10 <= self.signal_s <= 65535:
            raise ValueError(
                f"signal_s is {self.signal_s}; sbatch takes up to 65535, less than 10 is too short to save"
            )
        for name in ("memory", "memory_per_gpu"):
            value = getattr(self, name)
            if value is not None and not MEMORY.fullmatch(value):
                raise ValueError(f"{name} is {value!r}; expected a number with K, M, G or T, such as 64G")
        times = self.limits
        if DEFAULT not in times:
            raise ValueError(f"time has no {DEFAULT}=…; expected it for all kinds of job without their own")
        for kind, limit in times.items():
            if kind not in (DEFAULT, *KINDS):
                raise ValueError(f"time {kind}={limit}: unknown kind of job{did_you_mean(kind, KINDS)}")
            if not TIME.fullmatch(limit):
                raise ValueError(f"time {kind}={limit}; expected [DAYS-]HH:MM[:SS], such as 1-12:00:00")
            if seconds_of(limit) <= self.signal_s:
                raise ValueError(f"time {kind}={limit} is not above signal_s, {self.signal_s} s ahead of its end")
        for name in read_pairs(self.options, name="options", example="reservation=gpus"):
            if not re.fullmatch(r"[a-z][a-z-]*", name) or name in OWN_OPTIONS:
                raise ValueError(f"options {name!r}; expected a long option of sbatch that has no setting of its own")

    @property
    def limits(self) -> dict[str, str]:
        """Kind of job -> time limit."""
        return read_pairs(self.time, name="time", example="arm=24:00:00")

    def limit(self, kind: str) -> str:
        """Returns the time limit of a kind of job."""
        return self.limits.get(kind, self.limits[DEFAULT])

    def longest_s(self, kind: str) -> int:
        """Returns the total working time of a kind of job over all attempts, in seconds."""
        return self.max_attempts * (seconds_of(self.limit(kind)) - self.signal_s)


OWN_OPTIONS = (
    "account", "partition", "qos", "constraint", "gres", "time", "mem", "cpus-per-task", "nodes", "ntasks-per-node",
    "array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "dependency", "chdir",
    "kill-on-invalid-dep", "parsable", "wrap", "test-only",
)  # fmt: skip
"""Options of sbatch that are set by the templates."""


def seconds_of(limit: str) -> int:
    """Parses a time limit into seconds; `02:30` means hours and minutes here."""
    found = TIME.fullmatch(limit)
    assert found is not None, limit
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def slurm_time(limit: str) -> str:
    """Formats a time limit for sbatch, which would read `02:30` as minutes and seconds."""
    seconds = seconds_of(limit)
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock
