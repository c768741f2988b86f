"""What will a study cost? GPU-hours of every job, from the training plan and the number of replies.

Arms: the tokens of `train.plan`, at `training_tokens_per_s`. Evaluations and probes: replies (prompts x conditions x
draws, pairs x layers, problems x parts left out) x their maximum length, at `reply_tokens_per_s`. Both are upper
bounds: most replies are shorter. Both speeds come from the configuration and determine the accuracy of the estimate.
Without `training_tokens_per_s`, arms use the speed that train.plan assumes.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.planning.study import TRAINING, StudyArguments, StudyJob, run_module
from tracking.command import read_yaml

NUM_CONDITIONS = 3
"""Maximum number of conditions with `abilities: true`: given, black, described."""
BOUNDARY_SPLIT, BOUNDARY_SAMPLES = "rl", 8
"""Defaults of eval.boundary."""
ATTENTION_PASSES = 3
"""Passes over an answer: generating it counts once; scoring it in both modes and for the controls about as much."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The arms' part of train.plan's output."""

    num_gpus: int
    tokens: dict[str, int | None]
    """Arm -> tokens of one run; None if the number of steps is not given."""
    tokens_per_s: float | None = None
    """Of a GPU in training, as train.plan assumes it; None for a GPU of unknown peak."""
    source: str = ""
    """What that number is from."""


def read_training_plan(arguments: StudyArguments) -> TrainingPlan:
    """Runs train.plan in a separate process."""
    assert arguments.necessity is not None
    flags = ("--num_gpus", str(arguments.arm_gpus)) if arguments.arm_gpus else ()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        run_module("train.plan", "--config", arguments.necessity, *flags, "--json", str(path))
        plan = json.loads(path.read_text(encoding="utf-8"))
    return TrainingPlan(
        num_gpus=plan["num_gpus"],
        tokens={name: arm["num_tokens"] for name, arm in plan["arms"].items()},
        tokens_per_s=plan["tokens_per_s"],
        source=f"{plan['tokens_per_s_source']}, {plan['gpu']}",
    )


class Costs:
    """Counts the work of jobs."""

    def __init__(self, arguments: StudyArguments, necessity: Mapping[str, Any], training: TrainingPlan) -> None:
        self._arguments = arguments
        self._num_layers: int = necessity["num_layers"]
        self._training = training
        self._sizes = arguments.prompt_numbers()
        self._own = f"{necessity['prompts']}:"
        self._arms = {run["label"]: run["arm"] for run in necessity["runs"]}

    @property
    def training_tokens_per_s(self) -> float | None:
        """As configured, else as train.plan assumes it."""
        return self._arguments.training_tokens_per_s or self._training.tokens_per_s

    @property
    def training_source(self) -> str:
        """What train.plan's assumption is from."""
        return self._training.source

    def gpu_hours(self, job: StudyJob) -> float | None:
        """Returns the GPU-hours of a job; None if a required value is unknown."""
        if job.kind == "arm":
            # train.plan forecasts no supervised arm.
            return _hours(self._training.tokens.get(self._arms[job.name]), self.training_tokens_per_s)
        if job.kind in TRAINING:
            return None
        replies = self.num_replies(job)
        longest = self._number(job, "max_new_tokens")
        tokens = None if replies is None or longest is None else replies * longest
        return _hours(tokens, self._arguments.reply_tokens_per_s)

    def num_replies(self, job: StudyJob) -> int | None:
        """Returns the number of replies of a job; None if the number of prompts is unknown."""
        if job.kind == "swap":
            pairs = [self._num_pairs(text, self._number(job, "limit")) for text in self._arguments.pairs]
            modes = self._list(job, "mode") or ["from"]
            return None if None in pairs else sum(map(int, filter(None, pairs))) * len(modes) * (self._num_layers + 1)
        prompts = self._num_prompts(job)
        if prompts is None:
            return None
        if job.kind == "skip":
            per_kind = {"layers": self._num_layers, "attn": self._num_layers, "mlp": self._num_layers, "blocks": 3}
            kinds = self._list(job, "configurations") or list(per_kind)
            return prompts * (2 + sum(per_kind.get(kind, 1) for kind in kinds))
        if job.kind == "attention":
            models = [word for word in job.command if "=" in word]
            return prompts * len(models) * ATTENTION_PASSES
        conditions = NUM_CONDITIONS if self._option(job, "abilities") else len(self._list(job, "conditions")) or 1
        draws = self._number(job, "num_samples") or (BOUNDARY_SAMPLES if job.kind == "boundary" else 1)
        return prompts * conditions * draws

    def _num_prompts(self, job: StudyJob) -> int | None:
        most = self._number(job, "limit")
        tasks = job.words_after("--tasks")
        if job.kind == "boundary":
            tasks = [f"{job.words_after('--data')[0]}:{self._option(job, 'split') or BOUNDARY_SPLIT}"]
        counts = [self._num_of(task) for task in tasks]
        if None in counts:
            return None
        return sum(min(count, most) if most else count for count in counts if count is not None)

    def _num_of(self, task: str) -> int | None:
        """Returns the number of prompts of a task, from the configuration or its file."""
        named = f"study:{task.removeprefix(self._own)}" if task.startswith(self._own) else task
        for name in (named, named.partition(":")[0]):
            if name in self._sizes:
                return self._sizes[name]
        folder, _, split = task.rpartition(":")
        path = Path(folder) / f"{split}.jsonl"
        if path.is_file():
            with path.open("rb") as file:
                return sum(1 for _ in file)
        return None

    def _num_pairs(self, text: str, limit: int | None) -> int | None:
        number = _whole(Path(text.partition(":")[2]), "num_pairs")
        return number if number is None or limit is None else min(number, limit)

    def _option(self, job: StudyJob, name: str) -> Any:
        """Returns the content of a job's configuration file."""
        configs = job.words_after("--config")
        return read_yaml(Path(configs[0])).get(name) if configs else None

    def _list(self, job: StudyJob, name: str) -> list[Any]:
        value = self._option(job, name)
        return value if isinstance(value, list) else [] if value is None else [value]

    def _number(self, job: StudyJob, name: str) -> int | None:
        configs = job.words_after("--config")
        return _whole(Path(configs[0]), name) if configs else None


def _whole(config: Path, name: str) -> int | None:
    """Returns an integer from a configuration file; None if it is not set."""
    value = read_yaml(config).get(name)
    if value is not None and type(value) is not int:
        raise ValueError(f"{config}: {name} is {value!r}; expected a whole number")
    return value


def _hours(tokens: int | None, tokens_per_s: float | None) -> float | None:
    return None if tokens is None or tokens_per_s is None else tokens / tokens_per_s / 3600
