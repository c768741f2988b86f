"""On which part of the data does an arm train, and how? Words of arms by data.

    data-MODALITY        GRPO on the prompts of one modality
    data-all             GRPO on all prompts; the same run as full
    data-boundary        GRPO on the prompts that eval.boundary keeps
    sft-MODALITY         further supervised training on one modality
    sft-all              further supervised training on all prompts
    each-data, each-sft  an arm for every modality of the study
    WORD:ARM             one of these, with an arm's freezing: data-negative:freeze-mid, each-data:only-late

A modality is the value of the prompts' `meta: {"modality": …}`. The words spell it in lower case, with hyphens for
spaces: `data-chest-x-ray` trains on `Chest X-Ray`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from data_builders.prompt_sets.fields import plain_name
from tracking.command import did_you_mean

ALL, BOUNDARY = "all", "boundary"
RL, SFT = "rl", "sft"
_METHODS = {"data": RL, "sft": SFT}
_WORD = re.compile(r"(?P<method>data|sft)-(?P<part>[^:=]+)")
_EACH = re.compile(r"each-(?P<method>data|sft)")


@dataclass(frozen=True, kw_only=True)
class ArmData:
    """The part of the data that an arm trains on, and the method."""

    method: str = RL
    """rl or sft."""
    part: str = ALL
    """all, boundary, or a modality as the prompts spell it."""

    @property
    def select(self) -> tuple[str, ...]:
        """Entries of `--select`."""
        return () if self.part in (ALL, BOUNDARY) else (f"modality={self.part}",)

    @property
    def text(self) -> str:
        """As printed in a plan."""
        part = {ALL: "all prompts", BOUNDARY: "what eval.boundary keeps"}.get(self.part, self.part)
        return f"{part}, supervised" if self.method == SFT else part


def split_word(text: str) -> tuple[str, str]:
    """Splits WORD:ARM of an arm by data; for other arms, the first part is empty and the second the whole text."""
    word, colon, frozen = text.partition(":")
    if "=" in text or not (_WORD.fullmatch(word) or _EACH.fullmatch(word)):
        return "", text
    if colon and not frozen:
        raise ValueError(f"arm {text!r} ends with a colon; expected an arm after it, such as {word}:freeze-mid")
    return word, frozen


def expand_data(word: str, modalities: Sequence[str]) -> list[str]:
    """Returns the words of `each-data` and `each-sft`, one per modality; another word as it is.

    Raises:
        ValueError: if the study names no modalities.
    """
    each = _EACH.fullmatch(word)
    if each is None:
        return [word]
    if not modalities:
        raise ValueError(f"arm {word!r} needs modalities, such as modalities: [negative, speckle]; there are none")
    return [f"{each['method']}-{plain_name(modality)}" for modality in modalities]


def parse_data(word: str, modalities: Sequence[str] | None) -> ArmData:
    """Parses data-PART or sft-PART.

    Args:
        modalities: those of the study; None: unknown, every modality is accepted.

    Raises:
        ValueError: for another modality, naming the nearest one.
    """
    match = _WORD.fullmatch(word)
    assert match is not None, word
    method, part = _METHODS[match["method"]], match["part"]
    if part == ALL or (part == BOUNDARY and method == RL):
        return ArmData(method=method, part=part)
    if part == BOUNDARY:
        raise ValueError(f"arm {word!r}: the prompts of eval.boundary are for GRPO; expected data-boundary")
    if part != plain_name(part):
        raise ValueError(f"arm {word!r} is spelt {match['method']}-{plain_name(part)}, in lower case with hyphens")
    if modalities is None:
        return ArmData(method=method, part=part)
    by_name = {plain_name(modality): modality for modality in modalities}
    if plain_name(part) in by_name:
        return ArmData(method=method, part=by_name[plain_name(part)])
    known = [f"{match['method']}-{name}" for name in (*by_name, ALL, *([BOUNDARY] if method == RL else []))]
    way_out = f"expected {', '.join(known)}" if modalities else "name the modality in modalities"
    raise ValueError(f"arm {word!r} names no modality of the study{did_you_mean(word, known)} ({way_out})")


def check_modalities(modalities: Sequence[str]) -> None:
    """Refuses modalities whose arms would have the same name, or the name of another arm."""
    names = [plain_name(modality) for modality in modalities]
    for modality, name in zip(modalities, names, strict=True):
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise ValueError(f"modality {modality!r} gives no name of an arm; expected letters, digits, spaces, -")
        if name in (ALL, BOUNDARY):
            raise ValueError(f"modality {modality!r} is another arm's name, data-{name}; rename it in the prompts")
        if names.count(name) > 1:
            raise ValueError(f"modality {modality!r} is named twice; expected each modality once")
