"""Does the swap find the layer that reads the picture? One model per layer that alone can, in every mode.

In each model the picture reaches the answer only through the attention of layer k (`reader.py`); the last layer's MLP
works the answer out. All other layers attend to the picture too, with scores up to `SCORE`, and add to the hidden state
that there is a picture, but nothing of what it shows. A swap must move the answer to the other picture's exactly where
it includes layer k:

    from    all layers >= j:          j <= k
    only    layer j alone:            j = k
    window  layers j … j + w - 1:     j <= k < j + w
"""

from pathlib import Path

from benchmarks.known_answers.answers import Answer
from benchmarks.known_answers.reader import SHAPE, Wiring, write_reader
from benchmarks.known_answers.workplace import Workplace
from models.pocket import COLOURS
from tracking.tables import read_table

NAME = "swap"
WINDOW = 2
SCORE = 4.0
"""The picture's nine tokens then get 94 % of the attention of the last head, and 20 % of that of the first."""


def measure(work: Workplace) -> list[Answer]:
    """Builds a model per layer, swaps its pictures, and returns every point of the curves."""
    answers = []
    for layer in range(SHAPE.num_layers):
        model, output_dir = work.checkpoint(f"reads-in-{layer}"), work.directory / NAME / f"reads-in-{layer}"
        write_reader(model, wiring(layer))
        words = ("--model", model, "--pairs", work.pairs, "--window", str(WINDOW), "--output-dir", output_dir)
        work.run("analyze.swap", *words, config=NAME)
        answers += read_curves(output_dir, layer, work.num_pairs)
    return answers


def wiring(reading: int) -> Wiring:
    """Returns a model that reads the picture in one layer and only looks at it in all others."""
    heads = [(SCORE * head / (SHAPE.num_heads - 1), 0.0) for head in range(SHAPE.num_heads)]
    return Wiring(
        reading=reading,
        answering=dict.fromkeys(COLOURS, SHAPE.num_layers - 1),
        scores={layer: heads for layer in range(SHAPE.num_layers) if layer != reading},
        carries_presence=True,
    )


def read_curves(output_dir: Path, reading: int, num_pairs: int) -> list[Answer]:
    """Returns the answers in one run's `rates.csv`: a point per mode and layer, and the pairs that were answered."""
    rates = read_table(output_dir / "rates.csv")
    chosen = rates[(rates["metric"] == "moved_to_source") & (rates["subset"] == "right")]
    case = f"picture read in layer {reading}"
    answers = []
    for mode, own in chosen.groupby("mode", sort=False):
        answers.append(
            Answer(
                instrument=NAME,
                case=case,
                quantity=f"pairs answered correctly, mode {mode}",
                truth=num_pairs,
                estimate=float(own["n"].max()),
            )
        )
        for row in own.sort_values("layer").to_dict("records"):
            answers.append(
                Answer(
                    instrument=NAME,
                    case=case,
                    quantity=f"answers moved, mode {mode}",
                    place=f"layer {row['layer']}",
                    truth=float(reads_within(str(mode), int(row["layer"]), reading)),
                    estimate=float(row["rate"]),
                    low=float(row["low"]),
                    high=float(row["high"]),
                )
            )
    return answers


def reads_within(mode: str, layer: int, reading: int) -> bool:
    """True if a swap at a layer includes the layer that reads the picture, by the definitions above."""
    if mode == "from":
        return layer <= reading
    if mode == "only":
        return layer == reading
    assert mode == "window", mode
    return layer <= reading < layer + WINDOW
