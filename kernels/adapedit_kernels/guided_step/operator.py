"""The guided step as a PyTorch operator; see the operators of edited attention for where it runs what."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import interpreting
from adapedit_kernels.guided_step import reference
from adapedit_kernels.guided_step.arguments import check_arguments

__all__ = ["guided_step_operator"]


@torch.library.custom_op("adapedit_kernels::guided_step", mutates_args=())
def guided_step_operator(
    noise_pred: Tensor,
    latents: Tensor,
    guidance_rows: Tensor,
    guidance_weights: Tensor,
    sample_weight: Tensor,
    output_weight: Tensor,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    blend_mask: Tensor | None,
    blend_source: Tensor | None,
    check_values: bool,
) -> Tensor:
    arguments = (
        noise_pred,
        latents,
        guidance_rows,
        guidance_weights,
        sample_weight,
        output_weight,
        noise,
        noise_weight,
        blend_mask,
        blend_source,
    )
    kernel = latents.is_cuda or interpreting()
    check_arguments(*arguments, check_values=check_values, chosen="triton" if kernel else "reference")
    if kernel:
        from adapedit_kernels.guided_step.triton import launch

        return launch(*arguments)
    return reference.guided_step(*arguments)


@guided_step_operator.register_fake
def _(
    noise_pred: Tensor,
    latents: Tensor,
    guidance_rows: Tensor,
    guidance_weights: Tensor,
    sample_weight: Tensor,
    output_weight: Tensor,
    noise: Tensor | None,
    noise_weight: Tensor | None,
    blend_mask: Tensor | None,
    blend_source: Tensor | None,
    check_values: bool,
) -> Tensor:
    return torch.empty_like(latents)
