"""The scene world: captions say what is drawn, and a true edit changes nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from adapedit.scenes.captions import VOCABULARY, Mention, caption, random_caption
from adapedit.scenes.render import GROUND_LINE, IMAGE_SIZE, render
from adapedit.scenes.world import FIGURE_ATTRIBUTES, Figure, Layout, Scene, random_layout, random_scene
from adapedit.training.data import grid_masks, held_out, scene_at

DOG = Figure(size="small", colour="red", kind="dog", pose="sitting")
BIRD = Figure(size="big", colour="orange", kind="bird", pose="standing")


def make_scene(*figures: Figure, seed: int = 0, place: str = "grass") -> Scene:
    return Scene(
        figures=figures, place=place, layout=random_layout(np.random.default_rng(seed), len(figures))
    )


def test_captions_name_what_they_are_asked_to() -> None:
    assert caption(make_scene(DOG)).text == "a small red dog sitting on the grass"
    before = (Mention(size=False, pose="before"),)
    assert caption(make_scene(DOG), before).text == "a red sitting dog on the grass"
    bare = (Mention(size=False, colour=False, pose=None), Mention(size=False))
    assert caption(make_scene(DOG, BIRD), bare).text == "a dog and an orange bird standing on the grass"


def test_words_know_their_figure_and_role() -> None:
    words = caption(make_scene(DOG, BIRD)).words
    assert [(w.text, w.figure) for w in words if w.role == "kind"] == [("dog", 0), ("bird", 1)]
    assert [w.text for w in words if w.role == "place"] == ["grass"]


def test_random_captions_use_the_vocabulary_and_all_of_it() -> None:
    rng = np.random.default_rng(3)
    seen: set[str] = set()
    for _ in range(400):
        seen.update(random_caption(random_scene(rng), rng).text.split())
    assert seen == set(VOCABULARY)


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
    either = np.maximum(before.masks[0], after.masks[0]) > 0
    shadow = np.zeros_like(either)
    shadow[int((GROUND_LINE - 0.06) * IMAGE_SIZE) : int((GROUND_LINE + 0.07) * IMAGE_SIZE)] = True
    assert changed[either].mean() > 0.1
    assert not changed[~either & ~shadow].any()
    assert np.array_equal(before.masks[1], after.masks[1])


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


def test_scenes_are_functions_of_seed_and_index() -> None:
    assert scene_at(7) == scene_at(7) != scene_at(8)
    assert scene_at(7) != scene_at(7, 1)
    share = np.mean([held_out(scene_at(i)) for i in range(600)])
    assert 0.05 < share < 0.16


def test_what_can_not_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="colour is 'pink'; use one of red"):
        Figure(size="small", colour="pink", kind="dog", pose="sitting")
    with pytest.raises(ValueError, match="place is 'moon'"):
        make_scene(DOG, place="moon")
    layout: Layout = random_layout(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="1 or 2 figures"):
        Scene(figures=(DOG, BIRD), place="grass", layout=layout)
