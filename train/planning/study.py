"""What is a necessity study made of? Its arguments, and every command it runs, in order.

Data and models that the configuration names are used directly; those given as a YAML are built in the study. Each
command has its own output directory and depends only on earlier commands.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_builders.build import DATA_DIR
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, check_expression
from models.pocket import CHECKPOINT_DIR
from tracking.command import raise_mistakes
from tracking.jobs.job import Job
from train import FINAL_DIR
from train.freezing.arms import Arm, check_arm
from train.freezing.data_arms import BOUNDARY, SFT, check_modalities
from train.freezing.freeze import FreezeArguments


@dataclass(frozen=True, kw_only=True)
class NecessityArguments:
    """A study: sources of models and data, arms, seeds."""

    output_dir: str = field(metadata={"help": "folder of the whole study"})
    grpo_config: str = field(metadata={"help": "YAML of train.grpo, the same for every arm"})
    arms: list[str] = field(
        metadata={
            "help": "one or more arms: full, freeze-mid, only-llm:4, only-vision, each-only (one arm per layer), "
            "freeze-random-0, NAME=EXPRESSION+EXPRESSION, …; by data: data-MODALITY, data-all, data-boundary, "
            "sft-MODALITY, sft-all, each-data, each-sft (one arm per modality), data-negative:freeze-mid",
            "check": check_arm,
        }
    )
    seeds: list[int] = field(metadata={"help": "training seeds; each arm is trained with each of them"})
    eval_config: str = field(metadata={"help": "YAML of eval.run, the same for every model"})
    modalities: list[str] = field(
        default_factory=list,
        metadata={"help": "modalities of the arms by data, as `meta` of the prompts spells them"},
    )
    sft_arm_config: str | None = field(
        default=None, metadata={"help": "YAML of train.sft, the same for every arm sft-…; they start like the others"}
    )
    boundary_config: str | None = field(
        default=None,
        metadata={"help": "YAML of eval.boundary, which selects the prompts of data-boundary with the SFT checkpoint"},
    )
    sft_checkpoint: str | None = field(
        default=None, metadata={"help": "checkpoint that every arm starts from: folder or hub id"}
    )
    sft_config: str | None = field(
        default=None,
        metadata={"help": "YAML of train.sft that trains this checkpoint from base; used instead of --sft-checkpoint"},
    )
    base_checkpoint: str | None = field(default=None, metadata={"help": "the pretrained model: folder or hub id"})
    base_config: str | None = field(
        default=None,
        metadata={"help": "YAML of train.sft that trains the base model from init; used instead of --base-checkpoint"},
    )
    init_config: str | None = field(
        default=None, metadata={"help": "YAML of models.pocket, which builds the untrained model that base starts from"}
    )
    data_task: str | None = field(
        default=None, metadata={"help": "task of data_builders.build that builds the prompts, such as pocket"}
    )
    data_config: str | None = field(default=None, metadata={"help": "YAML of data_builders.build for --data-task"})
    prompts: str | None = field(
        default=None, metadata={"help": "folder of an existing prompt set; used instead of --data-task"}
    )
    eval_split: str = field(
        default="test", metadata={"help": "split of the prompt set that the models are evaluated on"}
    )
    always_freeze: list[str] = field(
        default_factory=list,
        metadata={"help": "block expressions that are frozen in every arm", "check": check_expression},
    )
    partition: str = field(
        default="thirds",
        metadata=PARTITION_ARGUMENT,
    )
    cuts: list[int] = field(
        default_factory=list,
        metadata=CUTS_ARGUMENT,
    )
    layout_config: str | None = field(
        default=None, metadata={"help": "config.json to plan with if the checkpoint is not on this machine"}
    )
    launcher: str | None = field(
        default=None,
        metadata={"help": "command that starts train.grpo, such as 'accelerate launch --num_processes 2 -m'"},
    )
    num_parallel: int = field(default=0, metadata={"help": "number of jobs at the same time; 0: one per core"})
    warm_start: bool = field(
        default=True,
        metadata={
            "help": "start local jobs as forks of one process that has imported the libraries, where the results are "
            "the same; false: every job imports them itself"
        },
    )
    expected_s: list[str] = field(
        default_factory=list,
        metadata={
            "help": "KIND=SECONDS, the expected time of a kind of job, for the first estimate of the remaining time"
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "print the plan and exit; no weights are read"})
    plan_json: bool = field(default=False, metadata={"help": "print the jobs as JSON and exit, for slurm.launch"})
    collect: bool = field(
        default=False, metadata={"help": "run nothing; combine the results of finished jobs and list what is missing"}
    )
    overwrite: bool = field(default=False, metadata={"help": "discard all earlier results of the study and start over"})

    def __post_init__(self) -> None:
        mistakes = [text for wrong, text in self._rules() if wrong]
        mistakes += [
            f"{path} does not exist; expected a configuration file"
            for path in self.config_files()
            if not Path(path).is_file()
        ]
        raise_mistakes(mistakes)
        check_modalities(self.modalities)

    def _rules(self) -> list[tuple[bool, str]]:
        """Returns what the arguments are refused for: whether it is so, and what is said."""
        repeated = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        boundary = next((arm for arm in self.arms if arm.startswith("data-boundary")), None)
        supervised = next((arm for arm in self.arms if arm.startswith(("sft-", "each-sft")) and "=" not in arm), None)
        return [
            (
                bool(self.sft_checkpoint) == bool(self.sft_config),
                "expected either sft_checkpoint or sft_config, the start of every arm",
            ),
            (
                bool(self.base_checkpoint and self.base_config),
                "base_checkpoint and base_config are both given; expected one of them",
            ),
            (
                bool(self.sft_config and not (self.base_config or self.base_checkpoint)),
                "sft_config is given without base_checkpoint or base_config, from which it starts",
            ),
            (
                bool(self.base_config and not self.init_config),
                "base_config is given without init_config, from which it starts",
            ),
            (
                bool(self.prompts) == bool(self.data_task),
                "expected either prompts, a folder, or data_task with data_config",
            ),
            (
                self.collect and self.overwrite,
                "overwrite would remove what collect takes together; leave one of them out",
            ),
            (
                bool(boundary and not self.boundary_config),
                f"arm {boundary!r} needs boundary_config, a YAML of eval.boundary",
            ),
            (
                bool(supervised and not self.sft_arm_config),
                f"arm {supervised!r} needs sft_arm_config, a YAML of train.sft",
            ),
            (not self.seeds, "seeds is empty; expected at least one, such as 0 1"),
            (bool(repeated), f"seed {', '.join(map(str, repeated))} is named twice; expected each seed once"),
        ]

    def config_files(self) -> list[str]:
        files = (
            self.data_config,
            self.init_config,
            self.base_config,
            self.sft_config,
            self.grpo_config,
            self.eval_config,
            self.sft_arm_config,
            self.boundary_config,
        )
        return [path for path in files if path is not None]


def freeze_arguments(arguments: NecessityArguments, arm: Arm) -> FreezeArguments:
    return FreezeArguments(
        freeze=list(arm.freeze),
        train_only=list(arm.train_only),
        always_freeze=arguments.always_freeze,
        # A plan reads no weights, so it does not need the pair itself.
        train_elements=[arm.elements, "sft", "full"] if arm.elements else [],
        partition=arguments.partition,
        cuts=arguments.cuts,
    )


def study_files(arguments: NecessityArguments) -> dict[str, dict[str, Any]]:
    """Returns the contents of the study's configuration files, keyed by path."""
    import yaml

    return {path: yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {} for path in arguments.config_files()}


def plan_jobs(arguments: NecessityArguments, arms: Sequence[Arm]) -> list[Job]:
    """Returns all commands of the study, in an order in which they can start."""
    return _Jobs(arguments, arms).all()


def arm_label(arm: str, seed: int) -> str:
    """Returns the folder name of an arm and seed."""
    return f"{arm}-seed{seed}"


def reference_of(arms: Sequence[str]) -> str | None:
    """Returns the arm that the others are compared with: one that trains everything on all prompts, if there is one."""
    return next((name for name in ("full", "data-all") if name in arms), None)


class _Jobs:
    """Collects the commands of a study; a job depends on those of the named jobs that the study runs itself."""

    def __init__(self, arguments: NecessityArguments, arms: Sequence[Arm]) -> None:
        self.arguments = arguments
        self.runs = [(arm, seed, arm_label(arm.name, seed)) for arm in arms for seed in arguments.seeds]
        self.out = Path(arguments.output_dir)
        self.prompts = arguments.prompts or str(self.out / "data" / DATA_DIR)
        self.checkpoints = {
            "init": str(self.out / "init" / CHECKPOINT_DIR),
            "base": arguments.base_checkpoint or str(self.out / "base" / FINAL_DIR),
            "sft": arguments.sft_checkpoint or str(self.out / "sft" / FINAL_DIR),
            **{label: str(self.out / "arms" / label / FINAL_DIR) for _, _, label in self.runs},
        }
        self.boundary = self.out / "boundary"
        self.jobs: dict[str, Job] = {}

    def all(self) -> list[Job]:
        self._add_sources()
        if self.arguments.boundary_config:
            self._add_boundary(self.arguments.boundary_config)
        for arm, seed, label in sorted(self.runs, key=lambda run: bool(run[0].elements)):  # a mask needs full's end
            self._add_arm(arm, seed, label)
        phases = ["base", "sft"] if self.arguments.base_checkpoint or self.arguments.base_config else ["sft"]
        for model in (*phases, *(label for _, _, label in self.runs)):
            self._add_evaluation(model)
        self._add_comparison(phases)
        self._add_deltas()
        return list(self.jobs.values())

    def _add(
        self,
        name: str,
        kind: str,
        directory: Path,
        *command: str,
        needs: Sequence[str] = (),
        launcher: Sequence[str] = (sys.executable, "-m"),
    ) -> None:
        self.jobs[name] = Job(
            name=name,
            kind=kind,
            command=(*launcher, *command, "--output_dir", str(directory)),
            output_dir=directory,
            needs=tuple(need for need in needs if need in self.jobs),
        )

    def _add_sources(self) -> None:
        """Adds the parts that the study builds: data, untrained model, base model and cold start."""
        arguments = self.arguments
        if arguments.data_task:
            config = ("--config", arguments.data_config) if arguments.data_config else ()
            self._add("data", "data", self.out / "data", "data_builders.build", arguments.data_task, *config)
        if arguments.init_config:
            self._add("init", "init", self.out / "init", "models.pocket", "--config", arguments.init_config)
        for phase, config_file, start in (
            ("base", arguments.base_config, "init"),
            ("sft", arguments.sft_config, "base"),
        ):
            if config_file:
                command = ("train.sft", "--config", config_file, *self._start(self.checkpoints[start]))
                self._add(phase, phase, self.out / phase, *command, needs=("data", start))

    def _start(self, checkpoint: str, prompts: str | None = None) -> tuple[str, ...]:
        return ("--model_name_or_path", checkpoint, "--prompts", prompts or self.prompts)

    def _add_boundary(self, config: str) -> None:
        command = ("eval.boundary", "--config", config, "--model", self.checkpoints["sft"], "--data", self.prompts)
        self._add("boundary", "boundary", self.boundary, *command, needs=("data", "sft"))

    def _add_arm(self, arm: Arm, seed: int, label: str) -> None:
        arguments = self.arguments
        chosen = arm.data.part == BOUNDARY
        program = ("train.grpo", arguments.grpo_config)
        if arm.data.method == SFT:
            assert arguments.sft_arm_config is not None
            program = ("train.sft", arguments.sft_arm_config)
        command = [
            *(program[0], "--config", program[1]),
            *self._start(self.checkpoints["sft"], str(self.boundary / DATA_DIR) if chosen else None),
            *("--seed", str(seed), "--partition", arguments.partition),
        ]
        for flag, values in (
            ("--select", arm.data.select),
            ("--freeze", arm.freeze),
            ("--train_only", arm.train_only),
            ("--always_freeze", arguments.always_freeze),
            ("--cuts", arguments.cuts),
        ):
            if values:
                command += [flag, *map(str, values)]
        full = arm_label("full", seed)
        if arm.elements:
            command += ["--train_elements", arm.elements, self.checkpoints["sft"], self.checkpoints[full]]
        launcher = shlex.split(arguments.launcher) if arguments.launcher else (sys.executable, "-m")
        directory = self.out / "arms" / label
        needs = ("data", "sft", *((full,) if arm.elements else ()), *(("boundary",) if chosen else ()))
        self._add(label, "arm", directory, *command, needs=needs, launcher=launcher)

    def _add_evaluation(self, model: str) -> None:
        task = f"{self.prompts}:{self.arguments.eval_split}"
        command = ("eval.run", "--config", self.arguments.eval_config, "--model", self.checkpoints[model])
        directory = self.out / "eval" / model
        self._add(f"eval-{model}", "eval", directory, *command, "--tasks", task, needs=("data", model))

    def _add_comparison(self, phases: Sequence[str]) -> None:
        models = [f"{phase}={self.out / 'eval' / phase}" for phase in phases]
        models += [f"{arm.name}@{seed}={self.out / 'eval' / label}" for arm, seed, label in self.runs]
        roles = ["--baseline", "sft"]
        reference = reference_of([arm.name for arm, _, _ in self.runs])
        if reference:
            roles += ["--reference", reference]
        needs = [job.name for job in self.jobs.values() if job.kind == "eval"]
        self._add("comparison", "compare", self.out / "comparison", "eval.compare", *models, *roles, needs=needs)

    def _add_deltas(self) -> None:
        arguments = self.arguments
        ends = [f"{arm.name}@{seed}={self.checkpoints[label]}" for arm, seed, label in self.runs]
        cut = ("--cuts", *map(str, arguments.cuts)) if arguments.cuts else ("--partition", arguments.partition)
        # Spectra of all arms of a 7B model take hours on a CPU, so they are not computed by default.
        command = (
            "analyze.deltas",
            "--sft",
            self.checkpoints["sft"],
            "--rl",
            *ends,
            "--measures",
            "energy",
            "floor",
            *cut,
        )
        needs = [label for _, _, label in self.runs]
        self._add("deltas", "deltas", self.out / "deltas", *command, needs=needs)
