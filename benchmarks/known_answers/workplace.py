"""Where does a calibration work? Its folder, its inputs, and the suite's commands run as a user runs them.

All models answer counting questions of the pocket world. Pairs come from `data_builders.build pocket_pairs`; prompts
are drawn here with the same pictures. Both depend only on the seed.
"""

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_builders.pocket.draw import count_colours, draw_scene, render
from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from models.pocket import COLOURS
from tracking.command import REPOSITORY_ROOT, command_module
from tracking.product import partial_directory

CONFIGS = REPOSITORY_ROOT / "configs" / "calibration"
SPLIT = "test"
LOG_FILE = "commands.log"
QUESTION = "How many {colour} objects are there ?"


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """The folder of one calibration and the size of its inputs."""

    directory: Path
    num_pairs: int
    num_prompts: int
    seed: int

    @property
    def pairs(self) -> Path:
        """The pair set."""
        return self.directory / "pairs" / "data"

    @property
    def prompts(self) -> Path:
        """The prompt set."""
        return self.directory / "prompts"

    @property
    def task(self) -> str:
        """The prompt set as a task of `eval.run`."""
        return f"{self.prompts}:{SPLIT}"

    def checkpoint(self, name: str) -> Path:
        """The folder of a model that the calibration builds."""
        return self.directory / "checkpoints" / name

    def run(self, command: str, *words: str | Path, config: str | None = None) -> None:
        """Runs a command of the suite in this process; what it prints goes to `commands.log`.

        Args:
            command: such as `analyze.swap`.
            words: its arguments.
            config: a file of `configs/calibration`, without its ending.

        Raises:
            RuntimeError: if the command fails, for example in a control.
        """
        given = [] if config is None else ["--config", str(CONFIGS / f"{config}.yaml")]
        arguments = [*given, *map(str, words)]
        with (self.directory / LOG_FILE).open("a", encoding="utf-8") as log:
            print(f"$ python -m {command} {' '.join(arguments)}", file=log, flush=True)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                command_module(command).main(arguments)

    def read(self) -> list[Prompt]:
        """Returns the prompts."""
        return read_prompts(self.prompts, SPLIT)


def share(holds: Sequence[bool]) -> float:
    """Returns the share of prompts for which something holds."""
    return sum(holds) / len(holds)


def prepare(work: Workplace) -> None:
    """Builds the pairs and the prompts, unless they are there, and proves the pairs from their pixels.

    Raises:
        RuntimeError: if a pair has a defect.
    """
    words = ("pocket_pairs", "--num-pairs", str(work.num_pairs), "--seed", str(work.seed))
    work.run("data_builders.build", *words, "--output-dir", work.pairs.parent)
    work.run("data_builders.validate", work.pairs)
    if not work.prompts.exists():
        with partial_directory(work.prompts) as partial:
            write_prompts(partial, SPLIT, draw_prompts(partial, work.num_prompts, work.seed))


def draw_prompts(directory: Path, num_prompts: int, seed: int) -> list[Prompt]:
    """Draws pictures into a folder and returns a counting question about each; the colours take turns."""
    (directory / "images").mkdir()
    rng = random.Random(seed)
    prompts = []
    for number in range(num_prompts):
        scene, colour = draw_scene(rng), COLOURS[number % len(COLOURS)]
        image = f"images/{number:04d}.png"
        render(scene).save(directory / image)
        prompts.append(
            Prompt(
                id=f"count-{number:04d}",
                ability="vision",
                question=QUESTION.format(colour=colour),
                answer=str(count_colours(scene)[colour]),
                answer_kind="number",
                images=(image,),
                meta={"colour": colour},
            )
        )
    return prompts
