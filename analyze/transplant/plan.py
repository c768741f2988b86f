"""Which places of a model are transplanted, and how far? Units, factors and variants, checked before a model is loaded.

A *unit* is what is transplanted at a time:

    each, each.attn, each.mlp     every decoder layer; its attention alone; its MLP alone
    each:3, each:3.attn           windows of three layers; the last has what is left
    blocks                        early, mid, late
    regions                       vision, projector, embed, norm and head, as far as the model has them
    EXPRESSION+EXPRESSION         one or several block expressions (`models/blocks.py`), such as llm:4 or early+vision

A *variant* is a unit with a direction and a factor alpha. Outside of the unit it is START or END; inside it is

    sufficiency     START + alpha (END - START)      how much of the gain does this place alone give?
    necessity       END - alpha (END - START)        how much of the gain is lost without the change of this place?

With alpha 0 the first is START and the second END. Both are evaluated once, and every variant is compared with them.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analyze.layers.plan import LAYER, NECESSITY, SUFFICIENCY
from merge.recipes.recipe import Blend, Owner
from models.blocks import BLOCKS, PARTS, Partition, resolve
from models.layout import Layout, Parameter

START = "start"
"""Name of the start checkpoint in tables and records."""
DIRECTIONS = (SUFFICIENCY, NECESSITY)
EACH, ALL_BLOCKS, ALL_REGIONS = "each", "blocks", "regions"
BLOCK, REGION = "block", "region"
"""Parts of units that are no single layers or windows."""
UNIT_PARTS = (LAYER, *PARTS, BLOCK, REGION)
_EACH = re.compile(r"each(?::(?P<width>\d+))?(?:\.(?P<part>[a-z]+))?")
_LAYERS = re.compile(r"llm:(?P<first>\d+)(?:-(?P<last>\d+))?(?:\.(?P<part>attn|mlp))?")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A place that is transplanted as a whole."""

    name: str
    part: str
    """`layer`, `attn` or `mlp` for decoder layers, otherwise `block` or `region`."""
    tensors: tuple[str, ...]
    """Canonical names."""
    first: int | None
    last: int | None
    """Decoder layers; None if it has tensors outside of them."""
    first_layer: int
    """Decoder layers below this one compute what they compute in the unchanged model."""
    first_vision_block: int
    """The same for the blocks of the vision tower."""

    @property
    def middle(self) -> float:
        """The place over depth, in layers; NaN for regions."""
        return math.nan if self.first is None or self.last is None else (self.first + self.last) / 2


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model that is evaluated without being written."""

    end: str | None
    """Label of the END checkpoint, such as `full@0`; None for START itself."""
    direction: str
    """`sufficiency` or `necessity`; START and END count as these with alpha 0."""
    unit: Unit | None
    """None for START or END itself."""
    alpha: float

    @property
    def base(self) -> str:
        """The model that it is outside of its unit: `start`, or the label of END."""
        return START if self.direction == SUFFICIENCY else str(self.end)

    @property
    def prefix(self) -> str:
        """Of the keys of its records."""
        if self.unit is None:
            return self.base
        return f"{self.end}/{self.direction}/{self.unit.name}/{self.alpha:g}"

    @property
    def owner(self) -> Owner:
        """What the unit's tensors are, as in a recipe with the donors `start` and END; exact at alpha 0 and 1."""
        if self.unit is None or self.end is None:
            return self.base
        share = self.alpha if self.direction == SUFFICIENCY else 1 - self.alpha
        return Blend(start=START, end=self.end, alpha=share)


def expand_units(words: Sequence[str], layout: Layout, partition: Partition) -> list[Unit]:
    """Returns the units that are asked for.

    Raises:
        ValueError: for what is misspelt, out of range or asked for twice, or what no model has in memory.
    """
    names = [name for word in words for name in _expand(word, layout)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"unit {name!r} is asked for twice (in {' '.join(words)}); expected each once")
    return [_make_unit(name, layout, partition) for name in names]


def _expand(word: str, layout: Layout) -> Iterator[str]:
    each = _EACH.fullmatch(word)
    if word == ALL_BLOCKS:
        yield from BLOCKS
    elif word == ALL_REGIONS:
        yield from _regions(layout)
    elif each is None:
        yield word
    else:
        width, part = int(each["width"] or 1), each["part"]
        if part is not None and part not in PARTS:
            raise ValueError(f"unit {word!r}: part {part!r} is unknown; expected attn or mlp")
        if not 1 <= width <= layout.num_layers:
            raise ValueError(f"unit {word!r}: expected 1 to {layout.num_layers} layers at a time, as this model has")
        for first in range(0, layout.num_layers, width):
            last = min(first + width, layout.num_layers) - 1
            yield (f"llm:{first}" if first == last else f"llm:{first}-{last}") + (f".{part}" if part else "")


def _regions(layout: Layout) -> list[str]:
    """Returns the regions whose tensors affect replies to prompts of text and pictures."""
    found = {parameter.region for parameter in layout if not parameter.carried}
    left_out = {*layout.family.idle_regions, *layout.family.carried}
    return [region for region in layout.family.region_names if region in found and region not in left_out]


def _make_unit(name: str, layout: Layout, partition: Partition) -> Unit:
    expressions = name.split("+")
    if not all(expressions):
        raise ValueError(f"unit {name!r} is malformed; expected EXPRESSION or EXPRESSION+EXPRESSION, such as llm:4")
    chosen = [layout.parameters[tensor] for tensor in resolve(expressions, layout, partition).names]
    tensors = [parameter for parameter in chosen if not parameter.carried]
    if not tensors:
        raise ValueError(f"unit {name!r} has no tensor that a model holds in memory; leave it out")
    match = _LAYERS.fullmatch(name)
    layers = [parameter.index for parameter in tensors if parameter.index is not None and parameter.region == "llm"]
    inside = all(parameter.region == "llm" for parameter in tensors)
    part = (match["part"] or LAYER) if match else BLOCK if inside else REGION
    return Unit(
        name=name,
        part=part,
        tensors=tuple(parameter.name for parameter in tensors),
        first=min(layers) if inside else None,
        last=max(layers) if inside else None,
        first_layer=min(_first_layer(parameter, layout) for parameter in tensors),
        first_vision_block=min(_first_vision_block(parameter, layout) for parameter in tensors),
    )


def _first_layer(parameter: Parameter, layout: Layout) -> int:
    """Returns the first decoder layer that computes something else if this tensor changes."""
    if parameter.region == "llm":
        assert parameter.index is not None
        return parameter.index
    after = parameter.region == "norm" or (parameter.region == "head" and not layout.tied)
    return layout.num_layers if after else 0


def _first_vision_block(parameter: Parameter, layout: Layout) -> int:
    if parameter.region != "vision":
        return layout.num_vision_blocks
    return parameter.index or 0  # what lies outside the blocks is taken to come before them


def base_variants(ends: Sequence[str]) -> list[Variant]:
    """Returns START and every END."""
    start = Variant(end=None, direction=SUFFICIENCY, unit=None, alpha=0.0)
    return [start, *(Variant(end=end, direction=NECESSITY, unit=None, alpha=0.0) for end in ends)]


def variants_of(
    base: str, ends: Sequence[str], units: Sequence[Unit], alphas: Sequence[float], directions: Sequence[str]
) -> list[list[Variant]]:
    """Returns what is evaluated on one base, grouped by unit: the base itself, then each END's units with all factors.

    Args:
        base: `start`, or the label of an END.
    """
    own = next(variant for variant in base_variants(ends) if variant.base == base)
    direction = SUFFICIENCY if base == START else NECESSITY
    if direction not in directions:
        return [[own]]
    return [
        [own],
        *(
            [Variant(end=end, direction=direction, unit=unit, alpha=alpha) for alpha in alphas]
            for end in (ends if base == START else [base])
            for unit in units
        ),
    ]


def unit_of_arm(arm: str) -> tuple[str, str] | None:
    """Returns the direction and the unit, without colons, that an arm's name stands for; None for other arms."""
    kind, _, place = arm.partition("-")
    directions = {"only": SUFFICIENCY, "freeze": NECESSITY}
    return (directions[kind], place) if kind in directions and place and not place.startswith("random-") else None
