"""Which work is logged together? A batch of prompts under all factors of one unit; torch is not needed for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from analyze.transplant.plan import Unit, Variant, base_variants, variants_of
from eval.replies.conditions import Query

WHOLE_PASS = "whole_pass"
"""Key of a record whose prompt was also answered without a shared prefix: whether both replies are equal."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is evaluated."""

    ends: tuple[str, ...]
    units: tuple[Unit, ...]
    alphas: tuple[float, ...]
    directions: tuple[str, ...]

    @property
    def variants(self) -> list[Variant]:
        """All variants in the order of their records: each base with its units, by base."""
        return [variant for base in base_variants(self.ends) for group in self.groups(base.base) for variant in group]

    def groups(self, base: str) -> list[list[Variant]]:
        """Returns the variants of a base, grouped by unit."""
        return variants_of(base, self.ends, self.units, self.alphas, self.directions)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is logged together: a batch under all factors of one unit."""

    base: str
    batch: int
    variants: tuple[Variant, ...]
    queries: tuple[Query, ...]

    @property
    def keys(self) -> list[str]:
        return [record_key(variant, query) for variant in self.variants for query in self.queries]


def record_key(variant: Variant, query: Query) -> str:
    """Returns the key of one reply of one variant."""
    return f"{variant.prefix}/{query.key}"


def make_pieces(sweep: Sweep, batches: Sequence[Sequence[Query]]) -> list[Piece]:
    """Returns all work, in order: base by base, batch by batch, unit by unit."""
    return [
        Piece(base=base.base, batch=number, variants=tuple(group), queries=tuple(batch))
        for base in base_variants(sweep.ends)
        for number, batch in enumerate(batches)
        for group in sweep.groups(base.base)
    ]
