"""Edit-friendly DDPM noise: the picture noised for every step independently, and what leads from each to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

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
from adapedit.methods.base import Context

if TYPE_CHECKING:
    from adapedit.model import EditModel
    from adapedit_engine.schedule import Schedule


class EditFriendly(Inversion, name="edit-friendly"):
    """Edit-friendly DDPM noise (Huberman-Spiegelglas et al. 2024): the picture noised independently for each step.

    Under the edit's own guidance, so that the source comes back to rounding. The noise is kept times its weight, as the
    difference that it makes. So the last step, at which some schedules add none, leads back to the picture like the
    others.

    eta:  of DDIM's stochastic form, 1 is DDPM. Schedulers that add noise themselves are taken as they are.
    skip: share of the steps that are left out at the noisy end: the edit begins nearer to the picture.
    """

    uses_seed: ClassVar[bool] = True

    eta: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)] = 1.0
    skip: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)] = 0.36

    def check(self, context: Context, model: EditModel) -> None:
        self._schedule(context, model)

    def steps(self, steps: int) -> int:
        return steps - self._first(steps)

    def passes(self, context: Context, model: EditModel, seed: int) -> Passes:
        import torch

        schedule, picture = self._schedule(context, model), picture_of(context)
        first = self._first(len(schedule))
        generator = torch.Generator("cpu").manual_seed(seed)
        # Drawn for all steps, so that what is skipped does not change the noise of the others.
        shape = (len(schedule), *picture.shape[1:])
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        signal, noise = schedule.levels[:-1].float().reshape(-1, 2, 1, 1, 1).unbind(1)
        path = torch.cat([signal * picture + noise * drawn, picture])[first:]
        rest = schedule.tail(first)
        steps = yield single_steps(context, rest, path[:-1])
        return Inverted(schedule=with_residuals(rest), latents=path[:1], noise=path[1:] - reached(steps))

    def _first(self, steps: int) -> int:
        from adapedit_engine.plan import held_steps

        return min(held_steps(self.skip, steps), steps - 1)

    def _schedule(self, context: Context, model: EditModel) -> Schedule:
        from adapedit_engine.schedule import Schedule, ScheduleError

        refuse_history(context.schedule)
        if context.schedule.stochastic:
            return context.schedule
        try:
            schedule = Schedule.from_scheduler(model.scheduler, len(context.schedule), eta=self.eta)
        except ScheduleError as error:
            raise InversionError(
                "this scheduler has no form that adds noise, which inversion 'edit-friendly' needs; use DDIM or DDPM"
            ) from error
        return replace(schedule, init_noise_sigma=1.0)
