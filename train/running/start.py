"""What does a run start from? The opened and checked checkpoint, and its trainable parts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.checkpoint import Checkpoint, open_checkpoint
from models.completeness import check_complete
from models.layout import layout_of
from models.loading import local_checkpoint
from train.freezing.adapters import plan_adapters
from train.freezing.elements import MASK_FILE, ElementMask, build_mask, masked_plan, read_mask
from train.freezing.freeze import FreezeArguments, FreezePlan, plan_freeze

if TYPE_CHECKING:
    from trl import ModelConfig


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from, with its freeze plan."""

    name: str
    checkpoint: Checkpoint
    plan: FreezePlan
    """Frozen and trainable parameters; under LoRA, trainable means with an adapter."""
    mask: ElementMask | None = None
    """The elements that train, if not all do."""


def start_name(config: "ModelConfig") -> str:
    """Returns the folder or hub id of the start checkpoint.

    Raises:
        ValueError: if none is given.
    """
    if not config.model_name_or_path:
        raise ValueError("model_name_or_path is missing; expected the checkpoint to start from")
    return str(config.model_name_or_path)


def open_start(config: "ModelConfig", freeze: FreezeArguments) -> Start:
    """Opens the start checkpoint and resolves the frozen blocks, before anything is written.

    Raises:
        ValueError: if the checkpoint is missing, damaged or inconsistent with its configuration, an expression
            matches nothing, or nothing is left to train.
    """
    name = start_name(config)
    checkpoint = open_checkpoint(local_checkpoint(name))
    plan = plan_freeze(layout_of(checkpoint.directory), freeze)
    check_complete(checkpoint, plan.layout)
    if config.use_peft:
        plan = plan_adapters(plan, freeze, config)
    elif plan.layout.tied:
        trains = any(plan.layout.parameters[parameter].region == "embed" for parameter in plan.trainable)
        note = (
            f"embeddings are tied: the head is the embedding matrix and {'trains' if trains else 'is frozen'} with it"
        )
        plan = replace(plan, notes=(*plan.notes, note))
    return Start(name, checkpoint, plan)


def with_elements(start: Start, freeze: FreezeArguments, directory: Path, *, overwrite: bool) -> Start:
    """Adds the mask that `train_elements` asks for, if it does.

    A run that is continued uses the mask in its directory, so it does not need the pair of checkpoints again.

    Raises:
        ValueError: if the pair does not fit the start, or no element would train.
    """
    if not freeze.train_elements:
        return start
    recorded = directory / MASK_FILE
    mask = read_mask(recorded) if recorded.is_file() and not overwrite else None
    if mask is None or mask.request != tuple(freeze.train_elements):
        mask = build_mask(freeze.train_elements, start.checkpoint, start.plan)
    return replace(start, plan=masked_plan(start.plan, mask), mask=mask)
