"""Pictures spoilt by hand, to hold the judge to: what a generator does wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.scenes.drawing import RGB, Picture

FAULTS = ("second head", "patchwork", "shard", "blot")


def spoil(picture: Picture, fault: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A drawing [S, S, 3] with one of `FAULTS`."""
    image, mask = picture.image.copy(), picture.masks[0] > 0.9
    rows, columns = np.nonzero(mask)
    top, left, right = rows.min(), columns.min(), columns.max()
    canvas = Image.fromarray(image)
    if fault == "second head":
        high = rows < top + 0.45 * (rows.max() - top)
        shift = int((right - left) * rng.uniform(0.4, 0.7)) * (
            1 if columns[high].mean() < (left + right) / 2 else -1
        )
        there = np.clip(columns[high] + shift, 0, len(image) - 1)
        image[rows[high], there] = image[rows[high], columns[high]]
        return image
    if fault == "patchwork":
        for y in range(top, rows.max(), 10):
            for x in range(left, right, 10):
                cell = np.zeros_like(mask)
                cell[y : y + 10, x : x + 10] = True
                if rng.random() < 0.6:
                    colour = np.array(list(RGB.values())[rng.integers(len(RGB))])
                    image[cell & mask] = 0.25 * image[cell & mask] + 0.75 * colour
        return image
    x, y = (int(v) for v in rng.uniform(12, len(image) - 12, 2))
    size = int(rng.uniform(8, 13))
    layer, stencil = Image.new("RGB", canvas.size, (255, 222, 70)), Image.new("L", canvas.size)
    pen = ImageDraw.Draw(stencil)
    if fault == "shard":
        layer = Image.new("RGB", canvas.size, tuple(int(v) for v in rng.integers(0, 255, 3)))
        points = [(x + int(v), y + int(w)) for v, w in rng.uniform(-size, size, (3, 2))]
        points[1] = (points[0][0] + 2 * size, points[0][1] + size)
        pen.polygon([*points[:2], (points[0][0], points[0][1] + 2 * size)], fill=255)
    else:
        pen.ellipse((x - size, y - size, x + size, y + size), fill=255)
        stencil = stencil.filter(ImageFilter.GaussianBlur(2))
    canvas.paste(layer, mask=stencil)
    return np.asarray(canvas)
