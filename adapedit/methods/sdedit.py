"""SDEdit: noise the source picture part of the way, and denoise it under the target prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from adapedit.methods.base import Context, Method, Share, side_by_side

if TYPE_CHECKING:
    from adapedit_engine.plan import EditOutcome, EditPlan


class SDEdit(Method, name="sdedit"):
    """SDEdit (Meng et al. 2022): the noised source picture, denoised under the target prompt (image to image).

    First pass: the source prompt alone, which gives the source picture. Second pass: the target prompt alone, from
    the source's latents noised to where the last `strength` of the steps begins. The noise is the request's own first
    latents; at strength 1 little of the source is left beside it, and at strength 0 the target is the source. Of a real
    picture the first pass ends at the picture.

    strength: share of the steps that are run, rounded down as in diffusers; more moves further from the source. The
              paper finds 0.3 to 0.6 best.
    """

    inverts: ClassVar[bool] = False

    strength: Share = 0.6

    def observe(self, context: Context) -> EditPlan:
        """The source, whole."""
        return context.plan(("source",))

    def plan(self, context: Context, observed: EditOutcome | None) -> EditPlan:
        import torch

        first = min(self._first_step(context), len(context.schedule) - 1)
        if observed is None:
            # Not known yet; and what is not known is equal to nothing, so that no other edit shares this track.
            latents, source = (
                torch.full_like(context.latents, torch.nan),
                torch.full_like(context.latents, torch.nan),
            )
        else:
            signal, noise = context.schedule.levels[first].tolist()
            source = observed.latents[:1]
            latents = (
                signal * source
                + noise * context.latents.to(source, non_blocking=True) / context.schedule.init_noise_sigma
            )
        rest = replace(
            context,
            schedule=context.schedule.tail(first),
            noise=None if context.noise is None else context.noise[first:],
            unconditional_steps=None,
            source_latents=None if context.mask is None else context.noised(source)[first:],
            latents=latents,
        )
        # What a mask keeps is taken from the source, which then stands beside the target, noised to the same level.
        return rest.plan(("target",) if context.mask is None else None)

    def finish(self, context: Context, observed: EditOutcome | None, edited: EditOutcome) -> EditOutcome:
        assert observed is not None
        both = side_by_side(observed, edited.select([len(edited.latents) - 1]))
        if self._first_step(context) < len(context.schedule):
            return both
        return replace(both, latents=both.latents[:1].repeat(2, 1, 1, 1))

    def _first_step(self, context: Context) -> int:
        steps = len(context.schedule)
        return steps - int(self.strength * steps)
