"""Direct inversion: the source is put where the way back had it, after every step."""

from __future__ import annotations

from dataclasses import dataclass

from adapedit.inversion.base import (
    Inversion,
    Inverted,
    Passes,
    reached,
    single_steps,
    trajectory,
    with_residuals,
)
from adapedit.inversion.settings import Direct
from adapedit.methods.context import EditContext
from adapedit.model import EditModel


@dataclass(frozen=True)
class DirectInversion(Inversion):
    """Ju et al. 2024 (PnP inversion): the source's last latents are the picture's own, bit for bit.

    What the source would have missed at a step is known beforehand, from single steps of it, so a share of it can be
    given to the targets as data.
    """

    settings: Direct

    def passes(self, context: EditContext, model: EditModel, seed: int) -> Passes:
        path = yield from trajectory(context)
        schedule, noise = context.schedule, None
        if self.settings.targets > 0:
            steps = yield single_steps(context, schedule, path[:-1])
            noise = self.settings.targets * (path[1:] - reached(steps))
            schedule = with_residuals(schedule)
        return Inverted(
            schedule=schedule, latents=path[:1], levels=context.levels, noise=noise, source_latents=path[1:]
        )
