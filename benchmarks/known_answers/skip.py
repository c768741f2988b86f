"""Does the skip find the parts that an answer needs? A model in which two parts are needed, and all others do nothing.

The model reads the picture with the attention of one layer and works the answer out with the MLP of another
(`reader.py`). Without either it answers 0 to every question; without any other part nothing changes.
"""

from benchmarks.known_answers.answers import BLOCK_LAYERS, TOLERANCE, Answer
from benchmarks.known_answers.reader import SHAPE, Wiring, write_reader
from benchmarks.known_answers.workplace import Workplace, share
from models.pocket import COLOURS
from tracking.tables import read_table

NAME = "skip"
READING, ANSWERING = 1, 4
NEEDED = ((READING, "attn"), (ANSWERING, "mlp"))
CASE = f"picture read by the attention of layer {READING}, answer worked out by the MLP of layer {ANSWERING}"


def measure(work: Workplace) -> list[Answer]:
    """Builds the model, skips every part of it, and returns the drop of each configuration."""
    model, output_dir = work.checkpoint("two-parts"), work.directory / NAME
    write_reader(model, Wiring(reading=READING, answering=dict.fromkeys(COLOURS, ANSWERING)))
    work.run("analyze.skip", "--model", model, "--tasks", work.task, "--output-dir", output_dir, config=NAME)
    floor = share([prompt.answer == "0" for prompt in work.read()])
    rates = read_table(output_dir / "rates.csv")
    answers = []
    for row in rates.to_dict("records"):
        name = str(row["configuration"])
        drop = 1 - floor if is_needed(name) else 0.0
        answers.append(
            Answer(
                instrument=NAME,
                case=CASE,
                quantity="accuracy",
                place=name,
                truth=1 - drop,
                estimate=row["accuracy"],
                low=row["low"],
                high=row["high"],
                tolerance=TOLERANCE,
            )
        )
        if name != "none":
            answers.append(
                Answer(
                    instrument=NAME,
                    case=CASE,
                    quantity="drop",
                    place=name,
                    truth=drop,
                    estimate=row["drop"],
                    low=row["drop_low"],
                    high=row["drop_high"],
                    tolerance=TOLERANCE,
                )
            )
    assert len(answers) == 2 * (3 * SHAPE.num_layers + len(BLOCK_LAYERS)) + 1, len(answers)
    return answers


def is_needed(configuration: str) -> bool:
    """True if a configuration leaves out a part that the answer needs."""
    where, _, part = configuration.removeprefix("llm:").partition(".")
    if where == "none":
        return False
    layers = BLOCK_LAYERS.get(where) or (int(where),)
    return any(layer in layers and part in ("", needed) for layer, needed in NEEDED)
