"""Which parts of the decoder are left out in turn, on which problems? Checked before a model is loaded.

A configuration is one way of leaving parts out, named by block expressions:

    none                 nothing: the model as it is, which every other configuration is compared with
    layers               llm:0, llm:1, …: every decoder layer by itself
    blocks               early, mid, late
    attn, mlp            llm:0.attn, …: every layer's attention, or MLP, by itself

A further configuration is any block expression of decoder layers (`models/blocks.py`), such as `llm:4-7` or `mid.attn`.
A row is one answer: a problem under a configuration. Batches are formed from all rows, done or not, so a continued run
batches as an undisturbed one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from analyze.probes.inputs import Problem
from models.blocks import BLOCKS, PARTS, Partition, resolve
from models.layout import Layout

NONE = "none"
"""The configuration that leaves nothing out."""
PLAIN = "plain"
"""The configuration under which the model's own answers stand, made without this probe."""
KINDS = ("layers", "blocks", "attn", "mlp")
NAMED = "named"
"""The kind of a configuration that was asked for by its own expression."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way of leaving parts out."""

    name: str
    kind: str
    omitted: frozenset[tuple[int, str]]
    """(layer, `attn` or `mlp`) of each part."""

    @property
    def layers(self) -> list[int]:
        return sorted({layer for layer, _ in self.omitted})

    def plan(self, num_layers: int) -> Bool[np.ndarray, "layers 2"]:
        """Returns what is left out, attention before MLP."""
        parts = list(PARTS)
        plan = np.zeros((num_layers, len(parts)), dtype=bool)
        for layer, part in self.omitted:
            plan[layer, parts.index(part)] = True
        return plan


def make_configurations(asked: Sequence[str], layout: Layout, partition: Partition) -> list[Configuration]:
    """Returns `none` and then what was asked for: kinds of configurations, or block expressions.

    Raises:
        ValueError: for an expression that is misspelt, names more than decoder layers, or stands twice.
    """
    layers = range(layout.num_layers)
    expressions = {
        "layers": [f"llm:{layer}" for layer in layers],
        "blocks": list(BLOCKS),
        "attn": [f"llm:{layer}.attn" for layer in layers],
        "mlp": [f"llm:{layer}.mlp" for layer in layers],
    }
    named = [
        (expression, word if word in expressions else NAMED)
        for word in asked
        if word != NONE
        for expression in expressions.get(word, [word])
    ]
    names = [name for name, _ in named]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"configuration {repeated[0]!r} is asked for twice (in {' '.join(asked)}); name it once")
    return [
        Configuration(name=NONE, kind=NONE, omitted=frozenset()),
        *(Configuration(name=name, kind=kind, omitted=_omitted(name, layout, partition)) for name, kind in named),
    ]


def _omitted(expression: str, layout: Layout, partition: Partition) -> frozenset[tuple[int, str]]:
    chosen = [layout.parameters[name] for name in resolve([expression], layout, partition).names]
    outside = sorted({parameter.region for parameter in chosen if parameter.region != "llm"})
    if outside:
        raise ValueError(
            f"configuration {expression!r} names {outside[0]}, which has no skip connection to keep; expected decoder "
            f"layers such as llm:4, llm:4-7.mlp or mid, or one of {', '.join(KINDS)}"
        )
    return frozenset(
        (parameter.index, part)
        for parameter in chosen
        for part, prefixes in layout.family.parts.items()
        if parameter.index is not None and parameter.rest.startswith(prefixes)
    )


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the model is loaded and asked."""

    prompt_style: str
    system_prompt: str | None
    max_new_tokens: int
    repetition_window: int
    batch_size: int
    dtype: str
    attn_implementation: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer: a problem, and what is left out."""

    problem: Problem
    configuration: Configuration | None
    """None for the plain model, without the probe's hooks."""

    @property
    def name(self) -> str:
        """The configuration's name in tables."""
        return self.configuration.name if self.configuration else PLAIN

    @property
    def key(self) -> str:
        return f"{self.problem.key}/{self.name}"


def all_rows(problems: Sequence[Problem], configurations: Sequence[Configuration]) -> list[Row]:
    """Returns every row, in the order its record is to stand: the plain model's first."""
    return [
        Row(problem=problem, configuration=configuration)
        for problem in problems
        for configuration in (None, *configurations)
    ]


def make_units(
    problems: Sequence[Problem], texts: Mapping[str, str], configurations: Sequence[Configuration], batch_size: int
) -> list[list[Row]]:
    """Returns the batches of one task, plain ones first: prompts of similar length and equally many images together.

    The rows of one prompt are adjacent, so that their shared prefix is computed once.

    Args:
        problems: of the task.
        texts: rendered prompts, by the key of their problem.
        configurations: what is left out in turn.
        batch_size: rows.
    """
    from eval.replies.generation import make_batches

    prompts, rendered = [problem.prompt for problem in problems], [texts[problem.key] for problem in problems]
    units = [
        [Row(problem=problems[number], configuration=None) for number in batch]
        for batch in make_batches(prompts, rendered, batch_size)
    ]
    num_plain = len(units)
    for (number,) in make_batches(prompts, rendered, 1):
        problem = problems[number]
        for configuration in configurations:
            last = units[-1] if len(units) > num_plain else None
            if last is None or len(last) == batch_size or num_images(last[-1]) != len(problem.prompt.images):
                units.append(last := [])
            last.append(Row(problem=problem, configuration=configuration))
    return units


def num_images(row: Row) -> int:
    return len(row.problem.prompt.images)
