"""What is a prompt set? A folder of `SPLIT.jsonl` files with their images, used for training and evaluation.

Each line is one `Prompt`. The builders write such folders; you can write them for your own data:

    {"id": "…", "ability": "vision", "question": "…", "answer": "7", "answer_kind": "number", "images": ["a.png"]}

`response` (the teacher's reply) is needed only for supervised training.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ABILITIES = ("vision", "vision-to-reasoning", "reasoning")
"""The paper's three abilities (Table 1), in its order."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question with its images and a verifiable gold answer."""

    id: str
    ability: str
    question: str
    answer: str
    answer_kind: str
    """How the answer is graded: a kind of `eval.grading`."""
    images: tuple[str, ...] = ()
    """Paths relative to the prompt set's folder."""
    choices: tuple[str, ...] = ()
    """The options' texts, in the order of their letters."""
    precision: int | None = None
    """Decimal places to which a number is compared, if the data set states them."""
    response: str | None = None
    """The teacher's full reply, for supervised training."""
    meta: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("id", "ability", "question", "answer", "answer_kind"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"prompt {self.id!r}: {name} is {value!r}; expected a non-empty string")


def read_prompts(directory: Path, split: str) -> list[Prompt]:
    """Reads one split; an empty or malformed one is an error that names the file and line."""
    path = directory / f"{split}.jsonl"
    if not path.is_file():
        raise ValueError(_explain_missing(directory, split))
    known = {field.name for field in fields(Prompt)}
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; expected at least one prompt")
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_bytes().decode().removesuffix("\n").split("\n"), start=1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not a JSON object ({error.msg}); expected one prompt per line") from error
        if not isinstance(row, dict) or set(row) - known:
            extra = sorted(set(row) - known) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where}: unexpected {extra}; a prompt has the keys {', '.join(sorted(known))}")
        try:
            prompt = Prompt(**{**row, **{name: tuple(row.get(name, ())) for name in ("images", "choices")}})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        if prompt.id in seen:
            raise ValueError(f"{where}: id {prompt.id!r} appears twice; ids must be unique within a split")
        seen.add(prompt.id)
        prompts.append(prompt)
    missing = [image for prompt in prompts for image in prompt.images if not (directory / image).is_file()]
    if missing:
        raise ValueError(f"{path}: {len(missing)} images are missing, the first is {directory / missing[0]}")
    return prompts


def check_folder(directory: str) -> None:
    """Refuses a prompt set that is not there, without reading one that is.

    Raises:
        ValueError: as `read_prompts` does.
    """
    if not Path(directory).is_dir():
        read_prompts(Path(directory), "")


def check_split(directory: Path, split: str) -> None:
    """Refuses a split that is not there, without reading one that is.

    Raises:
        ValueError: as `read_prompts` does.
    """
    if not (directory / f"{split}.jsonl").is_file():
        read_prompts(directory, split)


def splits_of(directory: Path) -> list[str]:
    """Returns the splits that a folder holds; of the output directory of a build or another command, none."""
    if (directory / "run.json").is_file():
        return []
    return sorted(file.stem for file in directory.glob("*.jsonl"))


def find_split(directory: Path, split: str | None = None) -> Path | None:
    """Returns the prompt set that was meant where a folder is one level off: in its `data/`, in it, or above it.

    Args:
        directory: what was named.
        split: the split that must be there; any where it is None.
    """
    inside = sorted(place for place in directory.iterdir() if place.is_dir()) if directory.is_dir() else []
    for place in (directory, directory / "data", *inside, directory.parent):
        if splits_of(place) and split in (None, *splits_of(place)):
            return place
    return None


def _explain_missing(directory: Path, split: str) -> str:
    """Says why a split is not there, and which folder was meant."""
    meant = find_split(directory, split)
    if directory.is_file():
        way_out = f"; expected its folder {directory.parent}, and {directory.stem} as the split"
        return f"{directory} is a file{way_out if directory.suffix == '.jsonl' else ''}"
    if meant is not None:
        return f"{directory / f'{split}.jsonl'} does not exist; the prompt set is {meant}, one level off: name that"
    if not directory.is_dir():
        return f"{directory} is not a folder; expected a prompt set (build one with data_builders.build)"
    own = find_split(directory)
    present = f"{own} has the splits {', '.join(splits_of(own))}" if own else f"{directory} holds no prompt set"
    return f"{directory / f'{split}.jsonl'} does not exist; {present}"


def prompts_fingerprint(directory: Path, split: str) -> str:
    """Returns a sha256 of a split's prompts and, if a manifest lists them, of its images."""
    digest = hashlib.sha256((directory / f"{split}.jsonl").read_bytes())
    manifest = directory / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
    return digest.hexdigest()


def write_prompts(directory: Path, split: str, prompts: Iterable[Prompt]) -> None:
    """Writes one split, one line per prompt, without empty fields; the prompts may be generated on the way."""
    with (directory / f"{split}.jsonl").open("w", encoding="utf-8") as file:
        for prompt in prompts:
            row = {name: value for name, value in asdict(prompt).items() if value not in (None, ())}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
