"""The scene world: captions say what there is, and nothing that can not be drawn is made."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scenes.world import (
    VOCABULARY,
    Figure,
    Layout,
    Mention,
    Scene,
    caption,
    random_caption,
    random_layout,
    random_scene,
)

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


def test_what_can_not_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="colour is 'pink'; use one of red"):
        Figure(size="small", colour="pink", kind="dog", pose="sitting")
    with pytest.raises(ValueError, match="place is 'moon'"):
        make_scene(DOG, place="moon")
    layout: Layout = random_layout(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="1 or 2 figures"):
        Scene(figures=(DOG, BIRD), place="grass", layout=layout)
