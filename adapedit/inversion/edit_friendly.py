"""Edit-friendly DDPM noise: the picture noised for every step independently, and what leads from each to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from adapedit.inversion.base import (
    Inversion,
    InversionError,
    Inverted,
    Passes,
    picture_of,
    reached,
    refuse_history,
    single_steps,
    with_residuals,
)
from adapedit.inversion.settings import EditFriendly
from adapedit.methods.context import EditContext
from adapedit.model import EditModel
from adapedit_engine.schedule import Schedule
from adapedit_kernels.errors import AdapEditError


@dataclass(frozen=True)
class EditFriendlyInversion(Inversion):
    """Huberman-Spiegelglas et al. 2024, under the edit's own guidance, so that the source comes back to rounding.

    The noise is kept times its weight, as the difference that it makes. So the last step, at which some schedules add
    none, leads back to the picture like the others.
    """

    settings: EditFriendly
    uses_seed: ClassVar[bool] = True

    def check(self, context: EditContext, model: EditModel) -> None:
        self._schedule(context, model)

    def passes(self, context: EditContext, model: EditModel, seed: int) -> Passes:
        schedule, picture = self._schedule(context, model), picture_of(context)
        first = min(round(self.settings.skip * len(schedule)), len(schedule) - 1)
        # Drawn for all steps, so that what is skipped does not change the noise of the others.
        drawn = torch.randn(
            len(schedule), *picture.shape[1:], generator=torch.Generator("cpu").manual_seed(seed)
        )
        signal, noise = context.levels.float().reshape(-1, 2, 1, 1, 1).unbind(1)
        path = torch.cat([signal * picture + noise * drawn, picture])[first:]
        rest = schedule.tail(first)
        steps = yield single_steps(context, rest, path[:-1])
        return Inverted(
            schedule=with_residuals(rest),
            latents=path[:1],
            levels=context.levels[first:],
            noise=path[1:] - reached(steps),
        )

    def _schedule(self, context: EditContext, model: EditModel) -> Schedule:
        refuse_history(context.schedule)
        if context.schedule.stochastic:
            return context.schedule
        try:
            schedule = model.schedule(len(context.schedule), eta=self.settings.eta)
        except AdapEditError:
            schedule = context.schedule
        if not schedule.stochastic:
            raise InversionError(
                "this scheduler has no form that adds noise, which inversion 'edit-friendly' needs; use DDIM or DDPM"
            )
        return replace(schedule, init_noise_sigma=1.0)
