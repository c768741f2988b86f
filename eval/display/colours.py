"""Which colour has a model? The same in every figure; first those of Okabe and Ito, made for colour-blind readers."""

from collections.abc import Sequence

MODEL_COLOURS = {
    "base": "#999999",
    "sft": "#A6761D",
    "rl": "#222222",
    "full": "#222222",
    "freeze-early": "#0072B2",
    "freeze-mid": "#D55E00",
    "freeze-late": "#009E73",
    "only-early": "#56B4E9",
    "only-mid": "#E69F00",
    "only-late": "#7BCFA9",
}
OTHER_COLOURS = ("#CC79A7", "#8C6BB1", "#B22222", "#4D4D8F")
LINES = ("-", "--", "-.", ":")
"""Of models without a fixed colour, once the other colours are used up."""


def model_colour(model: str, models: Sequence[str]) -> str:
    """Returns the colour of an arm or another model.

    Args:
        models: all models in the figure, in order.
    """
    return model_style(model, models)[0]


def model_style(model: str, models: Sequence[str]) -> tuple[str, str]:
    """Returns the colour and the line style of a model; up to 16 models without a fixed colour get different ones."""
    if model in MODEL_COLOURS:
        return MODEL_COLOURS[model], LINES[0]
    place = [name for name in dict.fromkeys(models) if name not in MODEL_COLOURS].index(model)
    return OTHER_COLOURS[place % len(OTHER_COLOURS)], LINES[place // len(OTHER_COLOURS) % len(LINES)]
