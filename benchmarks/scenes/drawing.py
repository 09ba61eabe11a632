"""Scenes to pixels: drawn four times too large and averaged down, which is the anti-aliasing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.scenes.figures import DRAW, INK, Part, ellipse
from benchmarks.scenes.world import Figure, Layout, Scene

IMAGE_SIZE = 128
"""Side of a rendered picture, pixels."""

OVERSAMPLING = 3
OUTLINE = 0.0135
"""Width of the ink line around a figure's parts, as a share of the image side."""

RGB = {
    "red": (216, 40, 42),
    "orange": (248, 134, 24),
    "yellow": (252, 214, 40),
    "green": (30, 146, 66),
    "blue": (42, 94, 222),
    "purple": (142, 52, 188),
    "black": (58, 56, 66),
    "white": (250, 250, 252),
}
"""What a colour word looks like, sRGB."""

HEIGHT = {("small", 1): 0.30, ("big", 1): 0.52, ("small", 2): 0.27, ("big", 2): 0.43}
"""Length of a figure's unit as a share of the image side, by size word and number of figures."""

GROUND_LINE = 0.84
"""Where figures stand, from the top."""

NEARER = 0.07
"""By how much figures that stand nearer are larger, and by half of it lower."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A rendered scene. image: [S, S, 3] uint8 sRGB; masks: [figures, S, S] float32 coverage in 0..1."""

    image: NDArray[np.uint8]
    masks: NDArray[np.float32]


def _darker(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (min(255, round(channel * share)) for channel in colour)
    return red, green, blue


class _Canvas:
    """An oversampled drawing surface with coordinates in shares of the image side, y down."""

    def __init__(self, size: int, mode: str = "RGB") -> None:
        self.side = size * OVERSAMPLING
        self.picture = Image.new(mode, (self.side, self.side))
        self.pen = ImageDraw.Draw(self.picture)

    def polygon(self, points: NDArray[np.float64], fill: object, grow: float = 0.0) -> None:
        xy = [(float(x), float(y)) for x, y in points * self.side]
        self.pen.polygon(xy, fill=fill)  # type: ignore[arg-type]
        if grow:
            width = max(1, round(2 * grow * self.side))
            self.pen.line([*xy, xy[0], xy[1]], fill=fill, width=width, joint="curve")  # type: ignore[arg-type]

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int]) -> None:
        self.pen.rectangle([round(v * self.side) for v in (x0, y0, x1, y1)], fill=fill)

    def blob(self, x: float, y: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        self.polygon(ellipse(x, y, rx, ry), fill)

    def colour_at(self, x: float, y: float) -> tuple[int, int, int]:
        pixel = self.picture.getpixel((int(x * self.side), int(y * self.side)))
        assert isinstance(pixel, tuple)
        return pixel[0], pixel[1], pixel[2]

    def pixels(self) -> NDArray[np.uint8]:
        return np.asarray(self.picture.reduce(OVERSAMPLING))


def _scenery(canvas: _Canvas, place: str, layout: Layout) -> None:
    horizon, (left, right) = layout.horizon, layout.scenery
    if place == "grass":
        canvas.box(0, 0, 1, 1, (176, 220, 246))
        canvas.blob(left, horizon + 0.02, 0.34, 0.14, (150, 206, 132))
        canvas.blob(right, horizon + 0.03, 0.30, 0.10, (138, 198, 122))
        canvas.box(0, horizon, 1, 1, (122, 190, 92))
        for x, y in ((0.07, 0.70), (0.30, 0.94), (0.56, 0.93), (0.78, 0.95), (0.93, 0.73)):
            for lean in (-0.016, 0.0, 0.016):
                canvas.polygon(
                    np.array([(x - 0.008, y), (x + lean, y - 0.05), (x + 0.008, y)]), (88, 154, 66)
                )
    elif place == "snow":
        canvas.box(0, 0, 1, 1, (190, 202, 226))
        for x in (left, right):
            canvas.box(x - 0.012, horizon - 0.03, x + 0.012, horizon + 0.03, (110, 84, 70))
            for width, y in ((0.10, 0.0), (0.08, -0.08), (0.055, -0.15)):
                tip = np.array([(x - width, horizon + y), (x, horizon + y - 0.13), (x + width, horizon + y)])
                canvas.polygon(tip, (74, 122, 112))
        canvas.blob(0.3, horizon + 0.05, 0.55, 0.07, (228, 234, 246))
        canvas.box(0, horizon + 0.03, 1, 1, (236, 240, 250))
        canvas.blob(0.8, 0.99, 0.42, 0.08, (218, 226, 242))
    elif place == "beach":
        canvas.box(0, 0, 1, 1, (172, 226, 244))
        canvas.box(0, horizon - 0.06, 1, horizon + 0.10, (58, 154, 206))
        boat = np.array([(left - 0.06, horizon - 0.05), (left + 0.06, horizon - 0.05), (left + 0.04, horizon - 0.015),
                         (left - 0.04, horizon - 0.015)])  # fmt: skip
        canvas.polygon(boat, (150, 84, 60))
        sail = np.array([(left, horizon - 0.20), (left + 0.06, horizon - 0.06), (left, horizon - 0.06)])
        canvas.polygon(sail, (252, 246, 236))
        canvas.blob(0.5, horizon + 0.12, 0.9, 0.05, (226, 244, 250))
        canvas.blob(0.5, horizon + 0.14, 0.9, 0.05, (240, 216, 158))
        canvas.box(0, horizon + 0.14, 1, 1, (240, 216, 158))
    else:
        canvas.box(0, 0, 1, 1, (206, 212, 218))
        tones = ((178, 150, 142), (150, 160, 178), (190, 176, 148), (160, 146, 168))
        for index, x in enumerate((-0.02, 0.24, 0.50, 0.76)):
            top = horizon - 0.16 - 0.13 * ((index * 0.37 + left) % 0.45) / 0.45
            canvas.box(x, top, x + 0.24, horizon + 0.08, tones[index])
            for column in (0.05, 0.15):
                for row in (0.05, 0.14):
                    canvas.box(x + column, top + row, x + column + 0.045, top + row + 0.05, (244, 230, 170))
        canvas.box(0, horizon + 0.08, 1, horizon + 0.15, (188, 186, 184))
        canvas.box(0, horizon + 0.15, 1, 1, (122, 124, 132))
        for x in (0.02, 0.30, 0.58, 0.86):
            canvas.box(x, 0.925, x + 0.14, 0.95, (236, 236, 228))


def _background(canvas: _Canvas, scene: Scene) -> None:
    _scenery(canvas, scene.place, scene.layout)
    x, y = scene.layout.sun
    canvas.blob(x, y, 0.083, 0.083, (246, 170, 40))
    canvas.blob(x, y, 0.068, 0.068, (255, 222, 70))
    x, y = scene.layout.cloud
    for dx, dy, r in ((-0.07, 0.01, 0.045), (0.0, -0.015, 0.06), (0.075, 0.01, 0.045)):
        r *= scene.layout.cloudiness
        canvas.blob(x + dx, y + dy, r * 1.25, r * 0.8, (250, 251, 253))


def _placed(figure: Figure, x: float, y: float, unit: float) -> list[Part]:
    scale, origin = np.array([unit, -unit]), np.array([x, y])
    parts = DRAW[figure.kind](figure.pose)
    return [Part(part.points * scale + origin, part.paint, part.outlined) for part in parts]


def render(scene: Scene, size: int = IMAGE_SIZE) -> Picture:
    """Draw a scene. Two scenes that share a layout differ only where their attributes say so."""
    canvas = _Canvas(size)
    _background(canvas, scene)
    layout, masks = scene.layout, []
    line = GROUND_LINE + 0.5 * NEARER * layout.near
    ground = canvas.colour_at(0.005, 0.88)
    for figure, x, shade in zip(scene.figures, layout.x, layout.shade, strict=True):
        unit = HEIGHT[figure.size, len(scene.figures)] * (1 + NEARER * layout.near)
        parts = _placed(figure, x, line, unit)
        shadow = 0.62 if figure.pose == "jumping" else 1.0
        canvas.blob(x, line + 0.005, 0.36 * unit * shadow, 0.06 * unit * shadow, _darker(ground, 0.78))
        mask = _Canvas(size, "L")
        for part in parts:
            if part.outlined:
                canvas.polygon(part.points, INK, grow=OUTLINE)
                mask.polygon(part.points, 255, grow=OUTLINE)
        for part in parts:
            fixed = isinstance(part.paint, tuple)
            full = 1 + 0.1 * (shade - 0.5)
            fill = part.paint if fixed else _darker(RGB[figure.colour], full * (0.42 + 0.58 * part.paint))
            canvas.polygon(part.points, fill)
        masks.append(mask.pixels().astype(np.float32) / 255)
    for index in range(len(masks) - 1):
        for later in masks[index + 1 :]:
            masks[index] = masks[index] * (1 - later)
    warmth = 0.05 * layout.warmth
    image = np.clip(canvas.pixels() * np.array([1 + warmth, 1, 1 - warmth]), 0, 255).round().astype(np.uint8)
    return Picture(image=image, masks=np.stack(masks))
