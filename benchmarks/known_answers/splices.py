"""Do splices find the block that carries a gain? Two donors whose gain lies wholly in one block, for each block.

Both donors read the picture in the first layer. The first, `in`, answers questions about red and green objects and says
0 to all others. The second, `rl`, also answers those about blue objects, by the first layer of one block, and those
about yellow ones, by the block's second layer. All layers of the donors have different weights; outside this block the
differences have no effect. So a splice gains what `rl` gains if it takes this block from `rl`, and nothing otherwise.
"""

from pathlib import Path

from benchmarks.known_answers.answers import BLOCK_LAYERS, TOLERANCE, Answer
from benchmarks.known_answers.reader import Wiring, write_reader
from benchmarks.known_answers.workplace import Workplace, share
from tracking.tables import read_table

NAME = "splices"
BEFORE = {"red": 0, "green": 0}
GAINED = ("blue", "yellow")
"""Colours whose counts only `rl` answers: by the first and by the second layer of the block."""


def measure(work: Workplace) -> list[Answer]:
    """Builds the donors and their splices, evaluates and compares them, and returns the gain of every pattern."""
    donor = work.checkpoint("splices-in")
    write_reader(donor, Wiring(reading=0, answering=BEFORE))
    before = work.directory / NAME / "in"
    evaluate(work, donor, before)
    answers = []
    for block, layers in BLOCK_LAYERS.items():
        directory = work.directory / NAME / block
        other = work.checkpoint(f"splices-{block}")
        write_reader(other, Wiring(reading=0, answering=BEFORE | dict(zip(GAINED, layers, strict=True)), seed=1))
        splices = directory / "splices"
        words = ("--patterns", "paper", "--rest", "in", "--output-dir", splices)
        work.run("merge.all", "--donor", f"in={donor}", f"rl={other}", *words)
        evaluations = {"in": before, "rl": directory / "eval" / "rl"}
        evaluate(work, other, evaluations["rl"])
        for splice in sorted(path for path in splices.iterdir() if (path / "checkpoint").is_dir()):
            evaluations[splice.name] = directory / "eval" / splice.name
            evaluate(work, splice / "checkpoint", evaluations[splice.name])
        named = [f"{name}={path}" for name, path in evaluations.items()]
        output_dir = directory / "comparison"
        words = ("--baseline", "in", "--reference", "rl", "--output-dir", output_dir)
        work.run("eval.compare", *named, *words)
        answers += read_gains(output_dir, block, planted_gain(work))
    return answers


def evaluate(work: Workplace, model: Path, output_dir: Path) -> None:
    """Evaluates one model on the prompts."""
    work.run("eval.run", "--model", model, "--tasks", work.task, "--output-dir", output_dir, config="eval")


def planted_gain(work: Workplace) -> float:
    """Returns the share of prompts that `in` answers with 0, wrongly, and `rl` correctly."""
    return share([(prompt.meta or {})["colour"] in GAINED and prompt.answer != "0" for prompt in work.read()])


def carries(pattern: str, block: str) -> bool:
    """True if a pattern such as `in-rl-rl`, or a donor, has this block from `rl`."""
    owners = pattern.split("-")
    return owners[list(BLOCK_LAYERS).index(block) if len(owners) > 1 else 0] == "rl"


def read_gains(output_dir: Path, block: str, gain: float) -> list[Answer]:
    """Returns the pooled differences from `in` in `comparison.csv`, and the shares of the gain that are kept."""
    table = read_table(output_dir / "comparison.csv")
    pooled = table[(table["metric"] == "accuracy") & (table["against"] == "in") & (table["seed"] == "pooled")]
    answers = []
    for row in pooled.to_dict("records"):
        pattern = str(row["arm"])
        kept = float(carries(pattern, block))
        answers.append(
            Answer(
                instrument=NAME,
                case=f"gain in {block}",
                quantity="gain in accuracy",
                place=pattern,
                truth=kept * gain,
                estimate=row["difference"],
                low=row["low"],
                high=row["high"],
                tolerance=TOLERANCE,
            )
        )
        if pattern != "rl":
            answers.append(
                Answer(
                    instrument=NAME,
                    case=f"gain in {block}",
                    quantity="gain kept",
                    place=pattern,
                    truth=kept,
                    estimate=row["gain_kept"],
                    low=row["gain_kept_low"],
                    high=row["gain_kept_high"],
                    tolerance=TOLERANCE,
                )
            )
    return answers
