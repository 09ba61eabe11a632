"""The scene world: captions say what there is, and nothing that can not be drawn is made."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scenes.world import (
    FIGURE_ATTRIBUTES,
    SPREADS,
    VOCABULARY,
    Figure,
    Layout,
    Mention,
    Scene,
    caption,
    random_caption,
    random_layout,
    random_scene,
    usual,
)

DOG = Figure(size="small", colour="red", kind="dog", pose="sitting")
BIRD = Figure(size="big", colour="orange", kind="bird", pose="standing")


def make_scene(*figures: Figure, seed: int = 0, place: str = "grass") -> Scene:
    return Scene(figures=figures, place=place, layout=random_layout(np.random.default_rng(seed), figures))


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
    for _ in range(900):
        seen.update(random_caption(random_scene(rng), rng).text.split())
    assert seen == set(VOCABULARY)


def test_what_is_not_named_is_usual() -> None:
    """And leaves something open two times of three, in one-figure scenes and in others."""
    rng, opened = np.random.default_rng(4), 0
    for _ in range(600):
        scene = random_scene(rng)
        found = random_caption(scene, rng)
        said = {(word.role, word.figure) for word in found.words}
        for index, figure in enumerate(scene.figures):
            for name in FIGURE_ATTRIBUTES:
                unnamed = (name, index) not in said
                assert not unnamed or getattr(figure, name) == usual(name, figure.kind)
        assert ("place", None) in said or scene.place == usual("place")
        names = ("size", "colour", "pose")
        opened += not {("place", None), *((n, i) for n in names for i in range(len(scene.figures)))} <= said
    assert opened > 400


def test_layouts_lean_with_the_words_and_vary_more_than_they_lean() -> None:
    def cloudiness(kind: str) -> np.ndarray:
        figures = (Figure(colour="red", kind=kind),)
        return np.array([random_layout(np.random.default_rng(i), figures).cloudiness for i in range(300)])

    birds, dogs = cloudiness("bird"), cloudiness("dog")
    assert 0.6 < (birds.mean() - dogs.mean()) / dogs.std() < 1.6


def test_layouts_are_numbers_and_back() -> None:
    for index in range(20):
        scene = random_scene(np.random.default_rng(index))
        numbers = scene.layout.numbers()
        assert len(numbers) == len(SPREADS) and max(map(abs, numbers)) < 5
        again = Layout.of(numbers, len(scene.figures))
        assert np.allclose(again.numbers(), numbers) and np.allclose(again.x, scene.layout.x)


def test_what_can_not_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="colour is 'grey'; use one of red"):
        Figure(size="small", colour="grey", kind="dog", pose="sitting")
    with pytest.raises(ValueError, match="place is 'moon'"):
        make_scene(DOG, place="moon")
    layout: Layout = random_layout(np.random.default_rng(0), (DOG,))
    with pytest.raises(ValueError, match="1 or 2 figures"):
        Scene(figures=(DOG, BIRD), place="grass", layout=layout)
