"""Which instruments are calibrated? Each with what is planted for it, and the function that asks it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.known_answers import attention, deltas, necessity, skip, splices, swap
from benchmarks.known_answers.answers import Answer
from benchmarks.known_answers.figures import (
    Draw,
    draw_bars,
    draw_diagonals,
    draw_gains_kept,
    draw_log_diagonals,
    draw_swaps,
)
from benchmarks.known_answers.workplace import Workplace


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """One instrument of the suite."""

    commands: str
    """What is run."""
    configs: tuple[str, ...]
    """Its files in `configs/calibration`, without the ending."""
    planted: str
    """What is planted, in a sentence."""
    measure: Callable[[Workplace], list[Answer]]
    """Builds what is planted, runs the commands and returns the answers."""
    draw: Draw
    caption: str
    """Of the figure."""


INSTRUMENTS: Mapping[str, Instrument] = {
    swap.NAME: Instrument(
        commands="analyze.swap",
        configs=("swap",),
        planted="Six models, each of which reads the picture in one known layer. The answer must move to the other "
        "picture's exactly where a swap includes that layer.",
        measure=swap.measure,
        draw=draw_swaps,
        caption="Share of pairs whose answer moves to the other picture's. Shaded: where it must move. Dots: "
        "where it does; the smallest dots are 0.",
    ),
    skip.NAME: Instrument(
        commands="analyze.skip",
        configs=("skip",),
        planted="A model that needs the attention of one layer and the MLP of another, and nothing else of its "
        "decoder. Without either it answers 0 to every question.",
        measure=skip.measure,
        draw=draw_bars,
        caption="Accuracy with a part left out, and the drop from the whole model. Bars: planted. Dots: "
        "found, with 95 % intervals.",
    ),
    attention.NAME: Instrument(
        commands="analyze.attention",
        configs=("attention",),
        planted="Heads with a chosen attention mass on the picture and on the question, and a model with uniform "
        "attention.",
        measure=attention.measure,
        draw=draw_diagonals,
        caption="Found against planted, one dot per head or block and kind of reply; the line is where both agree.",
    ),
    deltas.NAME: Instrument(
        commands="analyze.deltas",
        configs=("all_deltas",),
        planted="Weight changes in one block of known energy and rank, and changes just above and just below the noise "
        "floor of bf16.",
        measure=deltas.measure,
        draw=draw_log_diagonals,
        caption="Found against planted, one dot per matrix or block; the line is where both agree.",
    ),
    splices.NAME: Instrument(
        commands="merge.all, eval.run, eval.compare",
        configs=("eval",),
        planted="Two donors that differ in every layer and whose difference in accuracy lies wholly in one block. A "
        "splice must gain if it takes that block from rl, and not otherwise.",
        measure=splices.measure,
        draw=draw_bars,
        caption="Gain of each splice over the donor in, and the share of rl's gain that it keeps. Bars: "
        "planted. Dots: found, with 95 % intervals.",
    ),
    necessity.NAME: Instrument(
        commands="train.necessity (benchmarks.necessary_block), eval.splits",
        configs=("necessity_early", "necessity_mid", "necessity_late", "necessity_seeds"),
        planted="Three starts in which only the layers of one block can learn to see. The arm that freezes this block "
        "must keep nothing of the gain, every other arm all of it. Halves of ten seeds of one arm must not differ.",
        measure=necessity.measure,
        draw=draw_gains_kept,
        caption="Gain kept by each arm, per necessary block. Bars: planted. Dots: found, with 95 % intervals over "
        "training seeds and prompts.",
    ),
}
"""Name -> instrument, in the order of the page."""
