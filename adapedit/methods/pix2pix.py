"""InstructPix2Pix: a UNet that was trained on pairs of pictures sees the source beside the noise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from adapedit.methods.base import Context, Knob, Method, rows_of, side_by_side
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from adapedit_engine.plan import EditOutcome, EditPlan


class InstructPix2Pix(Method, name="instruct-pix2pix"):
    """InstructPix2Pix (Brooks et al. 2023): the model's UNet was trained for editing, and sees a real picture.

    The instruction is denoised from the request's first latents, with the picture's clean latents as further channels
    (as the autoencoder gives them, not scaled). Three rows a step: neither text nor picture, the picture alone, both.
    Their weights (1 - s_I, s_I - s_T, s_T) are the paper's Eq. 3. With s_T of 1 or less, or s_I below 1, there is no
    guidance, as in diffusers: the row with both alone.

    text_guidance:  s_T of the paper: more does more of what the instruction says.
    image_guidance: s_I: more stays nearer to the source.
    instruction:    what to do, as checkpoints know it ("make the dog sit down"). None: the target prompt, which is else
                    used for nothing but the alignment that is told with the result.
    """

    inverts: ClassVar[bool] = False
    gone: ClassVar = {"checkpoint": "load the checkpoint as the model, and give the picture as image"}

    text_guidance: Knob = 7.5
    image_guidance: Knob = 1.5
    instruction: Annotated[str, Field(min_length=1)] | None = None

    def plan(self, context: Context, observed: EditOutcome | None) -> EditPlan:
        import torch

        from adapedit_engine.plan import CHANNELS, EditPlan

        specs = context.specs
        if specs.in_channels != 2 * specs.out_channels:
            raise AdapEditError(
                f"this model's UNet takes {specs.in_channels} channels, instruct-pix2pix wants "
                f"{2 * specs.out_channels}: load its own checkpoint (such as timbrooks/instruct-pix2pix) as the model"
            )
        if context.mask is not None:
            raise AdapEditError(
                "instruct-pix2pix goes where its instruction says, and takes no mask: leave mask out"
            )
        if context.image_latents is None:
            raise AdapEditError("instruct-pix2pix edits a picture that exists: give it as image")
        picture = context.image_latents / context.latent_scale
        text = context.target if context.instruction is None else context.instruction
        s_text, s_image = self.text_guidance, self.image_guidance
        weights = [1 - s_image, s_image - s_text, s_text]
        rows = rows_of([[context.target_negative, context.target_negative, text]])
        rows["conditioning"][CHANNELS] = torch.stack([torch.zeros_like(picture), picture, picture], dim=1)
        plan = EditPlan(
            **rows,
            schedule=context.schedule,
            latents=context.latents,
            guidance_weights=torch.tensor([weights], dtype=torch.float32, device="cpu"),
            noise=context.noise,
            guidance_until=context.guidance_until,
            collect=True,
        )
        return plan if s_text > 1 and s_image >= 1 else plan.without_guidance()

    def finish(self, context: Context, observed: EditOutcome | None, edited: EditOutcome) -> EditOutcome:
        import torch

        from adapedit_engine.plan import EditOutcome

        assert context.image_latents is not None and edited.maps is not None
        nothing = torch.zeros_like(edited.maps[:1])
        whole = torch.tensor([-1], dtype=torch.int64, device="cpu")
        source = EditOutcome(latents=context.image_latents, maps=nothing, broken_step=whole)
        both = side_by_side(source, edited)
        # The maps are of the instruction's tokens: where it is no prompt of the picture they say nothing of its words.
        return both if context.instruction is None else replace(both, maps=nothing.repeat(2, 1, 1))
