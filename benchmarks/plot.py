"""Line charts as SVG, with nothing to install."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 480, 300, 62, 46, 50
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")


class Series(NamedTuple):
    name: str
    x: Sequence[float]
    y: Sequence[float]


def chart(path: Path, title: str, x_label: str, y_label: str, series: Sequence[Series]) -> None:
    """Write a chart whose axes begin at zero."""
    most_x = max(max(line.x) for line in series) * 1.02 or 1
    most_y = max(max(line.y) for line in series) * 1.08 or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / most_x * (WIDTH - LEFT - 16)
        return round(across, 1), round(HEIGHT - BOTTOM - y / most_y * (HEIGHT - BOTTOM - TOP), 1)

    (left, bottom), (right, top) = place(0, 0), place(most_x, most_y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text((left + right) / 2, 20, title, size=14),
        _text((left + right) / 2, HEIGHT - 8, x_label),
        f'<g transform="rotate(-90 14 {HEIGHT / 2})">{_text(14, HEIGHT / 2, y_label)}</g>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#57606a"/>',
    ]
    parts += [_text(place(x, 0)[0], bottom + 16, f"{x:.4g}") for x in ticks(most_x)]
    parts += [_text(left - 24, place(0, y)[1] + 4, f"{y:.4g}") for y in ticks(most_y)]
    for i, line in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        points = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
        corners = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(left + 50 + 110 * i, top - 10, line.name, colour=colour))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to `most`, three to seven of them."""
    unit = 10.0 ** math.floor(math.log10(most))
    step = next(unit * share for share in (0.2, 0.5, 1.0, 2.0) if most / (unit * share) < 6)
    return [step * i for i in range(int(most / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, *, size: int = 11, colour: str = "#24292f") -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}" fill="{colour}">{safe}</text>'
