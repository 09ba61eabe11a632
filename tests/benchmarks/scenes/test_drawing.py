"""The scene world: pictures are repeatable, and a true edit changes nothing else."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from skimage.morphology import dilation, disk

from benchmarks.scenes.dataset import grid_masks
from benchmarks.scenes.drawing import GROUND_LINE, IMAGE_SIZE, render
from benchmarks.scenes.world import (
    FIGURE_ATTRIBUTES,
    KINDS,
    POSES,
    Figure,
    Scene,
    random_layout,
)

DOG = Figure(size="small", colour="red", kind="dog", pose="sitting")
BIRD = Figure(size="big", colour="orange", kind="bird", pose="standing")


def make_scene(*figures: Figure, seed: int = 0, place: str = "grass") -> Scene:
    return Scene(figures=figures, place=place, layout=random_layout(np.random.default_rng(seed), figures))


def test_pictures_are_anti_aliased_and_repeatable() -> None:
    scene = make_scene(DOG)
    picture = render(scene)
    assert picture.image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and picture.image.dtype == np.uint8
    assert np.array_equal(picture.image, render(scene).image)
    edge = (picture.masks[0] > 0) & (picture.masks[0] < 1)
    assert 40 < edge.sum() < 2000  # a line of partly covered pixels around the figure, not steps


@pytest.mark.parametrize("attribute", FIGURE_ATTRIBUTES)
def test_a_true_edit_leaves_everything_else_alone(attribute: str) -> None:
    scene = make_scene(DOG, BIRD)
    value = next(v for v in FIGURE_ATTRIBUTES[attribute] if v != getattr(DOG, attribute))
    before, after = render(scene), render(scene.edited(attribute, value))
    changed = (before.image != after.image).any(axis=2)
    # A dog's nose reaches over its outline by part of a pixel.
    either = dilation(np.maximum(before.masks[0], after.masks[0]) > 0, disk(1))
    shadow = np.zeros_like(either)
    shadow[int((GROUND_LINE - 0.10) * IMAGE_SIZE) : int((GROUND_LINE + 0.11) * IMAGE_SIZE)] = True
    assert changed[either].mean() > 0.1
    assert not changed[~either & ~shadow].any()
    assert np.array_equal(before.masks[1], after.masks[1])


@pytest.mark.parametrize("kind", KINDS)
def test_poses_can_be_told_apart(kind: str) -> None:
    layout = make_scene(DOG, seed=1).layout
    figures = [Figure(colour="red", kind=kind, pose=pose) for pose in POSES]
    scenes = [Scene(figures=(figure,), place="grass", layout=layout) for figure in figures]
    for one, two in combinations([render(scene).image.astype(int) for scene in scenes], 2):
        assert (np.abs(one - two).max(2) > 60).sum() > 300


def test_an_edit_of_the_place_keeps_figures_sun_and_cloud() -> None:
    scene = make_scene(DOG)
    before, after = render(scene), render(scene.edited("place", "snow"))
    inside = before.masks[0] == 1
    assert np.array_equal(before.image[inside], after.image[inside])
    x, y = (round(v * IMAGE_SIZE) for v in scene.layout.sun)
    assert np.array_equal(before.image[y, x], after.image[y, x])
    assert (before.image != after.image).any(axis=2).mean() > 0.5


def test_masks_cover_the_figures_and_stay_apart() -> None:
    scene = make_scene(DOG, BIRD)
    masks = render(scene).masks
    assert masks.shape == (2, IMAGE_SIZE, IMAGE_SIZE) and masks.sum(0).max() <= 1 + 1e-6
    left, right = (np.average(np.arange(IMAGE_SIZE), weights=mask.sum(0)) for mask in masks)
    assert left < IMAGE_SIZE / 2 < right
    grid = grid_masks(masks)
    assert grid.shape == (2, 16, 16)
    assert abs(grid.sum() / 255 * 64 - masks.sum()) < 0.01 * masks.sum()
