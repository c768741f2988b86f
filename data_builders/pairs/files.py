"""How is a pair set read and written? `pairs.jsonl` with one pair per line, or the published layout.

The set released with the paper (a folder for each task) is read from its `data.jsonl` (`published.py`). Commands that
take a set take its own folder and the output directory of the build that wrote it, whose `data/` is the set.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_builders.pairs.pair import PAIRS_FILE, Pair, from_row, to_line
from data_builders.pairs.published import PUBLISHED_FILE, from_published_row

DATA_DIR = "data"
"""The folder of the set in the output directory of its build."""


def read_pairs(directory: Path) -> list[Pair]:
    """Reads a set in this suite's layout or the published one; a malformed line is an error that names it."""
    return list(iter_pairs(directory))


def check_pairs(directory: str) -> None:
    """Rejects a folder that holds no set of pairs, without reading those that it holds.

    Raises:
        ValueError: as `find_sets` does.
    """
    find_sets(Path(directory))


def iter_pairs(directory: Path) -> Iterator[Pair]:
    """Yields the pairs of a set line by line, like `read_pairs`."""
    readers: dict[str, Callable[[dict[str, Any]], Pair]] = {PAIRS_FILE: from_row, PUBLISHED_FILE: from_published_row}
    path = pairs_file(directory, tuple(readers))
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError(f"is a {type(row).__name__}; expected one pair per line, a JSON object")
                pair = readers[path.name](row)
            except json.JSONDecodeError as error:
                what = f"not a JSON object ({error.msg})"
                raise ValueError(f"{path}:{number}: {what}; expected one pair per line") from error
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            yield pair


def write_pairs(directory: Path, pairs: Iterable[Pair]) -> None:
    """Writes `pairs.jsonl`, one line per pair."""
    (directory / PAIRS_FILE).write_text("".join(map(to_line, pairs)), encoding="utf-8")


def pairs_fingerprint(directory: Path) -> str:
    """Returns a sha256 of the pairs and, if there is a manifest, of their images."""
    digest = hashlib.sha256(pairs_file(directory, (PAIRS_FILE, PUBLISHED_FILE)).read_bytes())
    manifest = directory / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
        return digest.hexdigest()
    for image in sorted({image for pair in read_pairs(directory) for image in pair.images}):
        path = directory / image
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"missing")
    return digest.hexdigest()


def find_sets(directory: Path) -> list[Path]:
    """Returns the sets in a folder: itself, its `data/`, or those of its subfolders.

    Raises:
        ValueError: where there is none.
    """
    names = (PAIRS_FILE, PUBLISHED_FILE)

    def sets_at(place: Path) -> list[Path]:
        return [folder for folder in (place, place / DATA_DIR) if any((folder / name).is_file() for name in names)][:1]

    above = sets_at(directory.parent)
    meant = f"; did you mean {above[0]}?" if above else ""
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder; expected a set of pairs, or a folder of sets{meant}")
    found = sets_at(directory) or [inner for place in sorted(directory.iterdir()) for inner in sets_at(place)]
    if not found:
        raise ValueError(
            f"{directory} holds no set of pairs: no {' or '.join(names)} in it, in its folders, or in their {DATA_DIR}/"
            f"{meant}"
        )
    return found


def find_set(directory: Path) -> Path:
    """Returns the one set in a folder, as `find_sets`.

    Raises:
        ValueError: where there is none, or several.
    """
    found = find_sets(directory)
    if len(found) > 1:
        raise ValueError(f"{directory} holds {len(found)} sets of pairs; name one of {', '.join(map(str, found))}")
    return found[0]


def pairs_file(directory: Path, names: tuple[str, ...]) -> Path:
    """Returns the first of the named files that exists in a folder."""
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
