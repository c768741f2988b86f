"""How is a hub data set read? Its rows are streamed at a fixed commit; offline, they are read from the hub's cache."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.hub import Repository, hub_commit, parse_repository, snapshot

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True, kw_only=True)
class HubPlace:
    """Where `datasets` finds one commit of a data set."""

    path: str
    """A hub id, or the folder of the cache that holds the commit."""
    revision: str | None
    """None for a folder."""
    commit: str


def named_repository(name: str, *, named: str, example: str) -> Repository:
    """Returns the repository that a name stands for.

    Args:
        name: a hub id, such as `owner/name@revision`.
        named: the setting that gives the name, for the error.
        example: a data set of the right kind, for the error.

    Raises:
        ValueError: where it stands for none.
    """
    repository = parse_repository(name, kind="dataset")
    if repository is None:
        raise ValueError(f"{named} {name!r} is neither a folder nor a hub id such as {example}")
    return repository


def hub_place(repository: Repository) -> HubPlace:
    """Returns where a data set is read; asks the hub for its newest commit unless the hub is switched off."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        folder = snapshot(repository, cached_only=True)
        return HubPlace(path=str(folder), revision=None, commit=folder.name)
    commit = hub_commit(repository)
    return HubPlace(path=repository.repo, revision=commit, commit=commit)


def stream_rows(
    path: str, config: str | None = None, *, split: str, named: str, correct: str, **options: Any
) -> "IterableDataset":
    """Returns the rows of one split of a data set, streamed through `datasets`.

    Args:
        path: a hub id, a folder laid out as a data set, or the kind of the files that `options` name.
        config: a configuration of the data set.
        split: the data set's own.
        named: what the data set is called in the error.
        correct: which settings the error asks to correct, and what else can be done.
        options: further ones of `datasets.load_dataset`.

    Raises:
        ValueError: where `datasets` cannot open it.
    """
    from datasets import load_dataset

    try:
        return load_dataset(path, config, split=split, streaming=True, **options)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{named}: datasets cannot stream its split {split!r} ({reason}); correct {correct}"
        ) from error
