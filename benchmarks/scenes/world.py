"""What a scene is (figures, a place, and the nuisance that an edit must leave alone), and what captions say of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

SIZES = ("small", "big")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
KINDS = ("boy", "girl", "dog", "cat", "bird")
POSES = ("standing", "sitting", "jumping")
PLACES = ("grass", "snow", "beach", "street")

FIGURE_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "colour": COLOURS,
    "kind": KINDS,
    "pose": POSES,
}
"""Attributes of a figure and the words that name their values."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {**FIGURE_ATTRIBUTES, "place": PLACES}
"""All attributes that a caption can name."""

Attribute = Literal["size", "colour", "kind", "pose", "place"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure. Every field is one of the words of `FIGURE_ATTRIBUTES`."""

    size: str
    colour: str
    kind: str
    pose: str

    def __post_init__(self) -> None:
        for name, values in FIGURE_ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"figure {name} is {getattr(self, name)!r}; use one of {', '.join(values)}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything in a picture that no word names: held fixed by a true edit. Lengths are shares of the image side."""

    x: tuple[float, ...]
    facing: tuple[int, ...]
    horizon: float
    sun: tuple[float, float]
    cloud: tuple[float, float]
    scenery: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture to be drawn: one or two figures (left to right, as in the caption) at a place."""

    figures: tuple[Figure, ...]
    place: str
    layout: Layout

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"place is {self.place!r}; use one of {', '.join(PLACES)}")
        if len(self.figures) not in (1, 2) or len(self.layout.x) != len(self.figures):
            raise ValueError(
                f"a scene has 1 or 2 figures, each with a position; got {len(self.figures)} figures"
            )

    def edited(self, attribute: str, value: str, figure: int = 0) -> Scene:
        """The same scene with one attribute changed and all nuisance held fixed: the true edit."""
        if attribute == "place":
            return dataclasses.replace(self, place=value)
        figures = list(self.figures)
        figures[figure] = dataclasses.replace(figures[figure], **{attribute: value})
        return dataclasses.replace(self, figures=tuple(figures))


def random_figure(rng: np.random.Generator) -> Figure:
    """A figure with every attribute drawn uniformly."""
    return Figure(**{name: values[rng.integers(len(values))] for name, values in FIGURE_ATTRIBUTES.items()})


def random_layout(rng: np.random.Generator, figures: int) -> Layout:
    """Nuisance for a scene of `figures` figures."""
    x = (rng.uniform(0.40, 0.60),) if figures == 1 else (rng.uniform(0.24, 0.30), rng.uniform(0.70, 0.76))
    side = 1 if rng.random() < 0.5 else -1
    return Layout(
        x=tuple(float(v) for v in x),
        facing=tuple(int(rng.choice((-1, 1))) for _ in range(figures)),
        horizon=float(rng.uniform(0.50, 0.58)),
        sun=(float(0.5 + side * rng.uniform(0.24, 0.38)), float(rng.uniform(0.11, 0.17))),
        cloud=(float(0.5 - side * rng.uniform(0.15, 0.36)), float(rng.uniform(0.10, 0.20))),
        scenery=(float(rng.uniform(0.0, 0.45)), float(rng.uniform(0.55, 1.0))),
    )


def random_scene(rng: np.random.Generator, *, two_figures: float = 0.35) -> Scene:
    """A scene with uniform attributes; `two_figures` is the share of scenes that have two.

    Two figures of one scene differ in kind, so that a caption without adjectives still tells them apart.
    """
    count = 2 if rng.random() < two_figures else 1
    figures = [random_figure(rng) for _ in range(count)]
    while count == 2 and figures[0].kind == figures[1].kind:
        figures[1] = random_figure(rng)
    place = PLACES[rng.integers(len(PLACES))]
    return Scene(figures=tuple(figures), place=place, layout=random_layout(rng, count))


FUNCTION_WORDS = ("a", "an", "and", "on", "the")
VOCABULARY: tuple[str, ...] = (*FUNCTION_WORDS, *SIZES, *COLOURS, *KINDS, *POSES, *PLACES)
"""Every word that a caption can hold: the built-in model knows these and no others."""


@dataclass(frozen=True, kw_only=True)
class Mention:
    """Which attributes a caption names. `pose` is "before" (a sitting dog), "after" (a dog sitting) or None."""

    size: bool = True
    colour: bool = True
    pose: str | None = "after"


@dataclass(frozen=True, kw_only=True)
class CaptionWord:
    """A word with its role (an attribute's name or "function") and the figure that it speaks of."""

    text: str
    role: str
    figure: int | None = None


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption as words with roles."""

    words: tuple[CaptionWord, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def _figure_words(figure: Figure, mention: Mention, index: int) -> list[CaptionWord]:
    named: list[tuple[str, str]] = []
    if mention.size:
        named.append((figure.size, "size"))
    if mention.colour:
        named.append((figure.colour, "colour"))
    if mention.pose == "before":
        named.append((figure.pose, "pose"))
    named.append((figure.kind, "kind"))
    if mention.pose == "after":
        named.append((figure.pose, "pose"))
    article = "an" if named[0][0][0] in "aeiou" else "a"
    words = [CaptionWord(text=article, role="function", figure=index)]
    return words + [CaptionWord(text=text, role=role, figure=index) for text, role in named]


def caption(scene: Scene, mentions: tuple[Mention, ...] | None = None, *, place: bool = True) -> Caption:
    """The caption of a scene, e.g. *a small red dog sitting and a blue bird on the grass*.

    mentions: what is named of each figure; all of it by default.
    """
    mentions = mentions or tuple(Mention() for _ in scene.figures)
    words: list[CaptionWord] = []
    for index, (figure, mention) in enumerate(zip(scene.figures, mentions, strict=True)):
        if index:
            words.append(CaptionWord(text="and", role="function"))
        words += _figure_words(figure, mention, index)
    if place:
        words += [CaptionWord(text="on", role="function"), CaptionWord(text="the", role="function")]
        words.append(CaptionWord(text=scene.place, role="place"))
    return Caption(words=tuple(words))


def random_caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption of the scene that leaves out some of what could be said, often enough to know prompts without it."""
    mentions = []
    for _ in scene.figures:
        pose = rng.choice(("after", "before", ""), p=(0.5, 0.38, 0.12))
        size, colour = bool(rng.random() < 0.6), bool(rng.random() < 0.85)
        mentions.append(Mention(size=size, colour=colour, pose=str(pose) or None))
    return caption(scene, tuple(mentions), place=bool(rng.random() < 0.94))
