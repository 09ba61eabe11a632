"""One denoising step over all latents: guidance, scheduler update and local blend."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels import dispatch
from adapedit_kernels.dispatch import FLOATING, INTEGER
from adapedit_kernels.errors import AdapEditError
from adapedit_kernels.guided_step import reference

__all__ = ["guided_step"]

_NAME = "guided_step"
_AXES = {
    "noise_pred": "B C h w",
    "latents": "K C h w",
    "guidance_rows": "K G",
    "guidance_weights": "K G",
    "sample_weight": "K",
    "output_weight": "K",
    "noise": "K C h w",
    "noise_weight": "K",
    "blend_mask": "K 1 h w",
    "blend_source": "K",
}
_INDICES = ("guidance_rows", "blend_source")
_PAIRS = (("noise", "noise_weight"), ("blend_mask", "blend_source"))


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
    chosen = dispatch.implementation_for(_NAME, implementation, noise_pred, latents)
    weights = (guidance_rows, guidance_weights, sample_weight, output_weight)
    arguments = (noise_pred, latents, *weights, noise, noise_weight, blend_mask, blend_source)
    given = dict(zip(_AXES, arguments, strict=True))
    for pair in _PAIRS:
        missing, present = sorted(pair, key=lambda name: given[name] is not None)
        if given[missing] is None and given[present] is not None:
            raise AdapEditError(f"{_NAME}: {present} is given without {missing}; give both or neither")
    kinds = {name: INTEGER if name in _INDICES else FLOATING[chosen] for name in _AXES}
    # The latents first: what does not fit them is named.
    order = ("latents", *(name for name in _AXES if name != "latents"))
    expected = {name: (given[name], _AXES[name], kinds[name]) for name in order}
    dispatch.check_tensors(_NAME, expected)
    if check_values:
        dispatch.check_rows(_NAME, "guidance_rows", guidance_rows, noise_pred.shape[0])
        if blend_source is not None:
            dispatch.check_rows(_NAME, "blend_source", blend_source, latents.shape[0])
    if chosen == "reference":
        return reference.guided_step(*arguments)
    dispatch.check_layout(_NAME, expected, free=("noise_pred",))
    return guided_step_operator(*arguments)


guided_step_operator = dispatch.operator(
    _NAME,
    "(Tensor noise_pred, Tensor latents, Tensor guidance_rows, Tensor guidance_weights, Tensor sample_weight, "
    "Tensor output_weight, Tensor? noise, Tensor? noise_weight, Tensor? blend_mask, Tensor? blend_source) -> Tensor",
    reference.guided_step,
    lambda noise_pred, latents, *_: torch.empty_like(latents),
)
