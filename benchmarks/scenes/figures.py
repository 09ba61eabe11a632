"""The figures as parts in a frame of their own: feet at the origin, y up, facing right, about one unit high.

A part is a polygon with a shade; a figure is a list of parts, back to front. The renderer places and colours them.
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


def _eye(x: float, y: float, r: float = 0.028) -> Part:
    return Part(ellipse(x, y, r, r * 1.25), EYE, outlined=False)


def _dog_head(x: float, y: float) -> list[Part]:
    return [
        Part(ellipse(x, y, 0.17, 0.16)),
        Part(limb((x + 0.10, y - 0.05), (x + 0.20, y - 0.06), 0.085, 0.07), MUZZLE),
        Part(ellipse(x + 0.26, y - 0.035, 0.038, 0.032), EYE, outlined=False),
        Part(ellipse(x - 0.09, y - 0.02, 0.065, 0.15, -12), 0.45),
        _eye(x + 0.06, y + 0.04),
    ]


def dog(pose: str) -> list[Part]:
    if pose == "sitting":
        return [
            Part(limb((-0.26, 0.08), (-0.46, 0.16), 0.045), 0.8),
            Part(limb((-0.10, 0.19), (0.10, 0.50), 0.19, 0.15)),
            Part(ellipse(-0.12, 0.15, 0.20, 0.15), 0.85),
            Part(limb((-0.08, 0.045), (0.10, 0.045), 0.05), 0.7),
            Part(limb((0.15, 0.46), (0.20, 0.06), 0.06), 0.9),
            *_dog_head(0.17, 0.76),
        ]
    if pose == "jumping":
        return [
            Part(limb((-0.42, 0.66), (-0.58, 0.86), 0.045), 0.8),
            Part(limb((-0.30, 0.56), (-0.56, 0.36), 0.06, 0.05), 0.7),
            Part(limb((-0.25, 0.56), (-0.44, 0.28), 0.06, 0.05), 0.9),
            Part(limb((0.22, 0.66), (0.50, 0.52), 0.06, 0.05), 0.7),
            Part(limb((-0.28, 0.58), (0.22, 0.72), 0.17)),
            Part(limb((0.20, 0.62), (0.46, 0.40), 0.06, 0.05), 0.9),
            *_dog_head(0.40, 0.94),
        ]
    return [
        Part(limb((-0.42, 0.50), (-0.56, 0.72), 0.045), 0.8),
        Part(limb((-0.22, 0.38), (-0.24, 0.06), 0.06), 0.7),
        Part(limb((0.14, 0.38), (0.12, 0.06), 0.06), 0.7),
        Part(limb((-0.28, 0.44), (0.22, 0.44), 0.17)),
        Part(limb((-0.34, 0.38), (-0.35, 0.06), 0.06), 0.9),
        Part(limb((0.26, 0.38), (0.26, 0.06), 0.06), 0.9),
        *_dog_head(0.36, 0.72),
    ]


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
    if pose == "sitting":
        return [
            Part(limb((-0.20, 0.06), (-0.40, 0.10), 0.042), 0.75),
            Part(limb((-0.40, 0.10), (-0.42, 0.34), 0.042), 0.75),
            Part(limb((0.0, 0.17), (0.05, 0.44), 0.20, 0.12)),
            Part(limb((0.02, 0.36), (0.02, 0.055), 0.048), 0.85),
            Part(limb((0.14, 0.36), (0.15, 0.055), 0.048), 0.85),
            *_cat_head(0.06, 0.68),
        ]
    if pose == "jumping":
        return [
            Part(limb((-0.34, 0.56), (-0.58, 0.62), 0.042), 0.75),
            Part(limb((-0.58, 0.62), (-0.68, 0.84), 0.042), 0.75),
            Part(limb((-0.28, 0.50), (-0.50, 0.28), 0.05, 0.042), 0.65),
            Part(limb((-0.20, 0.50), (-0.36, 0.22), 0.05, 0.042), 0.85),
            Part(limb((0.20, 0.66), (0.48, 0.60), 0.05, 0.042), 0.65),
            Part(limb((-0.26, 0.52), (0.20, 0.68), 0.135)),
            Part(limb((0.18, 0.60), (0.42, 0.44), 0.05, 0.042), 0.85),
            *_cat_head(0.32, 0.88),
        ]
    return [
        Part(limb((-0.36, 0.42), (-0.52, 0.56), 0.042), 0.75),
        Part(limb((-0.52, 0.56), (-0.46, 0.86), 0.042), 0.75),
        Part(limb((-0.20, 0.32), (-0.22, 0.05), 0.05), 0.65),
        Part(limb((0.10, 0.32), (0.09, 0.05), 0.05), 0.65),
        Part(limb((-0.26, 0.38), (0.18, 0.38), 0.135)),
        Part(limb((-0.31, 0.32), (-0.32, 0.05), 0.05), 0.85),
        Part(limb((0.21, 0.32), (0.22, 0.05), 0.05), 0.85),
        *_cat_head(0.27, 0.62),
    ]


def _bird_head(x: float, y: float) -> list[Part]:
    return [
        Part(polygon((x + 0.11, y + 0.06), (x + 0.34, y - 0.01), (x + 0.11, y - 0.07)), BEAK),
        Part(ellipse(x, y, 0.16, 0.155)),
        _eye(x + 0.06, y + 0.04, 0.032),
    ]


def bird(pose: str) -> list[Part]:
    if pose == "sitting":
        return [
            Part(polygon((-0.22, 0.20), (-0.62, 0.30), (-0.58, 0.14), (-0.22, 0.08)), 0.6),
            Part(ellipse(0.0, 0.20, 0.33, 0.20)),
            Part(ellipse(-0.08, 0.22, 0.20, 0.115, -8), 0.6),
            *_bird_head(0.27, 0.42),
        ]
    if pose == "jumping":
        return [
            Part(polygon((-0.20, 0.58), (-0.60, 0.50), (-0.56, 0.66), (-0.20, 0.68)), 0.6),
            Part(polygon((-0.02, 0.72), (0.14, 1.20), (0.36, 1.10), (0.20, 0.70)), 0.45),
            Part(ellipse(0.0, 0.64, 0.30, 0.17, 10)),
            Part(polygon((-0.20, 0.70), (-0.38, 1.22), (-0.12, 1.16), (0.08, 0.70)), 0.6),
            Part(limb((-0.10, 0.48), (-0.24, 0.38), 0.024), BEAK),
            *_bird_head(0.30, 0.80),
        ]
    return [
        Part(limb((-0.06, 0.34), (-0.06, 0.03), 0.026), BEAK),
        Part(limb((0.10, 0.34), (0.10, 0.03), 0.026), BEAK),
        Part(limb((-0.06, 0.03), (0.03, 0.03), 0.026), BEAK),
        Part(limb((0.10, 0.03), (0.19, 0.03), 0.026), BEAK),
        Part(polygon((-0.20, 0.46), (-0.60, 0.36), (-0.54, 0.54), (-0.18, 0.58)), 0.6),
        Part(ellipse(0.0, 0.50, 0.29, 0.20, 14)),
        Part(ellipse(-0.07, 0.50, 0.19, 0.11, 0), 0.6),
        *_bird_head(0.24, 0.76),
    ]


def _face(x: float, y: float) -> list[Part]:
    return [
        Part(ellipse(x, y, 0.13, 0.14), SKIN),
        _eye(x + 0.02, y + 0.0, 0.022),
        _eye(x + 0.09, y + 0.0, 0.022),
    ]


def boy(pose: str) -> list[Part]:
    if pose == "sitting":
        return [
            Part(limb((-0.02, 0.12), (0.34, 0.11), 0.085), 0.5),
            Part(limb((0.34, 0.11), (0.46, 0.12), 0.07, 0.06), INK),
            Part(limb((-0.04, 0.16), (-0.04, 0.44), 0.14, 0.13)),
            Part(limb((-0.04, 0.46), (0.18, 0.26), 0.055), 0.8),
            Part(ellipse(0.21, 0.24, 0.055, 0.055), SKIN),
            *_boy_head(-0.02, 0.70),
        ]
    if pose == "jumping":
        return [
            Part(limb((-0.07, 0.50), (-0.30, 0.32), 0.075), 0.5),
            Part(limb((0.07, 0.50), (0.32, 0.40), 0.075), 0.5),
            Part(limb((-0.30, 0.32), (-0.36, 0.26), 0.065), INK),
            Part(limb((0.32, 0.40), (0.40, 0.34), 0.065), INK),
            Part(limb((-0.12, 0.80), (-0.32, 1.06), 0.055), 0.8),
            Part(limb((0.12, 0.80), (0.32, 1.06), 0.055), 0.8),
            Part(ellipse(-0.34, 1.09, 0.055, 0.055), SKIN),
            Part(ellipse(0.34, 1.09, 0.055, 0.055), SKIN),
            Part(limb((0.0, 0.54), (0.0, 0.80), 0.135)),
            *_boy_head(0.0, 1.04),
        ]
    return [
        Part(limb((-0.075, 0.34), (-0.08, 0.08), 0.075), 0.5),
        Part(limb((0.075, 0.34), (0.08, 0.08), 0.075), 0.5),
        Part(limb((-0.09, 0.045), (-0.03, 0.045), 0.05), INK),
        Part(limb((0.07, 0.045), (0.14, 0.045), 0.05), INK),
        Part(limb((-0.13, 0.62), (-0.23, 0.38), 0.055), 0.8),
        Part(limb((0.13, 0.62), (0.23, 0.38), 0.055), 0.8),
        Part(ellipse(-0.235, 0.345, 0.055, 0.055), SKIN),
        Part(ellipse(0.235, 0.345, 0.055, 0.055), SKIN),
        Part(limb((0.0, 0.38), (0.0, 0.62), 0.135)),
        *_boy_head(0.0, 0.86),
    ]


def _boy_head(x: float, y: float) -> list[Part]:
    return [
        *_face(x, y),
        Part(polygon((x - 0.15, y + 0.01), (x - 0.13, y + 0.14), (x, y + 0.19), (x + 0.12, y + 0.14),
                     (x + 0.13, y + 0.07), (x - 0.04, y + 0.07), (x - 0.08, y - 0.03)), HAIR),
    ]  # fmt: skip


def _girl_hair(x: float, y: float) -> Part:
    return Part(polygon((x - 0.21, y - 0.26), (x - 0.20, y + 0.06), (x - 0.10, y + 0.20), (x + 0.08, y + 0.20),
                        (x + 0.17, y + 0.08), (x + 0.17, y - 0.06), (x + 0.02, y - 0.22)), (196, 122, 40))  # fmt: skip


def _girl_head(x: float, y: float) -> list[Part]:
    fringe = polygon((x - 0.14, y + 0.02), (x - 0.10, y + 0.17), (x + 0.06, y + 0.18), (x + 0.13, y + 0.08))
    return [*_face(x, y), Part(fringe, (196, 122, 40), outlined=False)]


def girl(pose: str) -> list[Part]:
    if pose == "sitting":
        return [
            _girl_hair(-0.02, 0.70),
            Part(limb((0.20, 0.08), (0.42, 0.08), 0.05), SKIN),
            Part(limb((0.42, 0.08), (0.46, 0.12), 0.055), INK),
            Part(
                polygon((-0.12, 0.54), (0.10, 0.54), (0.34, 0.16), (0.30, 0.02), (-0.30, 0.02), (-0.28, 0.14))
            ),
            Part(limb((0.04, 0.46), (0.20, 0.26), 0.05), 0.75),
            Part(ellipse(0.22, 0.24, 0.052, 0.052), SKIN),
            *_girl_head(-0.02, 0.70),
        ]
    if pose == "jumping":
        return [
            _girl_hair(0.0, 1.04),
            Part(limb((-0.10, 0.46), (-0.24, 0.26), 0.05), SKIN),
            Part(limb((0.12, 0.46), (0.30, 0.34), 0.05), SKIN),
            Part(limb((-0.24, 0.26), (-0.28, 0.22), 0.055), INK),
            Part(limb((0.30, 0.34), (0.36, 0.30), 0.055), INK),
            Part(limb((-0.10, 0.80), (-0.32, 1.06), 0.05), 0.75),
            Part(limb((0.10, 0.80), (0.32, 1.06), 0.05), 0.75),
            Part(ellipse(-0.34, 1.09, 0.052, 0.052), SKIN),
            Part(ellipse(0.34, 1.09, 0.052, 0.052), SKIN),
            Part(polygon((-0.11, 0.90), (0.11, 0.90), (0.34, 0.44), (-0.34, 0.44))),
            *_girl_head(0.0, 1.04),
        ]
    return [
        _girl_hair(0.0, 0.86),
        Part(limb((-0.08, 0.28), (-0.08, 0.07), 0.05), SKIN),
        Part(limb((0.08, 0.28), (0.08, 0.07), 0.05), SKIN),
        Part(limb((-0.09, 0.045), (-0.04, 0.045), 0.045), INK),
        Part(limb((0.07, 0.045), (0.12, 0.045), 0.045), INK),
        Part(limb((-0.11, 0.64), (-0.27, 0.42), 0.05), 0.75),
        Part(limb((0.11, 0.64), (0.27, 0.42), 0.05), 0.75),
        Part(ellipse(-0.285, 0.39, 0.052, 0.052), SKIN),
        Part(ellipse(0.285, 0.39, 0.052, 0.052), SKIN),
        Part(polygon((-0.11, 0.72), (0.11, 0.72), (0.28, 0.24), (-0.28, 0.24))),
        *_girl_head(0.0, 0.86),
    ]


DRAW = {"boy": boy, "girl": girl, "dog": dog, "cat": cat, "bird": bird}
"""From the word of a kind to its parts in a pose."""
