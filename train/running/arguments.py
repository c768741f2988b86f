"""Which arguments does training take? TRL's dataclasses by name, and ours: one per concern, in parsing order.

TRL takes seconds to import, so the names of its arguments are read from its source. The files named here are those of
TRL 1.16 and Transformers 5.23. If an installed version differs, mistakes are still found, but only after the import.
"""

from dataclasses import dataclass

from models.loading import check_checkpoint
from tracking.fields import LibraryClass
from train.freezing.freeze import FreezeArguments
from train.rewards.functions import RewardArguments
from train.rollouts.setup import RolloutArguments
from train.running.data import DataArguments
from train.running.telemetry_arguments import TelemetryArguments
from train.running.validation import ValidationArguments
from train.sharing.arguments import SharingArguments
from train.trajectory.arguments import TrajectoryArguments

BASES = (("trl/trainer/base_config.py", "_BaseConfig"), ("transformers/training_args.py", "TrainingArguments"))

REQUIRED = {"output_dir": "output directory; the trained checkpoint is written to its subfolder final/"}

GRPO_CONFIG = LibraryClass(
    module="trl", name="GRPOConfig", sources=(("trl/trainer/grpo_config.py", "GRPOConfig"), *BASES), required=REQUIRED
)
SFT_CONFIG = LibraryClass(
    module="trl", name="SFTConfig", sources=(("trl/trainer/sft_config.py", "SFTConfig"), *BASES), required=REQUIRED
)
MODEL_CONFIG = LibraryClass(
    module="trl",
    name="ModelConfig",
    sources=(("trl/trainer/model_config.py", "ModelConfig"),),
    required={"model_name_or_path": "the checkpoint to start from, folder or hub id"},
    checks={"model_name_or_path": check_checkpoint},
)

OUR_ARGUMENTS = (
    DataArguments,
    FreezeArguments,
    RewardArguments,
    TelemetryArguments,
    ValidationArguments,
    RolloutArguments,
    SharingArguments,
    TrajectoryArguments,
)
"""Parsed along with TRL's `GRPOConfig` and `ModelConfig`."""


@dataclass(frozen=True, kw_only=True)
class GrpoArguments:
    """All arguments of a run that are not TRL's."""

    data: DataArguments
    freeze: FreezeArguments
    rewards: RewardArguments
    telemetry: TelemetryArguments
    validation: ValidationArguments
    rollout: RolloutArguments
    sharing: SharingArguments
    trajectory: TrajectoryArguments
