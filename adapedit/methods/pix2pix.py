"""InstructPix2Pix: a UNet that was trained on pairs of pictures sees the source beside the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from adapedit.editors import editing_runner
from adapedit.methods.context import EditContext, Findings, Method
from adapedit.methods.settings import InstructPix2Pix
from adapedit.model import EditModel
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner


@dataclass(frozen=True)
class InstructPix2PixMethod(Method):
    """Brooks et al. 2023, under its two guidance scales.

    First pass: the source prompt alone, by the model itself, which gives the source picture; a real one is where this
    pass ends. Second pass, by the editing UNet: the instruction, from the request's first latents, with the source's
    clean latents as further channels (as the autoencoder gives them, not scaled). Three rows a step: neither text nor
    picture, the picture alone, both. Their weights (1 - s_I, s_I - s_T, s_T) are the paper's Eq. 3.
    """

    settings: InstructPix2Pix
    inverts: ClassVar[bool] = False

    def runner(self, model: EditModel) -> Runner:
        return editing_runner(self.settings.checkpoint, model)

    def observe(self, context: EditContext) -> EditPlan:
        """The source, whole."""
        return context.plan((context.source,), collect=True)

    def plan(self, context: EditContext, observed: EditOutcome | None) -> EditPlan:
        if observed is None:
            # Not known yet; and what is not known is equal to nothing, so that no other edit shares this track.
            picture = torch.full_like(context.latents, torch.nan)
        else:
            picture = observed.latents[:1].float().cpu() / context.latent_scale
        text = context.target if context.instruction is None else context.instruction
        text_scale, image_scale = self.settings.text_guidance, self.settings.image_guidance
        weights = torch.tensor([[1 - image_scale, image_scale - text_scale, text_scale]])
        return EditPlan(
            schedule=context.schedule,
            latents=context.latents,
            encoder_hidden_states=torch.stack([context.unconditional, context.unconditional, text])[None],
            guidance_weights=weights,
            conditioning_channels=torch.stack([torch.zeros_like(picture), picture, picture], dim=1),
            noise=context.noise,
            guidance_until=context.guidance_until,
            collect=True,
        )

    def finish(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> EditOutcome:
        assert observed is not None and observed.maps is not None and edited.maps is not None
        device = edited.latents.device  # a server copies what was edited to the host, and not what was seen
        # The maps are of the instruction's tokens: where it is no prompt of the picture they say nothing of its words.
        seen = edited.maps if context.instruction is None else torch.zeros_like(edited.maps)
        return replace(
            edited,
            latents=torch.cat([observed.latents[:1].to(device), edited.latents[:1]]),
            maps=torch.cat([observed.maps[:1].to(device), seen[:1]]),
            features=None,
        )

    def findings(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        return Findings()
