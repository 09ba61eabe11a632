"""Where words look, as a figure."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scenes.evaluate import area_under_curve


@pytest.mark.parametrize(
    ("scores", "area"), [([3, 2, 1, 0], 1.0), ([0, 1, 2, 3], 0.0), ([1, 1, 1, 1], 0.5), ([3, 1, 2, 0], 0.75)]
)
def test_area_under_curve(scores: list[float], area: float) -> None:
    inside = np.array([True, True, False, False])
    assert area_under_curve(np.array(scores, float), inside) == area
    assert np.isnan(area_under_curve(np.array(scores, float), np.zeros(4, bool)))
