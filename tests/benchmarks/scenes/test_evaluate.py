"""Where words look, as a figure."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from PIL import Image

from benchmarks.scenes.dataset import held_out, scene_at
from benchmarks.scenes.evaluate import area_under_curve, picture_report, unseen
from benchmarks.scenes.reader import Reader
from benchmarks.scenes.world import FIGURE_ATTRIBUTES
from tests.benchmarks.quality.fake_reader import PerfectReader


@pytest.mark.parametrize(
    ("scores", "area"), [([3, 2, 1, 0], 1.0), ([0, 1, 2, 3], 0.0), ([1, 1, 1, 1], 0.5), ([3, 1, 2, 0], 0.75)]
)
def test_area_under_curve(scores: list[float], area: float) -> None:
    inside = np.array([True, True, False, False])
    assert area_under_curve(np.array(scores, float), inside) == area
    assert np.isnan(area_under_curve(np.array(scores, float), np.zeros(4, bool)))


def test_half_of_the_unseen_prompts_leave_something_open() -> None:
    chosen = unseen(40)
    assert all(held_out(scene) for scene, _ in chosen)
    named = [len({(w.role, w.figure) for w in words.words if w.role != "function"}) for _, words in chosen]
    whole = [4 * len(scene.figures) + 1 for scene, _ in chosen]
    full = [count == wanted for count, wanted in zip(named, whole, strict=True)]
    assert 15 <= sum(full) <= 25


def test_a_report_counts_what_is_right_and_what_is_well_drawn() -> None:
    reader, scenes = PerfectReader(), [scene_at(index) for index in range(3)]
    pictures = [reader.draw(scene) for scene in scenes]
    spoilt = np.asarray(pictures[2]).copy()
    spoilt[40:60, 40:60] = 255 - spoilt[40:60, 40:60]
    reader.learn(Image.fromarray(spoilt), scenes[2])
    found = picture_report(cast(Reader, reader), [*pictures[:2], Image.fromarray(spoilt)], scenes)
    assert set(found["pictures"]) >= {*FIGURE_ATTRIBUTES, "count", "place", "everything"}
    assert found["pictures"]["everything"] == 1 and found["pictures"]["well drawn"] == pytest.approx(2 / 3)
    assert found["words"][scenes[0].place] == 1
