"""DDIM inversion: where the deterministic way back from the picture ends."""

from __future__ import annotations

from dataclasses import dataclass

from adapedit.inversion.base import Inversion, Inverted, Passes, trajectory
from adapedit.inversion.settings import DDIM
from adapedit.methods.context import EditContext
from adapedit.model import EditModel


@dataclass(frozen=True)
class DDIMInversion(Inversion):
    """Song et al. 2021. The source is then denoised under guidance like any other, and does not come back whole."""

    settings: DDIM

    def passes(self, context: EditContext, model: EditModel, seed: int) -> Passes:
        path = yield from trajectory(context, self.settings.guidance_scale)
        return Inverted(schedule=context.schedule, latents=path[:1], levels=context.levels)
