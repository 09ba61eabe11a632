"""The figures as parts in a frame of their own: feet at the origin, y up, facing right, about one unit high.

A part is a polygon with a shade; a figure is a list of parts, back to front. The renderer places and colours them.
A pose is where the joints are; what hangs on them is the kind's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A polygon [n, 2] and what paints it: a shade of the figure's colour (0 = dark, 1 = full) or a fixed RGB."""

    points: Points
    paint: float | tuple[int, int, int] = 1.0
    outlined: bool = True


SKIN = (241, 194, 152)
HAIR = (92, 58, 36)
BLOND = (196, 122, 40)
BEAK = (240, 140, 30)
INK = (34, 30, 40)
EYE = (20, 18, 24)
MUZZLE = (250, 236, 214)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0, n: int = 28) -> Points:
    angle = np.linspace(0, 2 * math.pi, n, endpoint=False)
    turn = math.radians(degrees)
    px, py = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack(
        [x + px * math.cos(turn) - py * math.sin(turn), y + px * math.sin(turn) + py * math.cos(turn)], axis=1
    )


def limb(a: Point, b: Point, radius: float, end: float | None = None) -> Points:
    """A line with round ends whose radius goes from `radius` at `a` to `end` at `b`."""
    end = radius if end is None else end
    along = math.atan2(b[1] - a[1], b[0] - a[0])
    back = np.linspace(along + math.pi / 2, along + 3 * math.pi / 2, 9)
    front = np.linspace(along - math.pi / 2, along + math.pi / 2, 9)
    first = np.stack([a[0] + radius * np.cos(back), a[1] + radius * np.sin(back)], axis=1)
    last = np.stack([b[0] + end * np.cos(front), b[1] + end * np.sin(front)], axis=1)
    return np.concatenate([first, last])


def polygon(*points: Point) -> Points:
    return np.array(points, dtype=np.float64)


def _at(x: float, y: float, *points: Point) -> Points:
    return np.array(points, dtype=np.float64) + np.array([x, y])


def _eye(x: float, y: float, r: float = 0.028) -> Part:
    return Part(ellipse(x, y, r, r * 1.25), EYE, outlined=False)


@dataclass(frozen=True)
class _Animal:
    """Joints of a pose. feet: hind far, hind near, fore far, fore near."""

    hip: Point
    shoulder: Point
    feet: tuple[Point, Point, Point, Point]
    tail: Point
    head: Point


_STAND = ((-0.28, 0.44), (0.22, 0.44))
ANIMALS = {
    "standing": _Animal(
        *_STAND, ((-0.24, 0.06), (-0.35, 0.06), (0.12, 0.06), (0.26, 0.06)), (-0.56, 0.72), (0.36, 0.72)
    ),
    "jumping": _Animal(
        (-0.28, 0.58), (0.22, 0.72), ((-0.56, 0.36), (-0.44, 0.28), (0.50, 0.52), (0.46, 0.40)),
        (-0.58, 0.86), (0.40, 0.94),
    ),
    "sitting": _Animal(
        (-0.10, 0.19), (0.10, 0.50), ((0.06, 0.05), (0.10, 0.05), (0.12, 0.06), (0.20, 0.06)),
        (-0.46, 0.16), (0.17, 0.76),
    ),
}  # fmt: skip


def _animal(at: _Animal, body: float, leg: float) -> list[Part]:
    """Tail, legs and body."""
    (hx, hy), (sx, sy) = at.hip, at.shoulder
    roots = ((hx + 0.05, hy - 0.04), (hx - 0.05, hy - 0.04), (sx - 0.06, sy - 0.04), (sx + 0.02, sy - 0.04))
    shades = (0.7, 0.9, 0.7, 0.9)
    legs = [
        Part(limb(root, foot, leg), shade) for root, foot, shade in zip(roots, at.feet, shades, strict=True)
    ]
    return [
        Part(limb((hx - 0.12, hy + 0.02), at.tail, 0.75 * leg), 0.8),
        legs[0], legs[2], Part(limb(at.hip, at.shoulder, body)), legs[1], legs[3],
    ]  # fmt: skip


def _dog_head(x: float, y: float) -> list[Part]:
    return [
        Part(ellipse(x, y, 0.17, 0.16)),
        Part(limb((x + 0.10, y - 0.05), (x + 0.20, y - 0.06), 0.085, 0.07), MUZZLE),
        Part(ellipse(x + 0.26, y - 0.035, 0.038, 0.032), EYE, outlined=False),
        Part(ellipse(x - 0.09, y - 0.02, 0.065, 0.15, -12), 0.45),
        _eye(x + 0.06, y + 0.04),
    ]


def dog(pose: str) -> list[Part]:
    at = ANIMALS[pose]
    return [*_animal(at, 0.17, 0.06), *_dog_head(*at.head)]


def _cat_head(x: float, y: float) -> list[Part]:
    return [
        Part(polygon((x - 0.17, y + 0.04), (x - 0.15, y + 0.29), (x - 0.01, y + 0.13))),
        Part(polygon((x + 0.17, y + 0.04), (x + 0.15, y + 0.29), (x + 0.01, y + 0.13))),
        Part(ellipse(x, y, 0.19, 0.155)),
        Part(ellipse(x, y - 0.06, 0.075, 0.055), MUZZLE, outlined=False),
        Part(ellipse(x, y - 0.035, 0.022, 0.016), (214, 96, 110), outlined=False),
        _eye(x - 0.075, y + 0.03, 0.032),
        _eye(x + 0.075, y + 0.03, 0.032),
    ]


def cat(pose: str) -> list[Part]:
    at = ANIMALS[pose]
    head = at.head[0] - 0.09, at.head[1] - 0.08
    tip = at.tail[0] + 0.04, at.tail[1] + 0.26
    tail = Part(limb(at.tail, tip, 0.042), 0.75)
    return [tail, *_animal(at, 0.14, 0.052), *_cat_head(*head)]


def _bird_head(x: float, y: float) -> list[Part]:
    return [
        Part(polygon((x + 0.11, y + 0.06), (x + 0.34, y - 0.01), (x + 0.11, y - 0.07)), BEAK),
        Part(ellipse(x, y, 0.16, 0.155)),
        _eye(x + 0.06, y + 0.04, 0.032),
    ]


def _bird_leg(x: float, y: float, foot: Point) -> list[Part]:
    return [
        Part(limb((x, y), foot, 0.026), BEAK),
        Part(limb(foot, (foot[0] + 0.09, foot[1]), 0.026), BEAK),
    ]


BIRDS: dict[str, tuple[Point, float, Point, tuple[Point, ...]]] = {
    "standing": ((0.0, 0.50), 14, (0.24, 0.76), ((-0.06, 0.03), (0.10, 0.03))),
    "jumping": ((0.0, 0.64), 10, (0.30, 0.80), ((-0.26, 0.38),)),
    "sitting": ((0.0, 0.20), 8, (0.27, 0.42), ()),
}
"""Of a bird's pose: middle of the body, its slope in degrees, head, feet."""


def bird(pose: str) -> list[Part]:
    (x, y), slope, head, feet = BIRDS[pose]
    tail = polygon((-0.20, -0.04), (-0.60, -0.12), (-0.56, 0.05), (-0.18, 0.08))
    turn = math.radians(slope)
    tail = tail @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) + (x, y)
    legs = [
        part for place, foot in enumerate(feet) for part in _bird_leg(x - 0.06 + 0.16 * place, y - 0.16, foot)
    ]
    body = [Part(tail, 0.6), Part(ellipse(x, y, 0.31, 0.19, slope))]
    if pose == "jumping":
        wings = [polygon((-0.02, 0.08), (0.14, 0.56), (0.36, 0.46), (0.20, 0.06)),
                 polygon((-0.20, 0.06), (-0.38, 0.58), (-0.12, 0.52), (0.08, 0.06))]  # fmt: skip
        body = [Part(wings[0] + (x, y), 0.45), *body, Part(wings[1] + (x, y), 0.6)]
    else:
        body.append(Part(ellipse(x - 0.07, y, 0.19, 0.11, slope - 10), 0.6))
    return [*legs, *body, *_bird_head(*head)]


@dataclass(frozen=True)
class _Person:
    """Joints of a pose. feet and hands: far, near."""

    hips: Point
    neck: Point
    head: Point
    feet: tuple[Point, Point]
    hands: tuple[Point, Point]


PEOPLE = {
    "standing": _Person(
        (0.0, 0.38),
        (0.0, 0.62),
        (0.0, 0.86),
        ((-0.08, 0.05), (0.08, 0.05)),
        ((-0.235, 0.345), (0.235, 0.345)),
    ),
    "jumping": _Person(
        (0.0, 0.54), (0.0, 0.80), (0.0, 1.04), ((-0.33, 0.29), (0.36, 0.37)), ((-0.34, 1.09), (0.34, 1.09))
    ),
    "sitting": _Person(
        (-0.04, 0.16),
        (-0.04, 0.44),
        (-0.02, 0.70),
        ((0.38, 0.09), (0.40, 0.12)),
        ((-0.22, 0.16), (0.21, 0.24)),
    ),
}


def _face(x: float, y: float) -> list[Part]:
    return [Part(ellipse(x, y, 0.13, 0.14), SKIN), _eye(x + 0.02, y, 0.022), _eye(x + 0.09, y, 0.022)]


def _arms(at: _Person, radius: float, shade: float) -> list[Part]:
    x, y = at.neck
    arms = [Part(limb((x + side * 0.12, y), hand, radius), shade)
            for side, hand in zip((-1, 1), at.hands, strict=True)]  # fmt: skip
    return arms + [Part(ellipse(*hand, 0.055, 0.055), SKIN) for hand in at.hands]


def _shoes(at: _Person) -> list[Part]:
    return [Part(limb(foot, (foot[0] + 0.06, foot[1]), 0.05), INK) for foot in at.feet]


def boy(pose: str) -> list[Part]:
    at = PEOPLE[pose]
    (x, y), (hx, hy) = at.head, at.hips
    legs = [Part(limb((hx + side * 0.06, hy), foot, 0.075), 0.5)
            for side, foot in zip((-1, 1), at.feet, strict=True)]  # fmt: skip
    hair = _at(x, y, (-0.15, 0.01), (-0.13, 0.14), (0, 0.19), (0.12, 0.14), (0.13, 0.07), (-0.04, 0.07),
               (-0.08, -0.03))  # fmt: skip
    torso = Part(limb(at.hips, at.neck, 0.135))
    return [*legs, *_shoes(at), *_arms(at, 0.055, 0.8), torso, *_face(x, y), Part(hair, HAIR)]


def girl(pose: str) -> list[Part]:
    at = PEOPLE[pose]
    hips, neck = np.array(at.hips), np.array(at.neck)
    along = (hips - neck) / np.linalg.norm(hips - neck)
    across, hem = np.array([-along[1], along[0]]), hips + 0.14 * along
    top = neck - 0.10 * along
    dress = np.array([top - 0.11 * across, top + 0.11 * across, hem + 0.28 * across, hem - 0.28 * across])
    dress[:, 1] = dress[:, 1].clip(0.02)
    x, y = at.head
    back = _at(x, y, (-0.21, -0.26), (-0.20, 0.06), (-0.10, 0.20), (0.08, 0.20), (0.17, 0.08), (0.17, -0.06),
               (0.02, -0.22))  # fmt: skip
    fringe = _at(x, y, (-0.14, 0.02), (-0.10, 0.17), (0.06, 0.18), (0.13, 0.08))
    back[:, 1] = back[:, 1].clip(0.02)
    legs = [Part(limb((float(hips[0]) + side * 0.08, float(hips[1])), foot, 0.05), SKIN)
            for side, foot in zip((-1, 1), at.feet, strict=True)]  # fmt: skip
    parts = [Part(back, BLOND), *legs, *_shoes(at), *_arms(at, 0.05, 0.75), Part(dress)]
    return [*parts, *_face(x, y), Part(fringe, BLOND, outlined=False)]


DRAW = {"boy": boy, "girl": girl, "dog": dog, "cat": cat, "bird": bird}
"""From the word of a kind to its parts in a pose, back to front."""
