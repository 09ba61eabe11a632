"""An editor and a metric for pairs of prompts that cost nothing, and whose figures are known beforehand."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from adapedit import AdapEditError, EditRequest
from tests.benchmarks.quality.fake_editor import fake_model

SHIFTS = {"adapedit": 40, "sdedit": 10, "plain": 90}
"""Grey levels by which each method's edit is brighter than its source."""


class PaintingEditor:
    """The source is a plain grey of its prompt's own, an edit a brighter one. `refused`: target prompts that fail."""

    def __init__(self, *, refused: Sequence[str] = ()) -> None:
        self.requests: list[EditRequest] = []
        self.calls, self.stop_at, self.refused = 0, 0, refused
        part = nn.Linear(2, 2).requires_grad_(False)
        part.config = SimpleNamespace(hidden_size=2)  # type: ignore[assignment]
        nn.init.constant_(part.weight, 0.5)
        nn.init.zeros_(part.bias)
        self.model = fake_model(name="painted", text_encoder=part, vae=part, latent_size=8)

    def edit_batch(self, requests: Sequence[EditRequest]) -> list[Any]:
        for request in requests:
            if request.target_prompt in self.refused or f"{request.method.name}:" in self.refused:
                raise AdapEditError(f"{request.target_prompt!r} is too much")
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.requests += requests
        return [self._edit(request) for request in requests]

    def _edit(self, request: EditRequest) -> Any:
        grey = base_grey(request.source_prompt)
        return SimpleNamespace(source_image=flat(grey), target_image=flat(grey + SHIFTS[request.method.name]))


class BrightnessMetric:
    """Measures by how much an edit is brighter, as if that were a figure of CLIP's."""

    columns = ("clip_directional",)

    def __init__(self, weights: str = "1", longest: int = 99) -> None:
        self.about: Mapping[str, str] = {"brightness": weights}
        self.longest, self.measured = longest, 0

    def check(self, prompt: str) -> None:
        if len(prompt.split()) > self.longest:
            raise AdapEditError(f"{prompt!r} is longer than {self.longest} words")

    def measure(
        self, source: Image.Image, target: Image.Image, source_prompt: str, target_prompt: str
    ) -> dict[str, float]:
        self.measured += 1
        if "darkness" in target_prompt:
            return {"clip_directional": float("nan")}
        found = np.asarray(target, dtype=float).mean() - np.asarray(source, dtype=float).mean()
        return {"clip_directional": found / 100 + len(target_prompt) / 1000}


def base_grey(prompt: str) -> int:
    return zlib.crc32(prompt.encode()) % 150


def flat(grey: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (grey, grey, grey))
