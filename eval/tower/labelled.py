"""What is a labelled picture? One class or any number of findings, its part, and a way to open it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

TRAIN, TEST = "train", "test"
NO_FINDING = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImage:
    """An image with its class or findings, opened on demand."""

    id: str
    label: str
    """Its class; of an image with findings their names."""
    findings: tuple[str, ...] | None = None
    """Names of the findings that apply, if images have any number of them instead of one class."""
    modality: str | None = None
    """The imaging modality, if the data names one."""
    split: str | None = None
    """train or test, if the data has a split."""
    sha256: str = ""
    """sha256 of its pixels and size."""
    open: Callable[[], "Image"] = field(repr=False)

    @property
    def stratum(self) -> tuple[str | None, str]:
        """What is divided in equal shares: modality and class; images with findings are not divided by them."""
        return self.modality, self.label if self.findings is None else ""


def join_findings(names: tuple[str, ...]) -> str:
    """Returns the label of an image with these findings."""
    return "; ".join(names) or NO_FINDING
