"""Attention maps as pictures: a heat scale, and overlays on the image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapedit.sheets import Cell, sheet

__all__ = ["Cell", "heat", "overlay", "sheet"]

_STOPS = np.array([[12, 10, 46], [92, 22, 110], [188, 54, 84], [244, 128, 40], [252, 250, 170]], np.float32)
"""A dark-to-bright heat scale (the ends and quarters of an inferno-like ramp)."""


def heat(values: NDArray[Any]) -> NDArray[Any]:
    """Values in 0..1, any shape, to RGB in 0..255."""
    place = np.clip(values, 0, 1) * (len(_STOPS) - 1)
    low = np.minimum(place.astype(int), len(_STOPS) - 2)
    share = (place - low)[..., None]
    return _STOPS[low] * (1 - share) + _STOPS[low + 1] * share


def overlay(image: Image.Image, values: NDArray[np.float32], *, peak: float | None = None) -> Image.Image:
    """A map [mh, mw] over a picture, scaled to its own peak unless one is given."""
    top = float(values.max()) if peak is None else peak
    shown = Image.fromarray((np.clip(values / max(top, 1e-12), 0, 1) * 255).astype(np.uint8))
    scaled = np.asarray(shown.resize(image.size, Image.Resampling.BILINEAR), np.float32) / 255
    base = np.asarray(image.convert("L").convert("RGB"), np.float32)
    mixed = base * 0.35 + heat(scaled) * 0.65
    return Image.fromarray(mixed.round().astype(np.uint8))
