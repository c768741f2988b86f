"""What is a study? Its experiment, its probes and the cluster, as configured in `study.yaml`.

`plan.py` derives the jobs.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from slurm.planning.settings import check_one_line, read_numbers
from tracking.command import REPOSITORY_ROOT, did_you_mean, read_yaml
from tracking.jobs.job import Job

PAPER_PATTERNS = ("in-rl-rl", "in-in-rl", "rl-rl-in", "rl-in-in", "in-rl-in", "rl-in-rl")
ALL_PATTERNS = ("in-in-in", "in-in-rl", "in-rl-in", "in-rl-rl", "rl-in-in", "rl-in-rl", "rl-rl-in", "rl-rl-rl")
SPLICES = {"paper": PAPER_PATTERNS, "all": ALL_PATTERNS}
"""Folders written by merge.all for the donors `in` and `rl`."""
MODALITY = "modality"
OWN_PROMPTS = "study"
"""Placeholder in task names for the folder of the study's own prompts."""
TRAINING = ("base", "sft", "arm")
INFERENCE = ("boundary", "eval", "abilities", "samples", "swap", "skip", "attention", "tower")
"""Kinds of job that use GPUs, if there are any."""
KINDS = (
    "data", "init", *TRAINING, "boundary", "eval", "compare", "deltas", "necessity", "pairs", "descriptions",
    "abilities", "samples", "support", "swap", "skip", "attention", "splices", "claims", "report",
    "instrument", "starts", "control", "calibration",
    "tower", "transfer", "statements", "modalities",
)  # fmt: skip
"""All kinds of job; jobs of the same kind take about the same time."""


@dataclass(frozen=True, kw_only=True)
class StudyArguments:
    """A study: its experiment, its probes, and the cluster."""

    output_dir: str = field(metadata={"help": "folder of the whole study"})
    cluster: str = field(metadata={"help": "YAML of the cluster, in configs/slurm/"})
    necessity: str | None = field(
        default=None, metadata={"help": "YAML of train.necessity: models, prompts, arms and seeds"}
    )
    calibration: str | None = field(
        default=None,
        metadata={"help": "YAML of benchmarks.known_answers, in place of an experiment: a job per instrument"},
    )
    prompts: str | None = field(
        default=None, metadata={"help": "TASK:CONFIG of data_builders.build that builds the prompts of `necessity`"}
    )
    arm: str = field(default="full", metadata={"help": "arm used as the RL model in splices and probes"})
    probed: list[str] = field(
        default_factory=lambda: ["base", "sft", "full"],
        metadata={"help": "models that swap, skip, attention and tower probe: base, sft, or arms (of the first seed)"},
    )
    pairs: list[str] = field(
        default_factory=list, metadata={"help": "TASK:CONFIG of data_builders.build for each pair set of the swap"}
    )
    swap: str | None = field(default=None, metadata={"help": "YAML of analyze.swap"})
    skip: str | None = field(default=None, metadata={"help": "YAML of analyze.skip"})
    attention: str | None = field(default=None, metadata={"help": "YAML of analyze.attention"})
    deltas: str | None = field(default=None, metadata={"help": "YAML of analyze.deltas, for spectra and geometry"})
    abilities: str | None = field(
        default=None, metadata={"help": "YAML of eval.run with all conditions of the abilities"}
    )
    samples: str | None = field(
        default=None, metadata={"help": "YAML of eval.run with many samples per prompt, for pass@k"}
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "tasks of `abilities`; study:SPLIT stands for the study's own prompts"}
    )
    described: str | None = field(
        default=None,
        metadata={
            "help": "split of the study's own pocket prompts whose pictures are described in words for `abilities`"
        },
    )
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "hub data sets that these tasks read; models.fetch fetches them"}
    )
    sample_tasks: list[str] = field(default_factory=list, metadata={"help": "tasks of `samples`"})
    sampled: list[str] = field(
        default_factory=list,
        metadata={"help": "arms that answer `samples`, beside base and sft; all by default, with `by` all but sft-…"},
    )
    support_k: int | None = field(
        default=None, metadata={"help": "K of pass@K; by default the number of samples, of which it may be a part"}
    )
    by: str | None = field(
        default=None,
        metadata={
            "help": "modality: pass@k by modality, transfer between modalities, the statements of arXiv 2603.01301 "
            "and their page"
        },
    )
    tower: str | None = field(
        default=None, metadata={"help": "YAML of eval.tower, which probes the vision towers of `probed`"}
    )
    skip_tasks: list[str] = field(default_factory=list, metadata={"help": "tasks of `skip`"})
    attention_tasks: list[str] = field(default_factory=list, metadata={"help": "tasks of `attention`"})
    splices: str | None = field(default=None, metadata={"help": "patterns of merge.all: paper (six) or all (eight)"})
    splice_rest: list[str] = field(
        default_factory=lambda: ["in"],
        metadata={"help": "source of the splices' regions: in, rl, or REGION=NAME for each"},
    )
    claims: str | None = field(
        default=None,
        metadata={
            "help": "recipe of the paper that this study repeats; own: none, its rows are shown beside every "
            "recipe of the paper"
        },
    )
    arm_gpus: int | None = field(
        default=None, metadata={"help": "GPUs per arm; by default as many as its launcher names"}
    )
    arm_nodes: int = field(
        default=1, metadata={"help": "nodes per arm on a cluster without GPUs, with one process per node"}
    )
    probe_gpus: int = field(default=1, metadata={"help": "GPUs per evaluation and probe"})
    vllm_gpus: int = field(default=0, metadata={"help": "GPUs of a vLLM server for each arm; 0: no server"})
    vllm_options: list[str] = field(default_factory=list, metadata={"help": "further arguments of vllm serve"})
    training_tokens_per_s: float | None = field(
        default=None, metadata={"help": "tokens per second and GPU through sampling and training, for GPU-hours"}
    )
    reply_tokens_per_s: float | None = field(
        default=None, metadata={"help": "reply tokens per second and GPU in evaluations and probes, for GPU-hours"}
    )
    num_prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "TASK=N, the number of prompts of a task whose data does not exist yet, for GPU-hours"},
    )
    expected_s: list[str] = field(
        default_factory=list,
        metadata={"help": "KIND=SECONDS, the expected time of jobs without GPUs, for the remaining time"},
    )
    num_parallel: int = field(
        default=0, metadata={"help": "number of jobs at the same time with --local; 0: one per core"}
    )
    warm_start: bool = field(
        default=True,
        metadata={
            "help": "start the jobs of --local as forks of one process that has imported the libraries, where the "
            "results are the same; false: every job imports them itself"
        },
    )

    def __post_init__(self) -> None:
        check_one_line(vars(self))
        check_output_dir(self.output_dir)
        self._check_kind()
        limits = {"arm_gpus": 1, "arm_nodes": 1, "probe_gpus": 1, "vllm_gpus": 0, "num_parallel": 0}
        for name, least in limits.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        for name in ("training_tokens_per_s", "reply_tokens_per_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if self.by not in (None, MODALITY):
            raise ValueError(f"by is {self.by!r}; expected {MODALITY}")
        if self.splices is not None and self.splices not in SPLICES:
            raise ValueError(f"splices is {self.splices!r}; expected {' or '.join(SPLICES)}")
        for wanted, given, reason in (
            ("pairs", "swap", "the pictures that are swapped"),
            ("skip_tasks", "skip", "what is asked"),
            ("attention_tasks", "attention", "what is asked"),
            ("tasks", "abilities", "what is asked"),
            ("abilities", "described", "what reads the descriptions"),
            ("sample_tasks", "samples", "what is asked"),
            ("samples", "by", "the replies whose pass@k is compared"),
            ("samples", "sampled", "what these arms answer"),
            ("samples", "support_k", "the replies whose pass@k is compared"),
            ("abilities", "splices", "how spliced models are evaluated"),
            ("splice_rest", "splices", "whose regions splices have"),
            ("splices", "claims", "the models of which the paper's Table 2 speaks"),
            ("vllm_gpus", "vllm_options", "the GPUs of the server"),
            *(("probed", kind, "the models that are looked into") for kind in ("swap", "skip", "attention", "tower")),
        ):
            if getattr(self, given) and not getattr(self, wanted):
                raise ValueError(f"{given} is given without {wanted}, {reason}")
        for path in self.config_files():
            if not Path(path).is_file():
                raise ValueError(f"{path} does not exist; expected a configuration file")
            read_yaml(Path(path))
        for entry in self.splice_rest:
            if entry.rpartition("=")[2] not in ("in", "rl"):
                raise ValueError(f"splice_rest {entry!r}; expected in, rl, or REGION=in or REGION=rl each")
        for option in self.vllm_options:
            if option.startswith("--") and " " in option:
                raise ValueError(f"vllm_options {option!r} is one word; expected [{', '.join(option.split())}]")
        for kind in self.expected():
            if kind not in KINDS:
                raise ValueError(f"expected_s {kind!r} is no kind of job{did_you_mean(kind, KINDS)}")
        self.prompt_numbers()

    def _check_kind(self) -> None:
        if (self.necessity is None) == (self.calibration is None):
            raise ValueError(
                "expected necessity, the YAML of an experiment, or calibration, that of a calibration; "
                f"found {'none' if self.necessity is None else 'both'}"
            )
        if self.calibration is not None:
            allowed = ("output_dir", "cluster", "calibration", "expected_s", "num_parallel")
            for entry in fields(self):
                default = entry.default if entry.default_factory is MISSING else entry.default_factory()
                if entry.name not in allowed and getattr(self, entry.name) != default:
                    raise ValueError(f"{entry.name} is given with calibration, which has its own models; leave it out")

    def config_files(self) -> list[str]:
        """Returns all configuration files that the study names directly."""
        probes = (self.swap, self.skip, self.attention, self.deltas, self.abilities, self.samples, self.tower)
        built = [split_task(text)[1] for text in [*([self.prompts] if self.prompts else []), *self.pairs]]
        return [
            *(path for path in (self.necessity, self.calibration) if path is not None),
            self.cluster,
            *built,
            *(path for path in probes if path is not None),
        ]

    def expected(self) -> dict[str, float]:
        """Kind of job -> seconds."""
        return read_numbers(self.expected_s, name="expected_s", expected="KIND=SECONDS", example="arm=80")

    def prompt_numbers(self) -> dict[str, int]:
        """Task -> number of its prompts."""
        numbers = read_numbers(self.num_prompts, name="num_prompts", expected="TASK=N", example="study:test=1000")
        return {task: int(number) for task, number in numbers.items()}


def check_output_dir(text: str) -> None:
    """Rejects ambiguous folder names."""
    if not text.strip():
        raise ValueError("output_dir is empty; expected a folder, such as outputs/my_study")
    if text.startswith(("~", "$")):
        raise ValueError(f"output_dir {text!r} is taken as it stands; write the folder out")
    if "=" in text:
        raise ValueError(f"output_dir {text!r} holds =, which separates NAME=PATH in commands; choose another name")


def split_task(text: str) -> tuple[str, str]:
    """Splits TASK:CONFIG."""
    task, colon, config = text.partition(":")
    if not (task and colon and config):
        raise ValueError(f"{text!r}; expected TASK:CONFIG, such as ocr:configs/pairs/ocr.yaml")
    return task, config


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """One command of the study, and its dependencies."""

    name: str
    kind: str
    stage: str
    """Jobs of a stage are submitted together, as one array."""
    index: int
    """Its index in the array: the number of the arm and seed."""
    command: tuple[str, ...]
    """Module and arguments."""
    output_dir: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ("python", "-m")
    """The launcher used outside a cluster."""

    @property
    def gathers(self) -> bool:
        """True if it uses the existing results of other jobs, and is repeated when they change."""
        return bool(self.after)

    def words_after(self, flag: str) -> list[str]:
        """Returns the values of a flag of its command."""
        words: list[str] = []
        if flag in self.command:
            for word in self.command[self.command.index(flag) + 1 :]:
                if word.startswith("--"):
                    break
                words.append(word)
        return words

    def local(self) -> Job:
        """Converts it to a job for the local scheduler."""
        launcher = [sys.executable if word == "python" else word for word in self.launcher]
        return Job(
            name=self.name,
            kind=self.kind,
            command=(*launcher, *self.command),
            output_dir=Path(self.output_dir),
            needs=self.needs,
            after=self.after,
        )


def read_necessity(arguments: StudyArguments) -> dict[str, Any]:
    """Gets train.necessity's plan from a separate process."""
    assert arguments.necessity is not None
    command = (
        "train.necessity", "--config", arguments.necessity, "--output_dir", f"{arguments.output_dir}/necessity",
        "--plan_json", "true",
    )  # fmt: skip
    plan: dict[str, Any] = json.loads(run_module(*command))
    return plan


def run_module(*command: str, stdin: str = "", said_by: str | None = None) -> str:
    """Runs a planning command of the suite and returns its output.

    Raises:
        ValueError: with its last line, if it fails.
    """
    found = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY_ROOT, input=stdin, capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        said = found.stderr.strip().splitlines() or [f"exit status {found.returncode}"]
        by = said_by or f"python -m {shlex.join(command[:3])}"
        raise ValueError(f"{by}: {said[-1].removeprefix('error: ')}")
    return found.stdout
