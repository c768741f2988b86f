"""Which arguments does a GRPO run have besides TRL's? One dataclass per concern, in parsing order."""

from dataclasses import dataclass

from train.freezing.freeze import FreezeArguments
from train.rollouts.setup import RolloutArguments
from train.running.data import DataArguments
from train.running.rewards import RewardArguments
from train.running.telemetry_arguments import TelemetryArguments
from train.running.validation import ValidationArguments

OUR_ARGUMENTS = (
    DataArguments,
    FreezeArguments,
    RewardArguments,
    TelemetryArguments,
    ValidationArguments,
    RolloutArguments,
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
