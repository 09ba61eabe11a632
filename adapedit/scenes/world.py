"""What a scene is: figures with attributes, a place, and the nuisance that an edit must leave alone."""

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
