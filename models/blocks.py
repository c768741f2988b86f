"""Which parameters does a block expression name? The resolver shared by training, analysis and merging.

    early | mid | late      a third of the decoder, by the partition
    llm, llm:4, llm:0-8     decoder layers, counted from 0, ranges inclusive as printed in papers
    vision, vision:0-7      the vision tower, or blocks of it
    projector, embed, norm, head
    ple, audio              of Gemma 4: the per-layer embeddings, and the tower for sound with its projector
    mtp                     tensors of Qwen3.5's files that predict a second token; no model has them in memory
    EXPRESSION.attn         of layers: the attention with its norms
    EXPRESSION.mlp          of layers: the MLP with its norms

If embeddings are tied, the shared tensor belongs to `embed`, and `head` is an alias for it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from models.layout import Layout, Parameter
from tracking.command import check_all, did_you_mean

BLOCKS = ("early", "mid", "late")
REGIONS = ("vision", "projector", "embed", "norm", "head")
OWN_REGIONS = ("ple", "audio")
"""Regions of some families: Gemma 4's per-layer embeddings, and its tower for sound with its projector."""
CARRIED_REGIONS = ("mtp",)
"""Regions of the files of some families that no model has in memory (`Family.carried`)."""
ALL_REGIONS = (*REGIONS, *OWN_REGIONS, *CARRIED_REGIONS)
PARTITIONS = ("thirds", "paper")
"""Names of ways to cut the decoder into early, mid and late."""
PARTITION_ARGUMENT = {
    "help": "where early, mid and late are cut: thirds, or paper (10/9/9 of 28 layers)",
    "choices": PARTITIONS,
}
CUTS_ARGUMENT = {"help": "first layers of mid and late, such as 8 20; used instead of --partition"}
"""Metadata of the two fields with which every command's arguments choose a partition."""
PARTS = ("attn", "mlp")

PAPER_CUTS = {28: (10, 19)}
"""Layers 0-9, 10-18 and 19-27 of 28 (paper, appendix E); thirds at any other depth."""


@dataclass(frozen=True)
class Partition:
    """A partition of the decoder into early, mid and late: half-open ranges of layers."""

    num_layers: int
    cuts: tuple[int, int]

    def __post_init__(self) -> None:
        first, second = self.cuts
        if not 0 < first < second < self.num_layers:
            raise ValueError(
                f"cuts {list(self.cuts)} do not divide {self.num_layers} layers into three blocks; "
                f"expected 0 < first < second < {self.num_layers}"
            )

    def layers(self, block: str) -> range:
        bounds = (0, *self.cuts, self.num_layers)
        position = BLOCKS.index(block)
        return range(bounds[position], bounds[position + 1])

    def block_of(self, layer: int) -> str:
        return next(block for block in BLOCKS if layer in self.layers(block))

    def __str__(self) -> str:
        return ", ".join(f"{block} {format_layers(self.layers(block))}" for block in BLOCKS)


def make_partition(num_layers: int, *, partition: str = "thirds", cuts: Sequence[int] | None = None) -> Partition:
    """Returns the partition `thirds` or `paper`, or the one with explicit cuts."""
    if cuts:
        if len(cuts) != 2:
            raise ValueError(f"cuts {list(cuts)} has {len(cuts)} numbers; expected two, such as 8 20")
        return Partition(num_layers, (cuts[0], cuts[1]))
    thirds = (num_layers // 3, 2 * num_layers // 3)
    named = {"thirds": thirds, "paper": PAPER_CUTS.get(num_layers, thirds)}
    if partition not in named:
        raise ValueError(f"partition {partition!r} is unknown; expected one of {', '.join(named)}, or cuts")
    return Partition(num_layers, named[partition])


@dataclass(frozen=True)
class Selection:
    """The parameters that a list of expressions names: canonical names in the model's order, with notes."""

    expressions: tuple[str, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def resolve(expressions: Iterable[str], layout: Layout, partition: Partition) -> Selection:
    """Turns block expressions into exact parameter names.

    Raises:
        ValueError: if expressions are misspelt or out of range (one line each), or one matches nothing.
    """
    expressions = tuple(expressions)
    chosen: set[str] = set()
    notes: list[str] = []
    check_all(*(partial(_match, expression, layout, partition) for expression in expressions))
    for expression in expressions:
        matched = _match(expression, layout, partition)
        if layout.tied and expression in ("embed", "head"):
            notes.append(f"{expression}: embeddings are tied in this model, so embed and head are one tensor")
        if not matched:
            raise ValueError(f"block expression {expression!r} matches no parameter of this model")
        chosen.update(parameter.name for parameter in matched)
    return Selection(expressions, tuple(name for name in layout.parameters if name in chosen), tuple(notes))


def block_names(parameter: Parameter, partition: Partition) -> str:
    """Returns the block (early, mid, late) or region of a parameter, as used in tables."""
    if parameter.region == "llm":
        assert parameter.index is not None
        return partition.block_of(parameter.index)
    return parameter.region


def format_layers(layers: Iterable[int]) -> str:
    """Formats layer numbers with inclusive ranges, as in papers: `0-8, 12`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


_EXPRESSION = re.compile(r"(?P<name>[a-z]+)(?::(?P<first>\d+)(?:-(?P<last>\d+))?)?(?:\.(?P<part>[a-z]+))?")


def check_expression(expression: str) -> None:
    """Refuses an expression that no model has, without a model.

    Raises:
        ValueError: for one that is misspelt, or narrows what cannot be narrowed.
    """
    _parse(expression)


def _parse(expression: str) -> re.Match[str]:
    valid = [*BLOCKS, "llm", *ALL_REGIONS, *(f"{name}.{part}" for name in (*BLOCKS, "llm") for part in PARTS)]
    expected = "expected early, mid, late, llm, llm:0-8, vision, vision:0-7, projector, embed, norm or head"
    parsed = _EXPRESSION.fullmatch(expression)
    if parsed is None or parsed["name"] not in (*BLOCKS, "llm", *ALL_REGIONS):
        raise ValueError(f"block expression {expression!r} is unknown{did_you_mean(expression, valid)} ({expected})")
    name, part = parsed["name"], parsed["part"]
    if parsed["first"] is not None and name not in ("llm", "vision"):
        raise ValueError(f"block expression {expression!r}: only llm and vision take a range, such as llm:0-8")
    if part is not None and part not in PARTS:
        raise ValueError(f"block expression {expression!r}: part {part!r} is unknown; expected attn or mlp")
    if part is not None and name not in (*BLOCKS, "llm"):
        raise ValueError(f"block expression {expression!r}: only decoder layers can be narrowed to .attn or .mlp")
    return parsed


def _match(expression: str, layout: Layout, partition: Partition) -> list[Parameter]:
    parsed = _parse(expression)
    name, part = parsed["name"], parsed["part"]
    if layout.family.text_only and name in ("vision", "projector"):
        raise ValueError(
            f"block expression {expression!r}: {layout.family.model_type} is a text-only model without {name}; "
            "expected early, mid, late, llm, llm:0-8, embed, norm or head"
        )
    if name in OWN_REGIONS and name not in layout.family.region_names:
        raise ValueError(
            f"block expression {expression!r}: {layout.family.model_type} has no {name}; expected early, mid, late, "
            f"llm, llm:0-8, {', '.join(layout.family.region_names[:-1])} or {layout.family.region_names[-1]}"
        )
    if name in CARRIED_REGIONS and not any(parameter.region == name for parameter in layout):
        raise ValueError(
            f"block expression {expression!r}: this {layout.family.model_type} has no {name}; expected early, mid, "
            "late, llm, llm:0-8 or a region that it has"
        )
    region = "llm" if name in BLOCKS else name
    indices = _indices(expression, parsed, layout, partition)
    if region == "head" and layout.tied:
        region = "embed"
    prefixes = layout.family.parts[part] if part else ("",)
    return [
        parameter
        for parameter in layout
        if parameter.region == region
        and (indices is None or parameter.index in indices)
        and parameter.rest.startswith(prefixes)
    ]


def _indices(expression: str, parsed: re.Match[str], layout: Layout, partition: Partition) -> range | None:
    name = parsed["name"]
    if name in BLOCKS:
        return partition.layers(name)
    if parsed["first"] is None:
        return None
    count, what = (
        (layout.num_layers, "decoder layers") if name == "llm" else (layout.num_vision_blocks, "vision blocks")
    )
    first = int(parsed["first"])
    last = int(parsed["last"]) if parsed["last"] is not None else first
    if not first <= last < count:
        raise ValueError(f"block expression {expression!r} is out of range: this model has {what} 0-{count - 1}")
    return range(first, last + 1)
