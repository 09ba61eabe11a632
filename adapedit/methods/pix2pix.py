"""InstructPix2Pix: a UNet that was trained on pairs of pictures sees the source beside the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from adapedit.methods.context import EditContext, Findings, Method
from adapedit.methods.settings import InstructPix2Pix
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_kernels.errors import AdapEditError


@dataclass(frozen=True)
class InstructPix2PixMethod(Method):
    """Brooks et al. 2023, under its two guidance scales.

    One pass: the instruction, from the request's first latents, with the picture's clean latents as further channels
    (as the autoencoder gives them, not scaled). Three rows a step: neither text nor picture, the picture alone, both.
    Their weights (1 - s_I, s_I - s_T, s_T) are the paper's Eq. 3.
    """

    settings: InstructPix2Pix
    inverts: ClassVar[bool] = False

    def plan(self, context: EditContext, observed: EditOutcome | None) -> EditPlan:
        """Raises `AdapEditError` for a UNet that takes no picture, and where none is given."""
        specs = context.specs
        wanted = 2 * specs.out_channels
        if specs.in_channels != wanted:
            raise AdapEditError(
                f"this model's UNet takes {specs.in_channels} channels, instruct-pix2pix wants {wanted}: "
                "load its own checkpoint (such as timbrooks/instruct-pix2pix) as the model"
            )
        if context.image_latents is None:
            raise AdapEditError("instruct-pix2pix edits a picture that exists: give it as image")
        picture = context.image_latents / context.latent_scale
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
        assert context.image_latents is not None and edited.maps is not None
        source = context.image_latents.to(edited.latents)
        # The maps are of the instruction's tokens: where it is no prompt of the picture they say nothing of its words.
        nothing = torch.zeros_like(edited.maps[:1])
        seen = edited.maps[:1] if context.instruction is None else nothing
        return replace(
            edited,
            latents=torch.cat([source, edited.latents[:1]]),
            maps=torch.cat([nothing, seen]),
            features=None,
        )

    def findings(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        return Findings()
