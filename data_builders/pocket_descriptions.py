"""What do the pictures of a pocket split show, in words? One description per picture, for `eval.run --descriptions`.

    python -m data_builders.pocket_descriptions --data outputs/pocket/data/data --output-dir outputs/pocket/descriptions

The scenes are drawn again from the seed in the set's manifest, and must match the stored prompts and images. A
description gives the number of objects of each colour, in the same words as the text problems: `There are 3 red and 2
blue objects .` It does not depend on the question.

D/descriptions.jsonl    one line per image: id, description
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from data_builders.pocket.draw import Scene, count_colours, render
from data_builders.pocket.world import SPLIT_ABILITIES, draw_split
from data_builders.prompt_sets.prompts import Prompt, prompts_fingerprint, read_prompts
from tracking.command import parse_arguments, run_command
from tracking.product import write_text
from tracking.run import OVERWRITE_ARGUMENT, open_run

DESCRIPTIONS_FILE = "descriptions.jsonl"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class PocketDescriptionArguments:
    """The pictures to describe."""

    data: str = field(metadata={"help": "folder of a pocket prompt set, with its manifest.json"})
    output_dir: str = field(metadata={"help": "where descriptions.jsonl is written"})
    split: str = field(
        default="test", metadata={"help": f"split of the prompt set: one of {', '.join(SPLIT_ABILITIES)}"}
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        if self.split not in SPLIT_ABILITIES:
            raise ValueError(f"split {self.split!r} is unknown; expected one of {', '.join(SPLIT_ABILITIES)}")


def describe(scene: Scene) -> str:
    """Returns the number of objects of each colour, in words."""
    counted = [f"{num} {colour}" for colour, num in count_colours(scene).items() if num]
    return f"There are {' and '.join(counted)} objects ."


def describe_split(directory: Path, split: str) -> Iterator[tuple[Prompt, str]]:
    """Yields every prompt of a split that has an image, with the description.

    Raises:
        ValueError: if the folder is not a pocket set, or a scene does not match the stored one.
    """
    prompts = read_prompts(directory, split)
    path = directory / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if manifest.get("task") != "pocket":
        raise ValueError(f"{directory} has no {MANIFEST} of the pocket world, which says from which seed it was drawn")
    for prompt, sample in zip(prompts, draw_split(split, len(prompts), manifest["arguments"]["seed"]), strict=True):
        same = (prompt.id, prompt.question, prompt.answer) == (sample.id, sample.question.text, sample.question.answer)
        if not same or (sample.scene is not None and not _shows(directory / prompt.images[0], sample.scene)):
            raise ValueError(
                f"{directory}: prompt {prompt.id!r} is not the one that its seed gives; build the set again"
            )
        if sample.scene is not None:
            yield prompt, describe(sample.scene)


def _shows(path: Path, scene: Scene) -> bool:
    with Image.open(path) as image:
        return image.tobytes() == render(scene).tobytes()


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, PocketDescriptionArguments, description=__doc__)
    directory, output_dir = Path(arguments.data), Path(arguments.output_dir)
    settings = {"split": arguments.split, "prompts": prompts_fingerprint(directory, arguments.split)}
    with open_run(
        output_dir, command="data_builders.pocket_descriptions", settings=settings, overwrite=arguments.overwrite
    ) as run:
        if not run.finished:
            rows = [
                {"id": prompt.id, "description": text} for prompt, text in describe_split(directory, arguments.split)
            ]
            write_text(output_dir / DESCRIPTIONS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"descriptions: {output_dir / DESCRIPTIONS_FILE}")


if __name__ == "__main__":
    run_command(main)
