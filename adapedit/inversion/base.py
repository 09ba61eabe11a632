"""What an inversion gives, and what inversions have in common: the way back, and single steps of the source."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from adapedit.methods.context import EditContext
from adapedit.model import EditModel
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_engine.schedule import Schedule
from adapedit_kernels.errors import AdapEditError


class InversionError(AdapEditError):
    """An inversion that this model, runner or scheduler can't do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """Where an edit of a picture begins, and what leads the source back to it.

    schedule: T steps; latents [1, C, h, w] before the first; levels [T, 2], of the schedule, before each.
    noise [T, C, h, w]: added by all tracks. source_latents [T, C, h, w]: the source's after each step.
    unconditional_steps [T, N, D]: of each step.
    """

    schedule: Schedule
    latents: Tensor
    levels: Tensor
    noise: Tensor | None = None
    source_latents: Tensor | None = None
    unconditional_steps: Tensor | None = None

    def into(self, context: EditContext) -> EditContext:
        """The edit's context, beginning there."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(context, **values)


Passes = Generator[list[EditPlan], list[EditOutcome], Inverted]
"""Plans to run, whose outcomes are sent back, until all is known. No plans: a pause, at which the caller may stop."""


class Inversion(Protocol):
    """An inversion as a function of the edit's context, whose `image_latents` are the picture."""

    uses_seed: ClassVar[bool] = False

    def check(self, context: EditContext, model: EditModel) -> None:
        """Raise `InversionError` where it can't be done, before any work. A schedule without noise is wanted."""
        refuse_noise(context)

    def passes(self, context: EditContext, model: EditModel, seed: int) -> Passes: ...


def refuse_noise(context: EditContext) -> None:
    """Raise for schedules that can't be run backwards."""
    if context.schedule.stochastic:
        raise InversionError(
            "this scheduler adds noise at every step and can't be run backwards; use inversion 'edit-friendly', or DDIM"
        )
    refuse_history(context.schedule)
    if (context.schedule.sample_weight == 0).any():
        raise InversionError("a step of this schedule forgets the picture; use inversion 'edit-friendly'")


def refuse_reuse(context: EditContext, name: str) -> None:
    """Raise for edits that leave out some of the model: what was found with all of it does not lead them back."""
    for knob in ("feature_interval", "cross_attention_until"):
        value = getattr(context, knob)
        if value != 1:
            raise InversionError(
                f"{knob} is {value}, wanted 1 with inversion {name}, which corrects what the whole model gets wrong; "
                f"leave {knob} out, or use inversion 'direct' without targets"
            )


def refuse_history(schedule: Schedule) -> None:
    """Raise for solvers that look back: their steps are known from the ones before, not alone."""
    if schedule.looks_back:
        raise InversionError(
            "this solver looks back at earlier steps, and no inversion of it is known; use DDIM"
        )


def picture_of(context: EditContext) -> Tensor:
    """The picture's latents [1, C, h, w]."""
    assert context.image_latents is not None
    return context.image_latents


def trajectory(
    context: EditContext, guidance_scale: float = 1.0
) -> Generator[list[EditPlan], list[EditOutcome], Tensor]:
    """Latents [T + 1, C, h, w] from noise to the picture itself, by DDIM backwards under the source prompt."""
    picture = picture_of(context)
    text, weights = context.source[None, None], torch.ones(1, 1)
    if guidance_scale != 1:
        text = torch.stack([context.unconditional, context.source])[None]
        weights = torch.tensor([[1 - guidance_scale, guidance_scale]])
    plan = EditPlan(
        schedule=backwards(context.schedule),
        latents=picture,
        encoder_hidden_states=text,
        guidance_weights=weights,
        record=True,
    )
    (outcome,) = yield [plan]
    assert outcome.trajectory is not None
    return torch.cat([outcome.trajectory[:, 0].float().cpu().flip(0), picture])


def backwards(schedule: Schedule) -> Schedule:
    """From the picture to noise: each step x' = a x + b eps solved for x, with eps of what is known, x'.

    The model is told the noisier end of each step, as Mokady et al. do: where the last step ends it was never trained.
    """
    a, b = schedule.sample_weight.flip(0), schedule.output_weight.flip(0)
    scale = torch.cat([torch.ones_like(a[:1]), schedule.input_scale.flip(0)[:-1]])
    return replace(
        schedule,
        timesteps=schedule.timesteps.flip(0),
        input_scale=scale,
        sample_weight=1 / a,
        output_weight=-b / a,
        noise_weight=torch.zeros_like(a),
        levels=schedule.levels.flip(0),
        init_noise_sigma=1.0,
    )


def single_steps(context: EditContext, schedule: Schedule, latents: Tensor) -> list[EditPlan]:
    """Step i of the source alone from latents[i], for all T of `latents` [T, C, h, w]; without noise.

    Under the edit's own guidance, and in its absence where the edit has none any more.
    """
    steps = len(schedule)
    guided = math.ceil(context.guidance_until * steps - 1e-4)
    text = torch.stack([context.unconditional, context.source])[None]
    weights = torch.tensor([[1 - context.guidance_scale, context.guidance_scale]])
    alone, one = context.source[None, None], torch.ones(1, 1)
    return [
        EditPlan(
            schedule=_step(schedule, i),
            latents=latents[i : i + 1],
            encoder_hidden_states=text if i < guided else alone,
            guidance_weights=weights if i < guided else one,
        )
        for i in range(steps)
    ]


def with_residuals(schedule: Schedule) -> Schedule:
    """The same steps, to which what is given as noise is added as it is."""
    return replace(schedule, noise_weight=torch.ones_like(schedule.noise_weight))


def reached(outcomes: Sequence[EditOutcome]) -> Tensor:
    """The first track's latents of each, [T, C, h, w] on the CPU."""
    return torch.cat([outcome.latents[:1].float().cpu() for outcome in outcomes])


def _step(schedule: Schedule, index: int) -> Schedule:
    names = ("timesteps", "input_scale", "sample_weight", "output_weight")
    tables = {name: getattr(schedule, name)[index : index + 1] for name in names}
    levels = schedule.levels[index : index + 2]
    return replace(schedule, **tables, levels=levels, noise_weight=torch.zeros(1, dtype=torch.float64))
