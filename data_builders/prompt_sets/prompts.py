"""What is a prompt set? A folder of `SPLIT.jsonl` files with their images: what is trained on and what is scored.

Each line is one `Prompt`. The pocket world writes such folders; so can anyone with data of their own:

    {"id": "…", "ability": "vision", "question": "…", "answer": "7", "answer_kind": "number", "images": ["a.png"]}

`response` (the teacher's reply) is needed only where a split is used for supervised training.
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
    """One question with its images and a gold answer that a rule can verify."""

    id: str
    ability: str
    question: str
    answer: str
    answer_kind: str
    """How the answer is graded: a kind of `eval.grading`."""
    images: tuple[str, ...] = ()
    """Paths relative to the prompt set's folder."""
    choices: tuple[str, ...] = ()
    """The texts of the options, in the order of their letters."""
    precision: int | None = None
    """Decimal places to which a number counts, where its data set says so."""
    response: str | None = None
    """The teacher's whole reply, for supervised training."""
    meta: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("id", "ability", "question", "answer", "answer_kind"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"prompt {self.id!r}: {name} is {value!r}; expected a non-empty string")


def read_prompts(directory: Path, split: str) -> list[Prompt]:
    """Reads one split; an empty or malformed one is an error that names the file and line."""
    path = directory / f"{split}.jsonl"
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder; expected a prompt set (build one with data_builders.build)")
    if not path.is_file():
        present = sorted(file.stem for file in directory.glob("*.jsonl"))
        raise ValueError(f"{path} does not exist; {directory} has the splits {', '.join(present) or '(none)'}")
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
            raise ValueError(f"{where}: not a JSON object ({error.msg}); expected one prompt a line") from error
        if not isinstance(row, dict) or set(row) - known:
            extra = sorted(set(row) - known) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where}: unexpected {extra}; a prompt has the keys {', '.join(sorted(known))}")
        try:
            prompt = Prompt(**{**row, **{name: tuple(row.get(name, ())) for name in ("images", "choices")}})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        if prompt.id in seen:
            raise ValueError(f"{where}: id {prompt.id!r} stands twice; ids must be unique within a split")
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


def prompts_fingerprint(directory: Path, split: str) -> str:
    """Returns a sha256 that changes with the prompts of a split, and with the images where a manifest lists them."""
    digest = hashlib.sha256((directory / f"{split}.jsonl").read_bytes())
    manifest = directory / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
    return digest.hexdigest()


def write_prompts(directory: Path, split: str, prompts: Iterable[Prompt]) -> None:
    """Writes one split, a line a prompt, without the fields a prompt leaves empty."""
    lines = []
    for prompt in prompts:
        row = {name: value for name, value in asdict(prompt).items() if value not in (None, ())}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
