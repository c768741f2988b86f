"""Would a layer sweep find the one layer that matters? A sweep in which one layer is sufficient and necessary.

    python -m benchmarks.necessary_layer

The start is built as in `benchmarks.necessary_block`, with one layer instead of a block: only decoder layer 3 can learn
to see the picture (`necessary_block/start.py`). `train.necessity` trains every layer alone and freezes every layer on
its own (`configs/calibration/layers.yaml`), and `analyze.layers` reads the study. Truth: layer 3 alone gives the whole
gain and each other layer nothing; without layer 3 all of it is lost, and without any other layer nothing.

    answers.csv         truth, estimate, interval and verdict, a row per arm
    start/, study/      the start, and the sweep with its `report.html`
    layers/             the page of the sweep, `layers.html`

What is finished is not run again. Exit status 1: a verdict is wrong, or a frozen layer was trained.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.layers.plan import SUFFICIENCY
from analyze.report.kept import MOST
from benchmarks.known_answers.answers import Answer, answer_table
from benchmarks.necessary_block.answers import KEPT, describe
from benchmarks.necessary_block.command import ANSWERS_FILE, summarise
from benchmarks.necessary_block.studies import (
    CONFIGS,
    PHASES,
    STAGES,
    Workplace,
    build_placed,
    build_untrained,
    necessity_words,
)
from tracking.command import REPOSITORY_ROOT, parse_arguments, read_yaml
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "benchmarks.necessary_layer"
PLANTED = 3
"""The decoder layer, of six."""
PLACE = "layer"
"""Name of the start with the layer in its place."""
CONFIG = CONFIGS / "layers.yaml"
STAGE_CONFIGS = [STAGES / f"{name}.yaml" for name in ("init", *PHASES)]
FOUND = ("start", "study", "layers")


@dataclass(frozen=True, kw_only=True)
class LayerControlArguments:
    """Where the sweep is written."""

    output_dir: str = field(default="outputs/necessary_layer", metadata={"help": "folder of the start and the sweep"})
    seed: int = field(default=0, metadata={"help": "seed of the prompts"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def run_sweep(work: Workplace) -> Path:
    """Runs the study and reads it; returns the folder of the sweep's tables."""
    from analyze.layers.command import main as read_layers
    from train.necessity import main as run_necessity

    run_necessity(necessity_words(work, REPOSITORY_ROOT / CONFIG, work.study("study"), PLACE))
    read_layers([str(work.study("study")), "--output-dir", str(work.study("layers"))])
    return work.study("layers")


def judge_layers(layers: "pd.DataFrame") -> list[Answer]:
    """Compares the share of each arm, of the gain kept or lost, with the truth: 1 for the planted layer, 0 for others.

    The whole interval decides, as in `benchmarks.necessary_block`: a share of 1 must be above `KEPT`, one of 0 below
    `MOST`.

    Args:
        layers: `layers.csv` of `analyze.layers`.
    """
    answers = []
    for row in layers.to_dict("records"):
        truth = float(row["first"] == PLANTED)
        answers.append(
            Answer(
                instrument="layers",
                case=f"layer {PLANTED} planted",
                quantity="gain kept" if row["direction"] == SUFFICIENCY else "gain lost",
                place=str(row["arm"]),
                truth=truth,
                estimate=row["share"],
                low=row["share_low"],
                high=row["share_high"],
                is_right=row["share_low"] > KEPT if truth else row["share_high"] < MOST,
            )
        )
    return answers


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, LayerControlArguments, description=__doc__)
    work = Workplace(directory=Path(arguments.output_dir), seed=arguments.seed)
    files = {str(path): read_yaml(path) for path in [CONFIG, *STAGE_CONFIGS]}
    settings = {"seed": work.seed, "planted": PLANTED, "files": files}
    with open_run(
        work.directory, command=COMMAND, settings=settings, overwrite=arguments.overwrite, found=FOUND
    ) as run:
        if not run.finished:
            build_placed(work, build_untrained(work), {PLACE: [PLANTED]})
            answers = judge_layers(read_table(run_sweep(work) / "layers.csv"))
            write_table(work.directory / ANSWERS_FILE, answer_table(answers))
            print(*map(describe, answers), sep="\n")
            print(summarise(answers))
    print(f"answers: {work.directory / ANSWERS_FILE}")
