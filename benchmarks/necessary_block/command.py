"""Would the suite find a necessary block? Necessity studies in which one block is necessary by construction.

    python -m benchmarks.necessary_block
    python -m benchmarks.necessary_block --blocks mid --output-dir outputs/necessary_block

For each of early, mid and late a start is built in which only this block can learn to see the picture (`start.py`).
`train.necessity` then trains every arm with `configs/calibration/necessity_BLOCK.yaml`, and what it reports is compared
with the truth: the arm that freezes the block keeps none of the gain, every other arm all of it. One arm is also
trained with ten seeds, whose halves are compared with each other: they do not differ (`answers.py`).

    answers.csv                     truth, estimate, interval and verdict, a row per number
    start/, early/, mid/, …, seeds/ the starts and the studies, each with its `report.html`

What is finished is not run again, also where `train.necessity` was started by hand with these configurations.
Exit status 1: a verdict is wrong, or a frozen block was trained.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.known_answers.answers import WRONG, Answer, answer_table
from benchmarks.necessary_block.answers import compare_halves, describe, read_answers
from benchmarks.necessary_block.jobs import plan_as_json
from benchmarks.necessary_block.studies import SEEDS, Workplace, build_starts, run_study, start_configs, study_configs
from models.blocks import BLOCKS
from tracking.command import parse_arguments, read_yaml
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import write_table

COMMAND = "benchmarks.necessary_block"
ANSWERS_FILE = "answers.csv"


@dataclass(frozen=True, kw_only=True)
class ControlArguments:
    """Which blocks, and where."""

    output_dir: str = field(default="outputs/necessary_block", metadata={"help": "folder of starts and studies"})
    blocks: list[str] = field(
        default_factory=lambda: list(BLOCKS),
        metadata={"help": "blocks that are made necessary, each in a study of its own: early, mid, late"},
    )
    seed: int = field(default=0, metadata={"help": "seed of the prompts"})
    build_only: bool = field(
        default=False, metadata={"help": "build the starts and stop; run the studies with train.necessity"}
    )
    plan_json: bool = field(default=False, metadata={"help": "print the jobs as JSON and exit, for slurm.launch"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        unknown = [block for block in self.blocks if block not in BLOCKS]
        if unknown or not self.blocks or len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"blocks are {self.blocks}; expected some of {', '.join(BLOCKS)}, each once")


def write_starts(work: Workplace, *, overwrite: bool = False) -> None:
    """Builds the starts in a run directory of their own."""
    settings = {"seed": work.seed, "files": {str(path): read_yaml(path) for path in start_configs()}}
    with open_run(work.start, command=f"{COMMAND}.start", settings=settings, overwrite=overwrite) as run:
        if not run.finished:
            build_starts(work)


def summarise(answers: Sequence[Answer]) -> str:
    """Says how many numbers were found, and which were not.

    Raises:
        RuntimeError: if a verdict is wrong.
    """
    wrong = [answer for answer in answers if answer.verdict == WRONG]
    if wrong:
        raise RuntimeError(
            f"{len(wrong)} of {len(answers)} known answers were not found:\n" + "\n".join(map(describe, wrong))
        )
    return f"all {len(answers)} known answers were found"


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ControlArguments, description=__doc__)
    work = Workplace(directory=Path(arguments.output_dir), seed=arguments.seed)
    blocks = [block for block in BLOCKS if block in arguments.blocks]
    if arguments.plan_json:
        print(json.dumps(plan_as_json(COMMAND, work, blocks)))
        return
    write_starts(work, overwrite=arguments.overwrite)
    if arguments.build_only:
        print(f"starts: {work.start}")
        return
    files = [*start_configs(), *study_configs(blocks)]
    settings = {
        "blocks": blocks, "seed": work.seed, "files": {str(path): read_yaml(path) for path in files},
    }  # fmt: skip
    with open_run(
        work.directory,
        command=COMMAND,
        settings=settings,
        overwrite=arguments.overwrite,
        found=[work.start.name, *BLOCKS, SEEDS],
    ) as run:
        if not run.finished:
            for study in [*blocks, SEEDS]:
                run_study(work, study, overwrite=arguments.overwrite)
            answers = [answer for block in blocks for answer in read_answers(work, block)]
            answers.append(compare_halves(work))
            write_table(work.directory / ANSWERS_FILE, answer_table(answers))
            print(*map(describe, answers), sep="\n")
            print(summarise(answers))
    print(f"answers: {work.directory / ANSWERS_FILE}")
