"""Which ways of training are compared? Arms: the same start, data and settings, with different blocks frozen.

    full                        nothing is frozen
    freeze-early|mid|late       one block of the decoder may not change
    only-early|mid|late         only this block of the decoder may change
    freeze-random-SEED          as many layers as mid has, drawn at random: the control
    NAME=EXPR+EXPR              any block expressions, frozen

Regions outside the decoder train in every arm unless `always_freeze` names them.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from models.blocks import BLOCKS, Partition, check_expression, make_partition
from tracking.command import check_all, did_you_mean

NAMED_ARMS = ("full", *(f"freeze-{block}" for block in BLOCKS), *(f"only-{block}" for block in BLOCKS))


@dataclass(frozen=True)
class Arm:
    """A name and the block expressions it freezes."""

    name: str
    freeze: tuple[str, ...]


def parse_arm(text: str, partition: Partition) -> Arm:
    """Parses an arm's name from the configuration.

    Raises:
        ValueError: naming the nearest valid arm.
    """
    name, separator, expressions = text.partition("=")
    if separator:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or not all(expressions.split("+")):
            raise ValueError(
                f"arm {text!r} is malformed; expected NAME=EXPRESSION+EXPRESSION, such as no-attn=mid.attn+late.attn"
            )
        if name in NAMED_ARMS:
            raise ValueError(f"arm {text!r} gives the built-in arm {name!r} another meaning; choose another name")
        return Arm(name, tuple(expressions.split("+")))
    if name == "full":
        return Arm(name, ())
    kind, _, block = name.partition("-")
    if kind == "freeze" and block in BLOCKS:
        return Arm(name, (block,))
    if kind == "only" and block in BLOCKS:
        return Arm(name, tuple(other for other in BLOCKS if other != block))
    if match := re.fullmatch(r"freeze-random-(\d+)", name):
        num_frozen = len(partition.layers("mid"))
        layers = random.Random(int(match.group(1))).sample(range(partition.num_layers), num_frozen)
        return Arm(name, tuple(f"llm:{layer}" for layer in sorted(layers)))
    raise ValueError(
        f"arm {name!r} is unknown{did_you_mean(name, NAMED_ARMS)} "
        f"(expected {', '.join(NAMED_ARMS)}, freeze-random-SEED or NAME=EXPRESSION+EXPRESSION)"
    )


def check_arm(text: str) -> None:
    """Refuses a word that names no arm of any model, without a model.

    Raises:
        ValueError: for an unknown arm, and a line for each unknown block expression.
    """
    arm = parse_arm(text, make_partition(num_layers=len(BLOCKS)))
    check_all(*(partial(check_expression, expression) for expression in arm.freeze))


def parse_arms(texts: Sequence[str], partition: Partition) -> list[Arm]:
    """Returns all arms of a study; an arm named twice is an error."""
    if not texts:
        raise ValueError("arms is empty; expected at least one, such as full freeze-mid")
    arms = [parse_arm(text, partition) for text in texts]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"arm {name!r} is named twice; expected each arm once")
    return arms
