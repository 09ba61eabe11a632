"""What a metric of a pair of pictures is: its columns, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of merit. better: +1 where more is better, -1 where less is; meaning: for a reader who knows none."""

    name: str
    title: str
    better: int
    digits: int
    meaning: str


COLUMNS = {
    column.name: column
    for column in (
        Column(
            name="lpips",
            title="LPIPS",
            better=-1,
            digits=3,
            meaning="perceptual distance between the source and the edited picture (Zhang et al. 2018)",
        ),
        Column(
            name="clip_score",
            title="CLIP score",
            better=+1,
            digits=2,
            meaning="100 times the cosine of the edited picture and the target prompt",
        ),
        Column(
            name="clip_directional",
            title="CLIP directional",
            better=+1,
            digits=3,
            meaning="cosine of what changed in the picture and what changed in the prompt; 0 where nothing changed",
        ),
        Column(
            name="clip_image",
            title="CLIP image",
            better=+1,
            digits=3,
            meaning="cosine of the source and the edited picture; a copy has 1",
        ),
    )
}
"""All figures by name, in the order in which they are shown."""


class PictureMetric(Protocol):
    """Measures an edit from its two pictures and its two prompts.

    about: what the figures depend on, ready for JSON: figures under another `about` can't be compared.
    """

    columns: tuple[str, ...]
    about: Mapping[str, str]

    def check(self, prompt: str) -> None:
        """Raise `AdapEditError` for a prompt that can't be measured."""

    def measure(
        self, source: Image.Image, target: Image.Image, source_prompt: str, target_prompt: str
    ) -> dict[str, float]:
        """A number for each of `columns`."""
