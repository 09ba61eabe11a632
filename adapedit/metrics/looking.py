"""Do words look where they point? The area under the ROC curve of a map against a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def area_under_curve(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Probability that a pixel inside scores higher than one outside, ties counting half (Mann-Whitney).

    scores, positive: of one shape. 0.5 is chance, 1 a perfect ranking; NaN where one of the two is empty.
    """
    inside, outside = scores[positive], scores[~positive]
    if not inside.size or not outside.size:
        return float("nan")
    order = np.sort(outside)
    below = np.searchsorted(order, inside, side="left")
    ties = np.searchsorted(order, inside, side="right") - below
    return float((below + 0.5 * ties).mean() / outside.size)
