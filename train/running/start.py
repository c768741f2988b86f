"""What does a run start from? The opened and checked checkpoint, and its trainable parts."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.checkpoint import Checkpoint, open_checkpoint
from models.completeness import check_complete
from models.layout import layout_of
from models.loading import local_checkpoint
from tracking.processes import on_main_process, wait_for_all
from train.freezing.adapters import plan_adapters
from train.freezing.elements import (
    ELEMENTS_FILE,
    ElementArguments,
    Elements,
    describe_elements,
    elements_settings,
    find_elements,
    narrow_plan,
    read_elements,
    write_elements,
)
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
    arguments: ElementArguments = field(default_factory=ElementArguments)
    elements: Elements | None = None
    """The element masks, if not all elements of what trains do: until `share_elements`, in the main process alone."""


def start_name(config: "ModelConfig") -> str:
    """Returns the folder or hub id of the start checkpoint.

    Raises:
        ValueError: if none is given.
    """
    if not config.model_name_or_path:
        raise ValueError("model_name_or_path is missing; expected the checkpoint to start from")
    return str(config.model_name_or_path)


def open_start(
    config: "ModelConfig",
    freeze: FreezeArguments,
    elements: ElementArguments = ElementArguments(),  # noqa: B008 (frozen)
) -> Start:
    """Opens the start checkpoint and resolves the frozen blocks and elements, before anything is written.

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
    return _with_elements(Start(name, checkpoint, plan, elements))


def _with_elements(start: Start) -> Start:
    """Finds the element masks in the main process; in all, freezes the tensors that have no element to train."""
    if not start.arguments.train_elements:
        return start
    found: list[Elements] = []

    def find() -> tuple[list[str], str]:
        found.append(find_elements(start.arguments, start.checkpoint, start.plan))
        return list(found[0].masks), describe_elements(found[0], start.plan, start.checkpoint)

    moved, note = on_main_process(find)
    return replace(start, plan=narrow_plan(start.plan, moved, note), elements=found[0] if found else None)


def share_elements(start: Start, directory: Path) -> Start:
    """Writes the masks into the run directory and gives them to every process; without masks, does nothing."""
    if not start.arguments.train_elements:
        return start
    file = directory / ELEMENTS_FILE
    if start.elements is not None:
        write_elements(file, start.elements)
    wait_for_all()
    if start.elements is not None:
        return start
    sizes = {name: start.plan.layout.parameters[name].num_elements for name in start.plan.trainable}
    return replace(start, elements=read_elements(file, sizes, elements_settings(start.arguments)))
