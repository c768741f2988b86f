"""Style of figures: plain axes, region labels, resolution."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REGION_LABELS = {
    "vision": "vision",
    "projector": "proj.",
    "embed": "embed",
    "ple": "PLE",
    "norm": "norm",
    "head": "head",
    "audio": "audio",
    "mtp": "mtp",
}
RESOLUTION_DPI = 160


def plain(axes: "Axes") -> None:
    """Styles axes without a frame, with a light grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(axis="both", color="#eeeeee", zorder=-1)
    axes.set_axisbelow(True)
