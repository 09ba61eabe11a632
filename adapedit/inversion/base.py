"""Inversion: from a real picture to where an edit of it begins; what inversions share, and how several are run.

Nothing here imports torch before an inversion is run, so that commands can check knobs at once.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from adapedit.methods.base import Context, Settings, made
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from torch import Tensor

    from adapedit.model import EditModel
    from adapedit_engine.cache import ByteCache
    from adapedit_engine.plan import EditOutcome, EditPlan
    from adapedit_engine.schedule import Schedule


class InversionError(AdapEditError):
    """An inversion that this model, runner or scheduler can't do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """Where an edit of a picture begins, and what leads the source back to it. Tensors are float32 on the CPU.

    schedule: T steps; latents [1, C, h, w] before the first. noise [T, C, h, w]: added by all tracks.
    source_latents [T, C, h, w]: the source's after each step. unconditional_steps [T, N, D]: of each step.
    """

    schedule: Schedule
    latents: Tensor
    noise: Tensor | None = None
    source_latents: Tensor | None = None
    unconditional_steps: Tensor | None = None

    def into(self, context: Context) -> Context:
        """The edit's context, beginning there."""
        return replace(context, **vars(self))

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        tensors = (self.latents, self.noise, self.source_latents, self.unconditional_steps)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


Passes = Generator[list["EditPlan"], list["EditOutcome"], Inverted]
"""Plans to run, whose outcomes are sent back, until all is known. No plans: a pause, at which the caller may stop."""

INVERSIONS: dict[str, type[Inversion]] = {}
"""Every inversion by its name."""


class Inversion(Settings):
    """An inversion: its fields are its knobs, a function of a context with `image_latents`."""

    registry: ClassVar[dict[str, type[Any]]] = INVERSIONS
    uses_seed: ClassVar[bool] = False

    def check(self, context: Context, model: EditModel) -> None:
        """Raise `InversionError` where it can't be done, before any work. A schedule without noise is wanted."""
        refuse_noise(context)

    def steps(self, steps: int) -> int:
        """Steps of all plans and pauses that `passes` takes, for an edit of so many."""
        return steps

    @abstractmethod
    def passes(self, context: Context, model: EditModel, seed: int) -> Passes:
        """The inversion, as plans to run."""


def make_inversion_settings(name: str, /, **knobs: Any) -> Any:
    """The inversion `name` with these knobs. Raises `AdapEditError` for unknown names and knobs, and for bad values."""
    return made(INVERSIONS, "inversion", name, knobs)


# What inversions share


def refuse_noise(context: Context) -> None:
    """Raise for schedules that can't be run backwards."""
    if context.schedule.stochastic:
        raise InversionError(
            "this scheduler adds noise at every step and can't be run backwards; use inversion 'edit-friendly', or DDIM"
        )
    refuse_history(context.schedule)
    if (context.schedule.sample_weight == 0).any():
        raise InversionError("a step of this schedule forgets the picture; use inversion 'edit-friendly'")


def refuse_history(schedule: Schedule) -> None:
    """Raise for solvers that look back: their steps are known from the ones before, not alone."""
    if schedule.looks_back:
        raise InversionError(
            "this solver looks back at earlier steps, and no inversion of it is known; use DDIM"
        )


def picture_of(context: Context) -> Tensor:
    """The picture's latents [1, C, h, w]."""
    assert context.image_latents is not None
    return context.image_latents


def trajectory(
    context: Context, guidance_scale: float = 1.0
) -> Generator[list[EditPlan], list[EditOutcome], Tensor]:
    """Latents [T + 1, C, h, w] from noise to the picture itself, by DDIM backwards under the source prompt."""
    import torch

    from adapedit_engine.plan import EditPlan

    picture = picture_of(context)
    plan = EditPlan(
        **replace(context, guidance_scale=guidance_scale).guided(["source"]),
        schedule=backwards(context.schedule),
        latents=picture,
        record=True,
    )
    (outcome,) = yield [plan]
    assert outcome.trajectory is not None
    return torch.cat([outcome.trajectory[:, 0].float().cpu().flip(0), picture])


def backwards(schedule: Schedule) -> Schedule:
    """From the picture to noise: each step x' = a x + b eps solved for x, with eps of what is known, x'.

    The model is told the noisier end of each step, as Mokady et al. do: where the last step ends it was never trained.
    """
    import torch

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


def single_steps(context: Context, schedule: Schedule, latents: Tensor) -> list[EditPlan]:
    """Step i of the source alone from latents[i], for all T of `latents` [T, C, h, w]; without noise.

    Under the edit's own guidance, and in its absence where the edit has none any more.
    """
    from adapedit_engine.plan import EditPlan

    rows = context.guided(["source"])
    until = guided_steps(context, len(schedule))
    plans = [
        EditPlan(**rows, schedule=_step(schedule, i), latents=latents[i : i + 1])
        for i in range(len(schedule))
    ]
    return [plan if i < until else plan.without_guidance() for i, plan in enumerate(plans)]


def guided_steps(context: Context, steps: int) -> int:
    """Of so many, those under guidance: what the scheduler does."""
    from adapedit_engine.plan import held_steps

    return steps - held_steps(1 - context.guidance_until, steps)


def _step(schedule: Schedule, index: int) -> Schedule:
    import torch

    names = ("timesteps", "input_scale", "sample_weight", "output_weight")
    tables = {name: getattr(schedule, name)[index : index + 1] for name in names}
    nothing = torch.zeros_like(tables["timesteps"])
    return replace(schedule, **tables, levels=schedule.levels[index : index + 2], noise_weight=nothing)


def with_residuals(schedule: Schedule) -> Schedule:
    """The same steps, to which what is given as noise is added as it is."""
    return replace(schedule, noise_weight=schedule.noise_weight * 0 + 1)


def reached(outcomes: Sequence[EditOutcome]) -> Tensor:
    """The first track's latents of each, [T, C, h, w] on the CPU."""
    import torch

    return torch.cat([outcome.latents[:1].float().cpu() for outcome in outcomes])


# How they are run


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """A picture's context before its inversion, with the inversion and its seed."""

    context: Context
    inversion: Inversion
    seed: int

    @property
    def key(self) -> str:
        return inversion_key(self.context, self.inversion, self.seed)


def inversion_key(context: Context, inversion: Inversion, seed: int) -> str:
    """64 hexadecimal digits of all that an inversion depends on, but the model's weights."""
    import torch

    from adapedit_engine.cache import digest

    facts = (inversion, context.guidance_scale, context.guidance_until, seed if inversion.uses_seed else None)
    content = hashlib.sha256(repr(facts).encode())
    tables = vars(context.schedule).values()
    told = [*context.source.tensors().values(), *context.source_negative.tensors().values()]
    for value in (context.image_latents, *told, *tables):
        content.update(digest(value) if isinstance(value, torch.Tensor) else repr(value).encode())
    return content.hexdigest()


def inversion_passes(
    wanted: Sequence[Wanted], model: EditModel, kept: ByteCache[Inverted] | None = None
) -> Generator[list[EditPlan], list[EditOutcome], list[Context]]:
    """The contexts after their inversions, in the same order: each that is wanted is run once, whoever wants it.

    kept: those of earlier edits, by `inversion_key`.
    """
    keys = [one.key for one in wanted]
    found: dict[str, Inverted] = {}
    missing: dict[str, Passes] = {}
    for key, one in zip(keys, wanted, strict=True):
        if key in found or key in missing:
            continue
        known = None if kept is None else kept.find(key)
        if known is not None:
            found[key] = known
        else:
            missing[key] = one.inversion.passes(one.context, model, one.seed)
    fresh = yield from together(list(missing.values()))
    for key, inverted in zip(missing, fresh, strict=True):
        found[key] = inverted
        if kept is not None:
            kept.keep(key, inverted)
    return [found[key].into(one.context) for key, one in zip(keys, wanted, strict=True)]


def together(jobs: Sequence[Passes]) -> Generator[list[EditPlan], list[EditOutcome], list[Inverted]]:
    """Several inversions in step: what they want at the same time is asked for at once."""
    found: dict[int, Inverted] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(jobs)))
    try:
        while answers:
            wanted: dict[int, list[EditPlan]] = {}
            for i, answer in answers.items():
                try:
                    wanted[i] = jobs[i].send(answer)
                except StopIteration as end:
                    found[i] = end.value
            if not wanted:
                break
            outcomes = iter((yield [plan for plans in wanted.values() for plan in plans]))
            answers = {i: [next(outcomes) for _ in plans] for i, plans in wanted.items()}
    finally:
        for job in jobs:
            job.close()
    return [found[i] for i in range(len(jobs))]
