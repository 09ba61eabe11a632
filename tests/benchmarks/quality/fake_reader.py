"""A reader that knows every picture it was shown before, and guesses nothing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.scenes.drawing import render
from benchmarks.scenes.world import Scene


class PerfectReader:
    """Reads drawings without a mistake: `draw` remembers what it drew."""

    def __init__(self) -> None:
        self._known: dict[bytes, Scene] = {}

    def draw(self, scene: Scene) -> Image.Image:
        picture = Image.fromarray(render(scene).image)
        self.learn(picture, scene)
        return picture

    def learn(self, picture: Image.Image, reading: Scene) -> None:
        self._known[np.asarray(picture).tobytes()] = reading

    def read(self, pixels: Tensor) -> list[Scene]:
        images: NDArray[np.uint8] = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [self._known[np.ascontiguousarray(image).tobytes()] for image in images]
