"""Two plots as inline SVG: methods by success and background, and a knob's curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 340, 54, 42, 14, 130
COLOURS = ("#c4451a", "#2b6cb0", "#2f855a", "#6b46c1", "#b7791f", "#4a5568", "#b83280", "#0987a0")


class _Axes:
    """A frame from data to pixels, with ticks."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], names: tuple[str, str]) -> None:
        self.x_range, self.y_range = x, y
        self.parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
            f'font-family="sans-serif" font-size="12"><rect x="{LEFT}" y="{TOP}" '
            f'width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}" fill="none" stroke="#bbb"/>'
        ]
        for i in range(6):
            u, v = x[0] + (x[1] - x[0]) * i / 5, y[0] + (y[1] - y[0]) * i / 5
            self.text(self.x(u), HEIGHT - BOTTOM + 16, f"{u:.2g}", "middle")
            self.text(LEFT - 6, self.y(v) + 4, f"{v:.2g}", "end")
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, names[0], "middle")
        self.text(LEFT, TOP - 3, names[1], "start")

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    def text(self, x: float, y: float, text: str, anchor: str = "start", colour: str = "#333") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
        )

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1.5) -> None:
        self.parts.append(
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>'
        )

    def point(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')

    def done(self) -> str:
        return "".join(self.parts) + "</svg>"


def success_against_background(means: Mapping[str, Mapping[str, Any]]) -> str:
    """One point per variant with the intervals of both; up and to the right is better."""
    backgrounds = [means[variant]["background"]["low"] for variant in means]
    axes = _Axes((0, 1), (max(0.0, min(backgrounds) - 0.05), 1), ("success", "background (SSIM)"))
    for place, (variant, found) in enumerate(means.items()):
        colour = COLOURS[place % len(COLOURS)]
        success, background = found["success"], found["background"]
        x, y = axes.x(success["value"]), axes.y(background["value"])
        axes.line(axes.x(success["low"]), y, axes.x(success["high"]), y, colour)
        axes.line(x, axes.y(background["low"]), x, axes.y(background["high"]), colour)
        axes.point(x, y, colour)
        axes.point(WIDTH - RIGHT + 12, TOP + 8 + 17 * place, colour)
        axes.text(WIDTH - RIGHT + 21, TOP + 12 + 17 * place, variant)
    return axes.done()


def knob_curves(curve: Mapping[str, Any], metrics: Sequence[str] = ("success", "moved", "background")) -> str:
    """Means over a knob's values with their intervals, one line per metric."""
    knob = curve["values"]
    axes = _Axes((min(knob), max(knob)), (0, 1), (curve["knob"], ""))
    for place, metric in enumerate(metrics):
        colour, means = COLOURS[place], curve[metric]["means"]
        points = [(axes.x(u), axes.y(mean["value"])) for u, mean in zip(knob, means, strict=True)]
        for (x, y), mean in zip(points, means, strict=True):
            axes.line(x, axes.y(mean["low"]), x, axes.y(mean["high"]), colour, 1)
            axes.point(x, y, colour)
        for (x0, y0), (x1, y1) in pairwise(points):
            axes.line(x0, y0, x1, y1, colour)
        axes.point(WIDTH - RIGHT + 12, TOP + 8 + 17 * place, colour)
        axes.text(WIDTH - RIGHT + 21, TOP + 12 + 17 * place, metric)
    return axes.done()
