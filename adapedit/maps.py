"""Attention maps as pictures: overlays on the image, a labelled sheet of all words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = 168
GAP = 10
LABEL = 34
PAPER, INK_COLOUR, FAINT = (255, 255, 255), (28, 30, 36), (112, 116, 126)
_STOPS = np.array([[12, 10, 46], [92, 22, 110], [188, 54, 84], [244, 128, 40], [252, 250, 170]], np.float32)
"""A dark-to-bright heat scale (the ends and quarters of an inferno-like ramp)."""


@dataclass(frozen=True)
class Cell:
    """A picture on a sheet with a line under it, and a fainter one."""

    image: Image.Image
    label: str
    note: str = ""


def heat(values: NDArray[np.float32]) -> NDArray[np.float32]:
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


def sheet(rows: Sequence[tuple[str, Sequence[Cell]]], *, columns: int = 6) -> Image.Image:
    """Titled rows of cells as one picture; long rows are wrapped."""
    wrapped: list[tuple[str, Sequence[Cell]]] = []
    for title, cells in rows:
        for start in range(0, max(1, len(cells)), columns):
            wrapped.append((title if start == 0 else "", cells[start : start + columns]))
    widest = max(len(cells) for _, cells in wrapped)
    height = GAP
    for title, _ in wrapped:
        height += (30 if title else 0) + CELL + LABEL + GAP
    picture = Image.new("RGB", (GAP + widest * (CELL + GAP), height), PAPER)
    pen, y = ImageDraw.Draw(picture), GAP
    title_font, font, small = (ImageFont.load_default(size) for size in (17, 14, 12))
    for title, cells in wrapped:
        if title:
            pen.text((GAP, y), title, INK_COLOUR, font=title_font)
            y += 30
        for column, cell in enumerate(cells):
            x = GAP + column * (CELL + GAP)
            picture.paste(cell.image.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
            pen.text((x, y + CELL + 2), cell.label, INK_COLOUR, font=font)
            pen.text((x, y + CELL + 18), cell.note, FAINT, font=small)
        y += CELL + LABEL + GAP
    return picture
