"""Which checkpoint does a name mean? A whole model, or an adapter with the base that it is merged into."""

from pathlib import Path

from models.adapters.merged import MergedCheckpoint, merge_adapter
from models.adapters.options import read_adapter_config
from models.adapters.reading import is_adapter, read_adapter
from models.checkpoint import Checkpoint, open_checkpoint
from models.loading import check_checkpoint, local_checkpoint

BASE_ARGUMENT = {
    "help": "base model of an adapter: folder or hub id; by default base_model_name_or_path of its adapter_config.json",
    "check": check_checkpoint,
}
"""Metadata of the field `base` of commands that take an adapter as their model."""


def check_model(name: str) -> None:
    """Refuses what is plainly neither a checkpoint nor an adapter, in a moment.

    Raises:
        ValueError: that says what it is instead.
    """
    if is_adapter(Path(name)):
        read_adapter_config(Path(name))
    else:
        check_checkpoint(name)


def open_model(name: str, *, base: str | None = None) -> Checkpoint:
    """Opens a checkpoint, or an adapter merged into its base.

    Args:
        name: folder or hub id of a checkpoint or of a PEFT adapter.
        base: folder or hub id of the adapter's base; by default the one that its configuration names.

    Raises:
        ValueError: if either is missing or damaged, or they do not belong together.
    """
    directory = local_checkpoint(name)
    if is_adapter(directory):
        return merge_adapter_of(directory, open_base(directory, base))
    if base is not None:
        raise ValueError(f"{name} is a whole model, and --base {base} names the base of an adapter; leave --base out")
    return open_checkpoint(directory)


def open_base(adapter: Path, base: str | None = None) -> Checkpoint:
    """Opens the base model of an adapter: the one given, or the one that its configuration names.

    Raises:
        ValueError: if there is none, or it is an adapter itself.
    """
    config = read_adapter_config(adapter)
    name = base or config.get("base_model_name_or_path")
    where = "--base" if base else "base_model_name_or_path"
    way_out = "name it with --base, or correct adapter_config.json"
    if not name:
        raise ValueError(f"{adapter}: its adapter_config.json names no base_model_name_or_path; {way_out}")
    if not base and config.get("revision") and not Path(name).is_dir():
        name = f"{name}@{config['revision']}"
    try:
        directory = local_checkpoint(name)
    except ValueError as error:
        raise ValueError(f"{adapter}: its base model is not here ({where}): {error}; {way_out}") from error
    if is_adapter(directory):
        raise ValueError(f"{adapter}: its base {name} ({where}) is an adapter itself; merge that one first")
    return open_checkpoint(directory)


def merge_adapter_of(directory: Path, base: Checkpoint) -> MergedCheckpoint:
    """Returns a base with the adapter of a folder merged in, computed lazily."""
    return merge_adapter(base, read_adapter(directory, base))


def other_base(merged: MergedCheckpoint) -> str | None:
    """Returns a warning if the adapter names another base, found on this machine, than the one it is merged into."""
    named = merged.adapter.base_name
    if named is None or not Path(named).is_dir() or is_adapter(Path(named)):
        return None
    try:
        same = open_checkpoint(Path(named)).fingerprint() == merged.base.fingerprint()
    except ValueError:
        same = False
    if same:
        return None
    return (
        f"{merged.adapter.directory} was trained on {named}, whose weights are not those of {merged.base.directory}, "
        "to which its change is added here"
    )


def place_of(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Returns the folders that a checkpoint is read from: its own, or the base's and the adapter's."""
    if isinstance(checkpoint, MergedCheckpoint):
        return checkpoint.base.directory.resolve(), checkpoint.adapter.directory.resolve()
    return (checkpoint.directory.resolve(),)
