"""How is a set of pairs read and written? `pairs.jsonl`, a pair a line, or the published layout.

The set released with the paper (a folder for each task) is read from its `data.jsonl` (`published.py`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_builders.pairs.pair import PAIRS_FILE, Pair, from_row, to_line
from data_builders.pairs.published import PUBLISHED_FILE, from_published_row


def read_pairs(directory: Path) -> list[Pair]:
    """Reads a set in our own layout or in the published one; a malformed line is an error that names it."""
    return list(iter_pairs(directory))


def check_pairs(directory: str) -> None:
    """Refuses a folder that holds no set of pairs, without reading one that is there.

    Raises:
        ValueError: as `read_pairs` does.
    """
    pairs_file(Path(directory), (PAIRS_FILE, PUBLISHED_FILE))


def iter_pairs(directory: Path) -> Iterator[Pair]:
    """Yields the pairs of a set line by line, as `read_pairs`."""
    readers: dict[str, Callable[[dict[str, Any]], Pair]] = {PAIRS_FILE: from_row, PUBLISHED_FILE: from_published_row}
    path = pairs_file(directory, tuple(readers))
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError(f"is a {type(row).__name__}; expected one pair, a JSON object, a line")
                pair = readers[path.name](row)
            except json.JSONDecodeError as error:
                what = f"not a JSON object ({error.msg})"
                raise ValueError(f"{path}:{number}: {what}; expected one pair a line") from error
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            yield pair


def write_pairs(directory: Path, pairs: Iterable[Pair]) -> None:
    """Writes `pairs.jsonl`, a line a pair."""
    (directory / PAIRS_FILE).write_text("".join(map(to_line, pairs)), encoding="utf-8")


def pairs_fingerprint(directory: Path) -> str:
    """Returns a sha256 that changes with the pairs and their images, which the manifest lists where there is one."""
    digest = hashlib.sha256(pairs_file(directory, (PAIRS_FILE, PUBLISHED_FILE)).read_bytes())
    manifest = directory / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
        return digest.hexdigest()
    for image in sorted({image for pair in read_pairs(directory) for image in pair.images}):
        path = directory / image
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"missing")
    return digest.hexdigest()


def pairs_file(directory: Path, names: tuple[str, ...]) -> Path:
    """Returns the first of the named files that a folder holds."""
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder; expected a set of pairs (build one with data_builders.build)")
    for name in names:
        path = directory / name
        if path.is_file():
            if not path.stat().st_size:
                raise ValueError(f"{path} is empty; expected at least one pair")
            return path
    inside = sorted(path.parent.name for name in names for path in directory.glob(f"*/{name}"))
    way_out = f"; its folders {', '.join(inside)} do" if inside else ""
    raise ValueError(f"{directory} holds neither {' nor '.join(names)}{way_out}")
