"""Contact sheets: labelled pictures in titled rows, the text wrapped to its room; and maps laid over pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["Cell", "Heading", "overlay", "sheet"]

GAP, MARGIN = 10, 14
PAPER, INK, FAINT, ACCENT = (255, 255, 255), (28, 30, 36), (112, 116, 126), (196, 60, 16)
HEADING_SIZE, TITLE_SIZE, LABEL_SIZE, NOTE_SIZE = 18, 17, 14, 12
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf")
NARROWEST = 420
"""Pixels: a sheet is never narrower, or its headings would stand one word a line."""
HEAT = np.array([[12, 10, 46], [92, 22, 110], [188, 54, 84], [244, 128, 40], [252, 250, 170]], np.float32)
"""A dark-to-bright scale (the ends and quarters of an inferno-like ramp)."""

Runs = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Cell:
    """A picture on a sheet with a label under it, and a fainter note."""

    image: Image.Image
    label: str
    note: str = ""


@dataclass(frozen=True)
class Heading:
    """A line at the top of a sheet: a faint name, then words, of which some stand out."""

    name: str
    words: Runs


@dataclass(frozen=True)
class _Text:
    """Wrapped text of one size: each line is a sequence of (x, text, colour)."""

    lines: tuple[tuple[tuple[float, str, tuple[int, int, int]], ...], ...]
    size: int

    @property
    def height(self) -> int:
        return len(self.lines) * round(self.size * 1.35)


def sheet(
    rows: Sequence[tuple[str, Sequence[Cell]]],
    *,
    headings: Sequence[Heading] = (),
    cell: int = 168,
    columns: int = 6,
) -> Image.Image:
    """Headings, then titled rows of cells of `cell` pixels a side; rows of more than `columns` are wrapped."""
    wrapped: list[tuple[str, Sequence[Cell]]] = []
    for title, cells in rows:
        for start in range(0, max(1, len(cells)), columns):
            wrapped.append((title if start == 0 else "", cells[start : start + columns]))
    inner = max([len(cells) * (cell + GAP) - GAP for _, cells in wrapped] + [NARROWEST])
    texts = [word for heading in headings for word, _ in heading.words]
    for title, cells in rows:
        texts += [title, *(part for one in cells for part in (one.label, one.note))]
    pen = _Pen(plain=all(text.isascii() for text in texts))

    placed: list[tuple[int, int, _Text | Image.Image]] = []
    y, names = MARGIN, max((pen.width(f"{h.name}  ", HEADING_SIZE) for h in headings), default=0)
    for heading in headings:
        placed.append((MARGIN, y, pen.wrap(((heading.name, False),), HEADING_SIZE, inner, FAINT)))
        text = pen.wrap(heading.words, HEADING_SIZE, inner - names, INK)
        placed.append((round(MARGIN + names), y, text))
        y += text.height + 2
    y += GAP if headings else 0
    for title, cells in wrapped:
        if title:
            text = pen.wrap(_runs(title), TITLE_SIZE, inner, INK)
            placed.append((MARGIN, y, text))
            y += text.height + 4
        below = 0
        for column, one in enumerate(cells):
            x = MARGIN + column * (cell + GAP)
            label = pen.wrap(_runs(one.label), LABEL_SIZE, cell, INK, most=3)
            note = pen.wrap(_runs(one.note), NOTE_SIZE, cell, FAINT, most=4)
            shown = ImageOps.pad(
                one.image.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS, color=PAPER
            )
            under = y + cell + 3
            placed += [(x, y, shown), (x, under, label), (x, under + label.height, note)]
            below = max(below, label.height + note.height)
        y += cell + 3 + below + GAP
    picture = Image.new("RGB", (inner + 2 * MARGIN, y + MARGIN - GAP), PAPER)
    for x, top, thing in placed:
        if isinstance(thing, _Text):
            pen.draw(picture, x, top, thing)
        else:
            picture.paste(thing, (x, top))
    return picture


def overlay(image: Image.Image, values: NDArray[np.float32], *, peak: float | None = None) -> Image.Image:
    """A map [mh, mw] over a picture, scaled to its own peak unless one is given."""
    top = float(values.max()) if peak is None else peak
    shown = Image.fromarray((np.clip(values / max(top, 1e-12), 0, 1) * 255).astype(np.uint8))
    scaled = np.asarray(shown.resize(image.size, Image.Resampling.BILINEAR), np.float32) / 255
    place = scaled * (len(HEAT) - 1)
    low = np.minimum(place.astype(int), len(HEAT) - 2)
    share = (place - low)[..., None]
    heat = HEAT[low] * (1 - share) + HEAT[low + 1] * share
    base = np.asarray(image.convert("L").convert("RGB"), np.float32)
    mixed = base * 0.35 + heat * 0.65
    return Image.fromarray(mixed.round().astype(np.uint8))


class _Pen:
    """Measures, wraps and draws text. The font that Pillow brings has little beyond ASCII."""

    def __init__(self, plain: bool) -> None:
        self._plain = plain

    def width(self, text: str, size: int) -> float:
        return _font(size, self._plain).getlength(text)

    def wrap(
        self, runs: Runs, size: int, room: float, colour: tuple[int, int, int], most: int | None = None
    ) -> _Text:
        """Words one after the other, broken where a line is full; beyond `most` lines the rest is left out."""
        space = self.width(" ", size)
        lines: list[list[tuple[float, str, tuple[int, int, int]]]] = [[]]
        x = 0.0
        for word, stands_out in runs:
            for piece in self._pieces(word, size, room) if word else ():
                width = self.width(piece, size)
                if lines[-1] and x + width > room:
                    lines.append([])
                    x = 0.0
                lines[-1].append((x, piece, ACCENT if stands_out else colour))
                x += width + space
        if most is not None and len(lines) > most:
            lines = lines[:most]
            start, last, shade = lines[-1].pop()
            lines[-1].append((start, last[: max(1, len(last) - 2)] + "...", shade))
        return _Text(tuple(tuple(line) for line in lines if line), size)

    def _pieces(self, word: str, size: int, room: float) -> list[str]:
        pieces = [""]
        for letter in word:
            if pieces[-1] and self.width(pieces[-1] + letter, size) > room:
                pieces.append("")
            pieces[-1] += letter
        return pieces

    def draw(self, picture: Image.Image, x: int, y: int, text: _Text) -> None:
        pen, step = ImageDraw.Draw(picture), round(text.size * 1.35)
        for number, line in enumerate(text.lines):
            for start, word, colour in line:
                pen.text((x + start, y + number * step), word, colour, font=_font(text.size, self._plain))


def _runs(text: str) -> Runs:
    return tuple((word, False) for word in text.split())


@lru_cache
def _font(size: int, plain: bool) -> Any:
    if not plain:
        for name in FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)
