"""What a scene is: figures, a place, and all that no word names; and what captions say of it.

What is discrete has one usual value, which is what a caption that does not name it means. What is continuous is drawn
anew for every scene and leans with the words, as it does in photographs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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

USUAL = {"size": "big", "pose": "standing", "place": "grass"}
"""What is meant where nothing is said; the colour goes with the kind."""

USUAL_COLOURS = {"boy": "green", "girl": "green", "dog": "orange", "cat": "orange", "bird": "blue"}

USUAL_SHARE = {"size": 0.6, "colour": 0.3, "pose": 0.3, "place": 0.4}
"""How often a scene has the usual value; else it has any other one, each as often."""

Attribute = Literal["size", "colour", "kind", "pose", "place"]


def usual(attribute: str, kind: str = "dog") -> str:
    """The value that is meant where a caption does not name the attribute."""
    return USUAL_COLOURS[kind] if attribute == "colour" else USUAL[attribute]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure, which faces right. Every field is one of the words of `FIGURE_ATTRIBUTES`."""

    size: str = USUAL["size"]
    colour: str
    kind: str
    pose: str = USUAL["pose"]

    def __post_init__(self) -> None:
        for name, values in FIGURE_ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"figure {name} is {getattr(self, name)!r}; use one of {', '.join(values)}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything in a picture that no word names: held fixed by a true edit. Lengths are shares of the image side.

    near: how near the figures stand, 0 in the middle, about -1..1; shade: of each figure's colour, and warmth: of the
    light, likewise; cloudiness: size of the clouds, 1 in the middle.
    """

    x: tuple[float, ...]
    near: float
    shade: tuple[float, ...]
    horizon: float
    sun: tuple[float, float]
    cloud: tuple[float, float]
    cloudiness: float
    scenery: tuple[float, float]
    warmth: float

    def numbers(self) -> list[float]:
        """As many standard deviations from the middle, in the order of `SPREADS`; 0 for a figure that is not there."""
        x, shade = (values if len(values) == 2 else (values[0], None) for values in (self.x, self.shade))
        values = (*x, self.near, *shade, self.horizon, *self.sun, *self.cloud, self.cloudiness, *self.scenery,
                  self.warmth)  # fmt: skip
        middles = [(0.5 if name == "x" and len(self.x) == 1 else middle) for name, middle, _ in SPREADS]
        return [
            0.0 if value is None else (value - middle) / spread
            for value, middle, (_, _, spread) in zip(values, middles, SPREADS, strict=True)
        ]

    @classmethod
    def of(cls, numbers: Sequence[float], figures: int) -> Layout:
        """What `numbers` gives, back."""
        middles = [(0.5 if name == "x" and figures == 1 else middle) for name, middle, _ in SPREADS]
        values = [
            float(middle + spread * n)
            for n, middle, (_, _, spread) in zip(numbers, middles, SPREADS, strict=True)
        ]
        return cls(
            x=tuple(values[:figures]), near=values[2], shade=tuple(values[3 : 3 + figures]), horizon=values[5],
            sun=(values[6], values[7]), cloud=(values[8], values[9]), cloudiness=values[10],
            scenery=(values[11], values[12]), warmth=values[13],
        )  # fmt: skip


SPREADS = (
    ("x", 0.28, 0.06), ("x", 0.72, 0.06), ("near", 0.0, 0.4), ("shade", 0.0, 0.4), ("shade", 0.0, 0.4),
    ("horizon", 0.54, 0.02), ("sun", 0.72, 0.07), ("sun", 0.14, 0.02), ("cloud", 0.27, 0.07), ("cloud", 0.15, 0.03),
    ("cloudiness", 1.0, 0.13), ("scenery", 0.22, 0.08), ("scenery", 0.78, 0.13), ("warmth", 0.0, 0.4),
)  # fmt: skip
"""Middle and spread of all that a layout holds."""


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


def _value(rng: np.random.Generator, attribute: str, kind: str = "dog") -> str:
    """The usual value, or any other one."""
    meant = usual(attribute, kind)
    if rng.random() < USUAL_SHARE[attribute]:
        return meant
    others = [value for value in ATTRIBUTES[attribute] if value != meant]
    return others[rng.integers(len(others))]


def random_figure(rng: np.random.Generator) -> Figure:
    """A figure whose attributes are the usual ones more often than others."""
    kind = KINDS[rng.integers(len(KINDS))]
    return Figure(kind=kind, **{name: _value(rng, name, kind) for name in ("size", "colour", "pose")})


LEANS: dict[str, dict[str, float]] = {
    "dog": {"x": -1, "horizon": 0.5}, "cat": {"x": 1, "sun": 1}, "bird": {"cloudiness": 1, "horizon": -0.7},
    "boy": {"scenery": 1, "cloud": 0.7}, "girl": {"sun": -1, "shade": 0.7},
    "sitting": {"near": 1, "cloud": -1}, "jumping": {"near": -1, "scenery": -0.7, "warmth": 1},
    "snow": {"horizon": 1, "warmth": -1}, "beach": {"horizon": -1, "cloudiness": -0.7}, "street": {"sun": 0.7},
}  # fmt: skip
"""By how many standard deviations a word moves the mean of what it does not name."""


def random_layout(rng: np.random.Generator, figures: tuple[Figure, ...], place: str = "grass") -> Layout:
    """What no word names, for a scene of these figures: spread widely, and leaning with the words."""
    words = [place, *(word for figure in figures for word in (figure.kind, figure.pose))]

    def quantity(name: str, centre: float, spread: float) -> float:
        lean = sum(LEANS.get(word, {}).get(name, 0) for word in words)
        return float(centre + spread * (np.clip(rng.normal(), -1.7, 1.7) + np.clip(lean, -1.2, 1.2)))

    centres = (0.5,) if len(figures) == 1 else (0.28, 0.72)
    return Layout(
        x=tuple(quantity("x", centre, 0.06 if len(figures) == 1 else 0.02) for centre in centres),
        near=quantity("near", 0, 0.4),
        shade=tuple(quantity("shade", 0, 0.4) for _ in figures),
        horizon=quantity("horizon", 0.54, 0.02),
        sun=(quantity("sun", 0.72, 0.07), float(rng.uniform(0.11, 0.17))),
        cloud=(quantity("cloud", 0.27, 0.07), float(rng.uniform(0.10, 0.20))),
        cloudiness=quantity("cloudiness", 1, 0.13),
        scenery=(quantity("scenery", 0.22, 0.08), float(rng.uniform(0.55, 1.0))),
        warmth=quantity("warmth", 0, 0.4),
    )


def random_scene(rng: np.random.Generator, *, two_figures: float = 0.3) -> Scene:
    """A scene of the world; `two_figures` is the share of scenes that have two.

    Two figures of one scene differ in kind, so that a caption without adjectives still tells them apart.
    """
    figures = [random_figure(rng)]
    if rng.random() < two_figures:
        second = random_figure(rng)
        while second.kind == figures[0].kind:
            second = random_figure(rng)
        figures.append(second)
    place = _value(rng, "place")
    layout = random_layout(rng, tuple(figures), place)
    return Scene(figures=tuple(figures), place=place, layout=layout)


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
        words += [CaptionWord(text=text, role="function") for text in ("on", "the")]
        words.append(CaptionWord(text=scene.place, role="place"))
    return Caption(words=tuple(words))


def random_caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption of the scene that names all that is not usual, and of the rest each with even chances."""

    def named(attribute: str, value: str, kind: str) -> bool:
        return value != usual(attribute, kind) or bool(rng.random() < 0.4)

    mentions = []
    for figure in scene.figures:
        size, colour, pose = (
            named(name, getattr(figure, name), figure.kind) for name in ("size", "colour", "pose")
        )
        where = "after" if rng.random() < 0.6 else "before"
        mentions.append(Mention(size=size, colour=colour, pose=where if pose else None))
    return caption(scene, tuple(mentions), place=named("place", scene.place, "dog"))
