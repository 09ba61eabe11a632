"""DDIM there and back, written out once more: numbers of the noise schedule and diffusers' own UNet, nothing else."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from adapedit import AdapEditPipeline
from adapedit.methods.base import Context


class PlainDDIM:
    """The steps of an edit of a tiny model, from noise to picture.

    levels: product of alphas before each step, and after the last, numbers.
    """

    def __init__(self, pipe: AdapEditPipeline, context: Context) -> None:
        runner: Any = pipe.model.runner
        self.unet, self.guidance = runner.controlled.unet, context.guidance_scale
        # Clones may take part in a search; what was made for inference may not.
        self.source, self.target, self.empty = (
            text.hidden_states.clone() for text in (context.source, context.target, context.source_negative)
        )
        scheduler = copy.deepcopy(pipe.model.scheduler)
        scheduler.set_timesteps(len(context.schedule))
        self.timesteps = scheduler.timesteps.tolist()
        products = scheduler.alphas_cumprod.double()
        self.levels = [float(products[t]) for t in self.timesteps] + [float(products[0])]

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def noise(self, x: Tensor, step: int, text: Tensor) -> Tensor:
        return self.unet(x, self.timesteps[step], encoder_hidden_states=text[None]).sample

    def guided(self, x: Tensor, step: int, text: Tensor, empty: Tensor | None = None) -> Tensor:
        without = self.noise(x, step, self.empty if empty is None else empty)
        return without + self.guidance * (self.noise(x, step, text) - without)

    def moved(self, x: Tensor, noise: Tensor, before: float, after: float) -> Tensor:
        """From one level to another, by the predicted picture and the predicted noise."""
        picture = (x - (1 - before) ** 0.5 * noise) / before**0.5
        return after**0.5 * picture + (1 - after) ** 0.5 * noise

    def next(self, x: Tensor, step: int, noise: Tensor) -> Tensor:
        return self.moved(x, noise, self.levels[step], self.levels[step + 1])

    def path(self, picture: Tensor) -> list[Tensor]:
        """Latents before each step and after the last, from the picture backwards under the source prompt alone."""
        found = [picture.clone()]
        with torch.no_grad():
            for step in reversed(range(self.steps)):
                noise = self.noise(found[0], step, self.source)
                found.insert(0, self.moved(found[0], noise, self.levels[step + 1], self.levels[step]))
        return found
