"""What is measured of a tensor's change? The sums per phase, and per pair of phases."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Change:
    """One tensor's change in one phase; all fields except `max_change` are additive over tensors.

    The change that an adapter makes is exact, s·B·A in real numbers; only the fields `merged_…` are about the weights
    that merging would store.
    """

    num_elements: int
    delta_squares: float
    start_squares: float
    num_changed: int | None = None
    """Elements whose stored bits differ (values, if the dtypes differ)."""
    max_change: float | None = None
    """The largest |Δ|; this and the rest only with the noise floor."""
    rounding_squares: float | None = None
    """Σ ulp(w)²/12 of the start, in the coarser of the two stored dtypes: the effect of rounding one end."""
    changed_ulp_squares: float | None = None
    """Σ ulp(w)² over the elements that changed."""
    ulps_histogram: tuple[int, ...] | None = None
    """Histogram of changes in ulps, with the bins of `ULP_LABELS`."""
    merged_delta_squares: float | None = None
    """Only of an exact change: Σ of the squared changes that merging leaves after rounding to the stored dtype."""
    merged_num_changed: int | None = None
    """Elements that merging changes."""
    merged_dot_product: float | None = None
    """Dot product of the exact change and the one that merging leaves."""


@dataclass(frozen=True, kw_only=True)
class PairChange:
    """The overlap of two phases' changes of one tensor; the fields are additive over tensors."""

    num_elements: int
    num_first_changed: int
    num_second_changed: int
    num_both_changed: int
    first_squares: float
    second_squares: float
    dot_product: float

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two deltas; None if one of them is zero."""
        norms = math.sqrt(self.first_squares) * math.sqrt(self.second_squares)
        return self.dot_product / norms if norms else None

    @property
    def jaccard(self) -> float | None:
        """Elements that both changed, as a share of those that either changed; None if there are none."""
        return self._share(self.num_both_changed)

    @property
    def independent_jaccard(self) -> float | None:
        """Expected value if each phase had changed random elements."""
        if not self.num_elements:
            return None
        return self._share(self.num_first_changed * self.num_second_changed / self.num_elements)

    def _share(self, num_both: float) -> float | None:
        either = self.num_first_changed + self.num_second_changed - num_both
        return num_both / either if either else None


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """One tensor's changes, in the order of the requested phases and pairs."""

    name: str
    phases: tuple[Change, ...]
    pairs: tuple[PairChange, ...]
