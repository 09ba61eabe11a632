"""One denoising step over all latents: guidance, scheduler update and local blend."""

from __future__ import annotations

from torch import Tensor

from adapedit_kernels.dispatch import chosen_implementation, wants_gradient
from adapedit_kernels.guided_step import reference
from adapedit_kernels.guided_step.arguments import check_arguments
from adapedit_kernels.guided_step.operator import guided_step_operator

__all__ = ["guided_step"]


def guided_step(
    noise_pred: Tensor,
    latents: Tensor,
    guidance_rows: Tensor,
    guidance_weights: Tensor,
    sample_weight: Tensor,
    output_weight: Tensor,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    blend_mask: Tensor | None = None,
    blend_source: Tensor | None = None,
    *,
    check_values: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """The next latents of K tracks, each with its own coefficients.

    ``eps_k = sum_g guidance_weights[k, g] noise_pred[guidance_rows[k, g]]``,
    ``x'_k = sample_weight[k] x_k + output_weight[k] eps_k + noise_weight[k] noise_k``, and where a mask is given
    ``x''_k = x'_s + mask (x'_k - x'_s)`` with ``s = blend_source[k]`` and ``x'_s`` before its own blend.

    Args:
        noise_pred: [B, C, h, w] floating, output of the UNet for all rows.
        latents: [K, C, h, w] floating.
        guidance_rows: [K, G] int64, rows of ``noise_pred``.
        guidance_weights: [K, G] floating; classifier-free guidance ``g`` is (1 - g, g).
        sample_weight: [K] floating.
        output_weight: [K] floating.
        noise: [K, C, h, w] floating, with ``noise_weight``.
        noise_weight: [K] floating.
        blend_mask: [K, 1, h, w] floating, 1 where a track keeps its own latents; with ``blend_source``.
        blend_source: [K] int64.
        check_values: look at the values of the index tensors too; waits for the device on CUDA tensors.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        [K, C, h, w] in the dtype of ``latents``; nothing is changed in place.

    Raises:
        AdapEditError: shapes, dtypes or devices that don't fit, indices out of range.
        ImplementationError: the named implementation can't run here.
    """
    gradient = wants_gradient(noise_pred, latents)
    chosen = chosen_implementation(implementation, latents.device, gradient=gradient, operation="guided_step")
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
    if chosen == "triton":
        return guided_step_operator(*arguments, check_values)
    check_arguments(*arguments, check_values=check_values, chosen=chosen)
    return reference.guided_step(*arguments)
