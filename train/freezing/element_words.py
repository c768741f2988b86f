"""How is a mask of elements written? As three words: a kind and a pair of checkpoints."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

NUM_WORDS = 3


@dataclass(frozen=True, kw_only=True)
class ElementRequest:
    """The kind of a mask, and the pair of checkpoints that it comes from."""

    kind: str
    seed: int | None
    start: str
    end: str


def parse_elements(words: Sequence[str]) -> ElementRequest:
    """Parses `changed START END`, `unchanged START END` or `random:SEED START END`.

    Raises:
        ValueError: for another number of words, an unknown kind, or a seed that is missing or not a number.
    """
    if len(words) != NUM_WORDS:
        raise ValueError(
            f"train_elements has {len(words)} words ({' '.join(words)}); expected changed, unchanged or random:SEED, "
            "and two checkpoints"
        )
    match = re.fullmatch(r"(changed|unchanged)|random:(\d+)", words[0])
    if match is None:
        raise ValueError(f"train_elements: {words[0]!r} is no mask; expected changed, unchanged or random:SEED")
    seed = int(match[2]) if match[2] else None
    return ElementRequest(kind=match[1] or "random", seed=seed, start=words[1], end=words[2])
