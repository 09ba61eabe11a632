"""Direct inversion: the source is put where the way back had it, after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapedit.inversion.base import (
    Inversion,
    Inverted,
    Passes,
    reached,
    single_steps,
    trajectory,
    with_residuals,
)
from adapedit.methods.base import Context, Share

if TYPE_CHECKING:
    from adapedit.model import EditModel


class Direct(Inversion, name="direct"):
    """Direct inversion (Ju et al. 2024): the source is put back on its trajectory after every step; no optimisation.

    Its last latents are the picture's own, bit for bit. What the source would have missed at a step is known
    beforehand, from single steps of it, so a share of it can be given to the targets as data.

    targets: share of the source's correction that targets get as well. 0 is the paper's; at 1 an edit that changes
             nothing gives the picture back.
    """

    targets: Share = 0.0

    def steps(self, steps: int) -> int:
        return steps if self.targets == 0 else 2 * steps

    def passes(self, context: Context, model: EditModel, seed: int) -> Passes:
        path = yield from trajectory(context)
        schedule, noise = context.schedule, None
        if self.targets > 0:
            steps = yield single_steps(context, schedule, path[:-1])
            noise = self.targets * (path[1:] - reached(steps))
            schedule = with_residuals(schedule)
        return Inverted(schedule=schedule, latents=path[:1], noise=noise, source_latents=path[1:])
