"""SDEdit: noise the source picture part of the way, and denoise it under the target prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from adapedit.methods.context import EditContext, Findings, Method
from adapedit.methods.settings import SDEdit
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan


@dataclass(frozen=True)
class SDEditMethod(Method):
    """Meng et al. 2022, with a text-to-image model as the prior (image to image in diffusers).

    First pass: the source prompt alone, which gives the source picture. Second pass: the target prompt alone, from
    the source's latents noised to where the last `strength` of the steps begins. The noise is the request's own first
    latents, so strength 1 is plain generation of the target, and at strength 0 the target is the source. Of a real
    picture the first pass ends at the picture.
    """

    settings: SDEdit
    inverts: ClassVar[bool] = False

    def observe(self, context: EditContext) -> EditPlan:
        """The source, whole."""
        return context.plan((context.source,), collect=True)

    def plan(self, context: EditContext, observed: EditOutcome | None) -> EditPlan:
        first = min(self._first_step(context), len(context.schedule) - 1)
        if observed is None:
            # Not known yet; and what is not known is equal to nothing, so that no other edit shares this track.
            latents = torch.full_like(context.latents, torch.nan)
        elif first == 0:
            latents = context.latents
        else:
            signal, noise = context.levels[first].tolist()
            unit_noise = context.latents / context.schedule.init_noise_sigma
            latents = signal * observed.latents[:1].cpu() + noise * unit_noise
        rest = replace(
            context,
            schedule=context.schedule.tail(first),
            noise=None if context.noise is None else context.noise[first:],
            latents=latents,
        )
        return rest.plan((context.target,), collect=True)

    def finish(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> EditOutcome:
        assert observed is not None and observed.maps is not None and edited.maps is not None
        device = edited.latents.device  # a server copies what was edited to the host, and not what was seen
        nothing_done = self._first_step(context) == len(context.schedule)
        source = observed.latents[:1].to(device)
        return replace(
            edited,
            latents=torch.cat([source, source if nothing_done else edited.latents[:1]]),
            maps=torch.cat([observed.maps[:1].to(device), edited.maps[:1]]),
            features=None,
        )

    def findings(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        return Findings()

    def _first_step(self, context: EditContext) -> int:
        steps = len(context.schedule)
        return steps - round(self.settings.strength * steps)
