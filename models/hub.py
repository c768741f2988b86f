"""Resolves a name on the hub to its snapshot in the local cache, and fetches it if the hub can be reached.

A name is `owner/name`, or `owner/name@revision` with a branch, a tag or a commit. A commit may be abbreviated once
the cache contains it. Every error of the hub or the network is reported in one line.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tracking.progress import BYTES, Progress

KINDS = ("model", "dataset")
"""Repository types as huggingface_hub names them."""
CODE_FILES = ["*.py", "*.ipynb"]
"""Never fetched."""

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository on the hub and its revision."""

    repo: str
    kind: str = "model"
    revision: str | None = None
    """None for the newest commit of the main branch."""

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, and whether it is in the cache."""

    name: str
    num_bytes: int
    cached: bool


def parse_repository(name: str, *, kind: str = "model") -> Repository | None:
    """Returns the repository that a name refers to, or None if it is a folder or not a valid repository name."""
    assert kind in KINDS, kind
    match = _NAME.fullmatch(name)
    if match is None or Path(name).exists():
        return None
    return Repository(repo=match["repo"], kind=kind, revision=match["revision"])


def snapshot(
    repository: Repository,
    *,
    patterns: Sequence[str] | None = None,
    ignored: Sequence[str] = CODE_FILES,
    cached_only: bool = False,
    num_bytes: int | None = None,
) -> Path:
    """Returns the folder of a repository's snapshot in the cache; the folder's name is the commit.

    Args:
        repository: the repository.
        patterns: the files to include; all of them by default.
        ignored: the files to exclude; takes precedence over `patterns`.
        cached_only: use the cache only.
        num_bytes: the bytes to be fetched, for the remaining time; None where that is not known.

    Raises:
        ValueError: if neither the cache nor the hub provides it; one line.
    """
    from huggingface_hub import snapshot_download

    with (
        _in_one_line(repository, "is not a local folder and not completely in the cache"),
        _counting_bytes(f"fetching {repository}", num_bytes) as bar,
    ):
        return Path(
            snapshot_download(
                repository.repo,
                repo_type=repository.kind,
                revision=_whole_commit(repository),
                allow_patterns=None if patterns is None else list(patterns),
                ignore_patterns=list(ignored),
                local_files_only=cached_only,
                tqdm_class=bar,
            )
        )


def hub_commit(repository: Repository) -> str:
    """Returns the commit that a repository's revision currently points to on the hub; fetches nothing."""
    from huggingface_hub import HfApi

    if repository.revision is not None and _COMMIT.fullmatch(repository.revision):
        return repository.revision
    with _in_one_line(repository, "cannot be looked up"):
        info = HfApi().repo_info(repository.repo, repo_type=repository.kind, revision=repository.revision)
    assert info.sha is not None, repository
    return str(info.sha)


def list_files(
    repository: Repository, *, patterns: Sequence[str] | None = None, ignored: Sequence[str] = CODE_FILES
) -> tuple[str, list[HubFile]]:
    """Returns the commit and each file that `snapshot` would fetch.

    Fetches nothing, and does not change the branches recorded in the cache.
    """
    from huggingface_hub import snapshot_download

    commit = hub_commit(repository)
    with _in_one_line(repository, "cannot be looked up"):
        files = snapshot_download(
            repository.repo,
            repo_type=repository.kind,
            revision=commit,  # a branch name here would update the branch recorded in the cache
            allow_patterns=None if patterns is None else list(patterns),
            ignore_patterns=list(ignored),
            dry_run=True,
        )
    found = [HubFile(file.filename, file.file_size or 0, file.is_cached) for file in files]
    return commit, sorted(found, key=lambda file: file.name)


@contextmanager
def _counting_bytes(label: str, num_bytes: int | None) -> Iterator[type[Any]]:
    """Gives the class of bars that huggingface_hub asks for; the bytes they count are shown as one progress.

    It counts the same bytes in one bar or in two, as they arrive and as they are written (huggingface_hub 2.4), and
    none where the cache holds everything: then nothing is shown.
    """
    shown: list[Progress] = []

    class Counting(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self._counts_bytes = options.get("unit") == BYTES
            self._counted = 0.0

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes and n:
                self._counted += n
                if not shown:
                    shown.append(Progress(label=label, total=num_bytes, unit=BYTES))
                shown[0].reach(self._counted)

    try:
        yield Counting
    finally:
        for progress in shown:
            progress.close()


@contextmanager
def _in_one_line(repository: Repository, without_hub: str) -> Iterator[None]:
    """Turns errors of the hub or its cache into a `ValueError`, without the log of every retry."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    # errors.HTTPError is the base class of the HTTP client's errors (huggingface_hub 1 and 2 use different clients).
    # hf_xet, which transfers large files, raises RuntimeError for anything that is not an OSError.
    except (errors.HTTPError, errors.HFValidationError, OSError, RuntimeError) as error:  # type: ignore[attr-defined]
        what = "checkpoint" if repository.kind == "model" else "dataset"
        raise ValueError(f"{what} {repository} {_reason(error, repository, without_hub)}") from error
    finally:
        logging.set_verbosity(verbosity)


def _whole_commit(repository: Repository) -> str | None:
    """Returns the revision, completing an abbreviated commit from the cache; the hub accepts only full ones."""
    from huggingface_hub import constants

    if repository.revision is None or not _SHORT_COMMIT.fullmatch(repository.revision):
        return repository.revision
    folder = Path(constants.HF_HUB_CACHE) / f"{repository.kind}s--{repository.repo.replace('/', '--')}" / "snapshots"
    found = sorted(path.name for path in folder.glob(f"{repository.revision}*"))
    if len(found) > 1:
        raise ValueError(f"{repository} matches {len(found)} commits in the cache: {', '.join(found)}; name one")
    return found[0] if found else repository.revision


def _reason(error: BaseException, repository: Repository, without_hub: str) -> str:
    """Describes an error and what to do about it; `without_hub` says what the hub was needed for."""
    from huggingface_hub import constants, errors

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__

    def is_due_to(kind: type[BaseException]) -> bool:
        return any(isinstance(link, kind) for link in chain)

    server = constants.ENDPOINT
    fetch = "run python -m models.fetch where there is internet"
    page = repository.repo if repository.kind == "model" else f"datasets/{repository.repo}"
    if is_due_to(errors.GatedRepoError):
        return f"is gated: ask for access at {server}/{page} and log in on this machine (hf auth login)"
    if is_due_to(errors.RepositoryNotFoundError):
        return (
            f"is not a local folder, and {server} has no such {repository.kind}, or it is private: "
            "correct the name, or log in on this machine (hf auth login)"
        )
    if is_due_to(errors.RevisionNotFoundError):
        return f"has no revision {repository.revision!r}: expected a branch, a tag or a commit of 40 digits"
    if is_due_to(errors.OfflineModeIsEnabled):
        return f"{without_hub}, and HF_HUB_OFFLINE is set; {fetch}"
    for link in chain:
        if isinstance(link, errors.HfHubHTTPError):
            return f"cannot be fetched: {server} answers {link.response.status_code}; try again later"
    if is_due_to(errors.HFValidationError):
        return f"is not a valid name on the hub: {_one_line(error)}"
    if isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is not None):
        return f"cannot be written to the cache {constants.HF_HUB_CACHE}: {_one_line(error)}"
    return f"{without_hub}, and {server} cannot be reached; {fetch}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
