"""Which ways of training are compared? Arms: the same start, data and settings, with different blocks frozen.

    full                        nothing is frozen
    freeze-EXPRESSION           a block may not change: freeze-mid, freeze-llm:4, freeze-late.attn, freeze-vision
    only-EXPRESSION             of the decoder, only this block may change: only-mid, only-llm:4, only-llm:0-8.mlp
    only-REGION                 nothing else may change: only-vision, only-vision:0-7, only-projector, only-llm
    freeze-random-SEED          as many layers as mid has, drawn at random: the control
    elements-changed            only the elements may change that differ between the start and full of the same seed
    elements-unchanged          only all others may change
    elements-random-SEED        as many elements of each tensor as differ, drawn at random: the control
    NAME=EXPR+EXPR              any block expressions, frozen
    each-only, each-freeze      an arm for every decoder layer; each-only.attn, each-only.mlp: for this part of it
    each-only:3, each-freeze:3  an arm for every three layers, from layer 0 on; the last arm has what is left
    data-…, sft-…, each-data, each-sft    arms by data (`data_arms.py`), also crossed: data-negative:freeze-mid

Regions outside the decoder train in every arm, except `only-REGION`, unless `always_freeze` names them. The name of an
arm, in folders and tables, leaves out the colon: `only-llm:4` is `only-llm4`, and `data-negative:freeze-llm:4` is
`data-negative-freeze-llm4`.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from models.blocks import BLOCKS, PARTS, REGIONS, Partition, check_expression, make_partition
from tracking.command import check_all, did_you_mean
from train.freezing.data_arms import ArmData, expand_data, parse_data, split_word

NAMED_ARMS = (
    "full",
    *(f"freeze-{block}" for block in BLOCKS),
    *(f"only-{block}" for block in BLOCKS),
    *(f"only-{region}" for region in REGIONS),
    "each-only",
    "each-freeze",
    "elements-changed",
    "elements-unchanged",
    "each-data",
    "each-sft",
    "data-all",
    "data-boundary",
    "sft-all",
)
MORE_LAYERS_THAN_ANY_MODEL = 999
_EACH = re.compile(r"each-(?P<kind>only|freeze)(?::(?P<width>\d+))?(?P<part>\.[a-z]+)?")
_LAYERS = re.compile(r"llm:(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Arm:
    """A name, and the block expressions that it freezes or, if `train_only` is given, the only ones that it trains."""

    name: str
    freeze: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()
    elements: str = ""
    """The mask of elements that train, if not all do: changed, unchanged or random:SEED."""
    data: ArmData = field(default_factory=ArmData)
    """What it trains on."""

    @property
    def frozen(self) -> str:
        """What is frozen, as printed in a plan."""
        if self.elements:
            return f"all elements but {self.elements}"
        return f"all but {' '.join(self.train_only)}" if self.train_only else " ".join(self.freeze) or "nothing"


def parse_arm(text: str, partition: Partition, modalities: Sequence[str] | None = None) -> Arm:
    """Parses an arm's name from the configuration.

    Args:
        modalities: those of the study; None: unknown, every modality is accepted.

    Raises:
        ValueError: naming the nearest valid arm.
    """
    word, frozen = split_word(text)
    if word:
        return _parse_by_data(text, word, frozen, partition, modalities)
    name, separator, expressions = text.partition("=")
    if separator:
        return _parse_own(text, name, expressions, partition)
    if name == "full":
        return Arm(name)
    if match := re.fullmatch(r"freeze-random-(\d+)", name):
        num_frozen = len(partition.layers("mid"))
        layers = random.Random(int(match.group(1))).sample(range(partition.num_layers), num_frozen)
        return Arm(name, tuple(f"llm:{layer}" for layer in sorted(layers)))
    if match := re.fullmatch(r"elements-(changed|unchanged|random-\d+)", name):
        return Arm(name, elements=match[1].replace("-", ":"))
    kind, _, expression = name.partition("-")
    if kind not in ("freeze", "only") or not re.match(r"[a-z]+", expression):
        raise _unknown(name)
    try:
        check_expression(expression)
    except ValueError as error:
        if re.split("[:.]", expression)[0] in (*BLOCKS, "llm", *REGIONS):
            raise ValueError(f"arm {name!r}: {error}") from None
        raise _unknown(name) from None
    path = name.replace(":", "")
    if kind == "freeze":
        return Arm(path, (expression,))
    if re.split("[:.]", expression)[0] in REGIONS or expression == "llm":
        return Arm(path, train_only=(expression,))
    return Arm(path, _rest_of_decoder(name, expression, partition))


def _parse_by_data(text: str, word: str, frozen: str, partition: Partition, modalities: Sequence[str] | None) -> Arm:
    data = parse_data(word, modalities)
    if not frozen:
        return Arm(word, data=data)
    if not frozen.startswith(("freeze-", "only-")):
        raise ValueError(
            f"arm {text!r} crosses {word} with {frozen!r}; expected freeze-EXPRESSION or only-EXPRESSION, such as "
            f"{word}:freeze-mid"
        )
    arm = parse_arm(frozen, partition)
    return replace(arm, name=f"{word}-{arm.name}", data=data)


def _parse_own(text: str, name: str, expressions: str, partition: Partition) -> Arm:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or not all(expressions.split("+")):
        raise ValueError(
            f"arm {text!r} is malformed; expected NAME=EXPRESSION+EXPRESSION, such as no-attn=mid.attn+late.attn"
        )
    if split_word(name)[0]:
        raise ValueError(f"arm {text!r} has the name of an arm by data; choose another name")
    try:
        expand_arm(name, partition)
    except ValueError:
        return Arm(name, tuple(expressions.split("+")))
    raise ValueError(f"arm {text!r} gives the built-in arm {name!r} another meaning; choose another name")


def _rest_of_decoder(name: str, expression: str, partition: Partition) -> tuple[str, ...]:
    """Returns expressions for all of the decoder's layers but what an expression names."""
    block, _, part = expression.partition(".")
    other_part = next((f".{other}" for other in PARTS if other != part), "")
    if block in BLOCKS:
        others = [other for other in BLOCKS if other != block]
    elif match := _LAYERS.fullmatch(block):
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < partition.num_layers:
            raise ValueError(
                f"arm {name!r} is out of range: this model has decoder layers 0-{partition.num_layers - 1}"
            )
        others = [
            _layers(start, end) for start, end in ((0, first - 1), (last + 1, partition.num_layers - 1)) if start <= end
        ]
    else:
        raise ValueError(f"arm {name!r} is the arm freeze-llm{other_part}; use this name")
    return (*others, f"{block}{other_part}") if part else tuple(others)


def _layers(first: int, last: int) -> str:
    return f"llm:{first}" if first == last else f"llm:{first}-{last}"


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"arm {name!r} is unknown{did_you_mean(name, NAMED_ARMS)} "
        "(expected full, freeze-EXPRESSION, only-EXPRESSION, each-only, each-freeze, freeze-random-SEED, "
        "elements-changed, elements-unchanged, elements-random-SEED, NAME=EXPRESSION+EXPRESSION, data-MODALITY, "
        "data-all, data-boundary, sft-MODALITY, sft-all, each-data or each-sft)"
    )


def expand_word(text: str, partition: Partition, modalities: Sequence[str] = ()) -> list[str]:
    """Returns an arm's name as it is, or for a word of several arms, such as `each-only` or `each-data`, all names.

    Raises:
        ValueError: for misspelt names of several arms, and if the model has too few layers, or the study no modalities,
            for them.
    """
    word, frozen = split_word(text)
    if word:
        return [f"{each}:{frozen}" if frozen else each for each in expand_data(word, modalities)]
    each = _EACH.fullmatch(text)
    if each is None:
        if text.startswith("each-") and "=" not in text:
            raise _unknown(text)
        return [text]
    width, part = int(each["width"] or 1), each["part"] or ""
    if not 1 <= width < partition.num_layers:
        raise ValueError(
            f"arm {text!r}: {width} layers at a time; expected 1 to {partition.num_layers - 1}, as this model has "
            f"{partition.num_layers} decoder layers"
        )
    starts = range(0, partition.num_layers, width)
    blocks = [_layers(first, min(first + width, partition.num_layers) - 1) for first in starts]
    return [f"{each['kind']}-{block}{part}" for block in blocks]


def expand_arm(text: str, partition: Partition, modalities: Sequence[str] = ()) -> list[Arm]:
    """Returns the arm of a name, or all arms of `each-only`, `each-freeze`, `each-data` and `each-sft`.

    Raises:
        ValueError: naming the nearest valid arm.
    """
    return [parse_arm(word, partition, modalities) for word in expand_word(text, partition, modalities)]


def check_arm(text: str) -> None:
    """Refuses a word that names no arm of any model, without a model.

    Raises:
        ValueError: for an unknown arm, and a line for each unknown block expression.
    """
    partition = make_partition(num_layers=MORE_LAYERS_THAN_ANY_MODEL)
    words = expand_word(text, partition, modalities=("any",))
    arms = [parse_arm(word, partition, modalities=None) for word in words]
    check_all(*(partial(check_expression, expression) for expression in (*arms[0].freeze, *arms[0].train_only)))


def parse_arms(texts: Sequence[str], partition: Partition, modalities: Sequence[str] = ()) -> list[Arm]:
    """Returns all arms of a study; an arm named twice is an error."""
    if not texts:
        raise ValueError("arms is empty; expected at least one, such as full freeze-mid")
    arms = [arm for text in texts for arm in expand_arm(text, partition, modalities)]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"arm {name!r} is named twice; expected each arm once")
    masked = [arm.name for arm in arms if arm.elements]
    if masked and "full" not in names:
        raise ValueError(f"arm {masked[0]!r} needs the arm full, which shows the elements that change; add it to arms")
    return arms
