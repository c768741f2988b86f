"""Does every instrument find what is known to be there? Runs the suite on models whose truth is set by hand.

    python -m benchmarks.known_answers --config configs/calibration/known_answers.yaml    (make calibrate)
    python -m benchmarks.known_answers --instruments swap skip --output-dir outputs/calibration
    python -m slurm.launch --config configs/calibration/study.yaml --local    (a job per instrument)

For each instrument models or weight changes are built whose truth follows from their construction (`instruments.py`).
The suite's own commands measure them, and every number is compared with the truth.

    answers.csv         instrument, what was planted, truth, estimate, interval, tolerance and verdict, a row per number
    calibration.html    planted against found, one page
    figures/            the same, one figure per instrument
    commands.log        the commands that were run, with what they printed
    checkpoints/, …     the models that were built, and the results of each command

A wrong verdict fails the command (exit status 1) after everything is written. So does a control of an instrument. A
killed command continues: what a command has finished is kept.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from analyze.probes.figures import save_figures
from analyze.probes.inputs import check_choices
from benchmarks.known_answers import necessity
from benchmarks.known_answers.answers import WRONG, Answer, answer_table, describe, read_answers
from benchmarks.known_answers.instruments import INSTRUMENTS
from benchmarks.known_answers.jobs import COMMAND, plan_as_json
from benchmarks.known_answers.page import headline, render
from benchmarks.known_answers.workplace import CONFIGS, Workplace, prepare
from tracking.command import check_all, check_least, parse_arguments
from tracking.product import write_text
from tracking.progress import say
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import format_columns, read_table, write_table

ANSWERS_FILE, PAGE_FILE = "answers.csv", "calibration.html"
MOST_NAMED = 5
"""Wrong answers in the error's message."""


@dataclass(frozen=True, kw_only=True)
class CalibrationArguments:
    """The output directory, the instruments, and the size of their inputs."""

    output_dir: str = field(metadata={"help": "where models, results, tables and the page are written"})
    instruments: list[str] = field(
        default_factory=lambda: list(INSTRUMENTS),
        metadata={"help": f"instruments to calibrate, any of {', '.join(INSTRUMENTS)}"},
    )
    num_pairs: int = field(default=40, metadata={"help": "pairs of pictures for the swap"})
    num_prompts: int = field(default=120, metadata={"help": "prompts for skip, attention and splices"})
    seed: int = field(default=0, metadata={"help": "seed of pictures, questions and planted weights"})
    judged: bool = field(
        default=True,
        metadata={"help": "exit with status 1 if a verdict is wrong; false if a joining command judges"},
    )
    joined: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=DIR, finished calibrations of one instrument each, whose answers make one page"},
    )
    plan_json: bool = field(default=False, metadata={"help": "print the jobs as JSON and exit, for slurm.launch"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            partial(check_choices, "instrument", self.instruments, list(INSTRUMENTS)),
            partial(check_least, self, num_pairs=1, num_prompts=1, seed=0),
            self._check_joined,
        )

    def _check_joined(self) -> None:
        for entry in self.joined:
            name, equals, folder = entry.partition("=")
            if not (equals and folder and name in self.instruments):
                raise ValueError(f"joined {entry!r}; expected NAME=DIR, such as swap=outputs/calibration_study/swap")

    @property
    def chosen(self) -> list[str]:
        """The instruments, in the order of the page."""
        return [name for name in INSTRUMENTS if name in self.instruments]

    @property
    def sizes(self) -> dict[str, int]:
        """The size of the inputs."""
        return {name: getattr(self, name) for name in ("num_pairs", "num_prompts", "seed")}


def calibrate(arguments: CalibrationArguments) -> Path:
    """Asks every instrument, writes table, figures and page, and returns the output directory.

    Raises:
        RuntimeError: if a verdict is wrong, after everything is written, or if a control of an instrument fails.
    """
    directory = Path(arguments.output_dir)
    chosen = {name: INSTRUMENTS[name] for name in arguments.chosen}
    sizes = arguments.sizes
    paths = {name: CONFIGS / f"{name}.yaml" for one in chosen.values() for name in one.configs}
    configs = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    settings: dict[str, Any] = {"instruments": list(chosen), **sizes, "configs": configs}
    with open_run(
        directory,
        command=COMMAND,
        settings=settings,
        overwrite=arguments.overwrite,
        found=[] if arguments.overwrite else [necessity.NAME],
    ) as run:
        if run.finished:
            return directory
        from transformers.utils import logging

        logging.disable_progress_bar()  # of every checkpoint that is written or loaded
        work = Workplace(directory=directory, **sizes)
        prepare(work)
        answers: list[Answer] = []
        for name, instrument in chosen.items():
            found = instrument.measure(work)
            say(f"{name}: {sum(answer.verdict != WRONG for answer in found)} of {len(found)} planted truths found")
            answers += found
        write_results(directory, answers)
        if arguments.judged:
            check_verdicts(answers, directory)
    return directory


def join(arguments: CalibrationArguments) -> Path:
    """Writes table, figures and page from the answers of finished calibrations, and returns the output directory.

    Raises:
        RuntimeError: if a verdict is wrong or an instrument has no answers, after everything is written.
    """
    directory = Path(arguments.output_dir)
    folders = dict(entry.split("=", 1) for entry in arguments.joined)
    names = [name for name in arguments.chosen if name in folders]
    missing = [name for name in arguments.chosen if name not in folders]
    settings = {"instruments": arguments.chosen, "joined": names}
    with open_run(directory, command=COMMAND, settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished:
            answers = [answer for name in names for answer in read_answers(Path(folders[name]) / ANSWERS_FILE)]
            write_results(directory, answers, missing)
            check_verdicts(answers, directory)
            if missing:
                raise RuntimeError(f"no answers of {', '.join(missing)}; the log of each job has the reason")
    return directory


def write_results(directory: Path, answers: Sequence[Answer], missing: Sequence[str] = ()) -> None:
    """Writes the table, a figure per instrument, and the page."""
    table = answer_table(answers)
    write_table(directory / ANSWERS_FILE, table)
    names = list(dict.fromkeys(answer.instrument for answer in answers))
    instruments = {name: INSTRUMENTS[name] for name in names}
    figures = directory / "figures"
    save_figures(
        figures,
        {name: partial(one.draw, table[table["instrument"] == name]) for name, one in instruments.items()},
    )
    write_text(directory / PAGE_FILE, render(table, instruments, figures, missing))


def check_verdicts(answers: Sequence[Answer], directory: Path) -> None:
    """Fails if a verdict is wrong.

    Raises:
        RuntimeError: naming the first wrong answers.
    """
    wrong = [describe(answer) for answer in answers if answer.verdict == WRONG]
    if wrong:
        more = f"; {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise RuntimeError(
            f"{len(wrong)} of {len(answers)} planted truths are not found: {'; '.join(wrong[:MOST_NAMED])}{more}; see "
            f"{directory / PAGE_FILE}"
        )


def summary(directory: Path) -> list[str]:
    """Returns a line per instrument of `answers.csv`, and how many truths were found in all."""
    table = read_table(directory / ANSWERS_FILE)
    rows = [["instrument", "planted", "found"]]
    for name, own in table.groupby("instrument", sort=False):
        rows.append([str(name), str(len(own)), str(int((own["verdict"] != WRONG).sum()))])
    return [*format_columns(rows, right=(1, 2)), headline(table)]


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, CalibrationArguments, description=__doc__)
    if arguments.plan_json:
        print(json.dumps(plan_as_json(Path(arguments.output_dir), arguments.chosen, arguments.sizes)))
        return
    directory = join(arguments) if arguments.joined else calibrate(arguments)
    print(*summary(directory), f"page: {directory / PAGE_FILE}", sep="\n")
