"""How well does a score rank images with a finding above those without? The area under the ROC curve.

The area (AUC) is the share of pairs, one image with and one without the finding, that the score puts in the right
order; ties count half. `area_values` gives each image a value so that the mean of the values is the area, and the
variance of that mean, taken over independent images, is that of DeLong et al. (Biometrics 44:837, 1988):

    value = AUC + (with: n / n1 * (V10 - AUC); without: n / n0 * (V01 - AUC))

V10 is the share of the n0 images without the finding that an image with it outranks, V01 the share of the n1 images
with it that outrank an image without it. Deviations are stretched by sqrt(n1 / (n1 - 1)) or sqrt(n0 / (n0 - 1)), for
the degrees of freedom, and by sqrt((n - 1) / n), which the variance of a mean takes back. So areas are averaged over
findings and compared between probes as any other mean over the same images, correlations included.

Known limit: two areas of exactly 1 have a variance of 0.
"""

import numpy as np
from jaxtyping import Float, Int


def area_values(scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns a value per image whose mean is the area under the ROC curve.

    Args:
        scores: higher where the finding is more likely.
        labels: 0 and 1; there must be images of both.
    """
    has = labels == 1
    num_with, num_without, n = int(has.sum()), int((~has).sum()), len(labels)
    assert num_with and num_without, (num_with, num_without)
    placed = np.empty(n)
    placed[has] = _share_below(scores[has], scores[~has])
    placed[~has] = 1 - _share_below(scores[~has], scores[has])
    area = placed[has].mean()
    deviations = placed - area
    deviations[has] *= _stretch(n, num_with)
    deviations[~has] *= _stretch(n, num_without)
    return np.asarray(area + deviations)


def _share_below(own: Float[np.ndarray, " a"], others: Float[np.ndarray, " b"]) -> Float[np.ndarray, " a"]:
    """Returns the share of the others that each of its own exceeds; ties count half."""
    ordered = np.sort(others)
    below, upto = np.searchsorted(ordered, own, "left"), np.searchsorted(ordered, own, "right")
    return np.asarray((below + upto) / (2 * len(others)))


def _stretch(n: int, num: int) -> float:
    degrees = num / (num - 1) if num > 1 else 1.0
    return float(n / num * np.sqrt(degrees * (n - 1) / n))
