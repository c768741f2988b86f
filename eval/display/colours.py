"""Which colour does a model have? The same in every figure, starting with Okabe and Ito's colour-blind-safe palette."""

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
"""Line styles for further models, when the colours repeat."""


def model_colour(model: str, models: Sequence[str]) -> str:
    """Returns the colour of an arm or another model.

    Args:
        models: all models of the figure, in order.
    """
    return model_style(model, models)[0]


def model_style(model: str, models: Sequence[str]) -> tuple[str, str]:
    """Returns a model's colour and line style, distinct for up to 16 models without an assigned colour."""
    if model in MODEL_COLOURS:
        return MODEL_COLOURS[model], LINES[0]
    place = [name for name in dict.fromkeys(models) if name not in MODEL_COLOURS].index(model)
    return OTHER_COLOURS[place % len(OTHER_COLOURS)], LINES[place // len(OTHER_COLOURS) % len(LINES)]
