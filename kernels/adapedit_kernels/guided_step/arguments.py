"""What the guided step takes, checked before anything is computed or launched."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.checks import check_dtype, check_rows, check_same_device, check_shape
from adapedit_kernels.errors import AdapEditError

__all__ = ["check_arguments"]

_NAME = "guided_step"
_HALF_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
_FLOATING = (*_HALF_AND_SINGLE, torch.float64)


def check_arguments(
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
    *,
    check_values: bool,
    chosen: str,
) -> None:
    """Raise AdapEditError unless the arguments fit together and the chosen implementation takes them."""
    check_shape(_NAME, "latents", latents, (None, None, None, None), "[K, C, h, w]")
    tracks, channels, height, width = latents.shape
    check_shape(_NAME, "noise_pred", noise_pred, (None, channels, height, width), "[B, C, h, w]")
    check_shape(_NAME, "guidance_rows", guidance_rows, (tracks, None), "[K, G]")
    check_shape(_NAME, "guidance_weights", guidance_weights, tuple(guidance_rows.shape), "[K, G]")
    check_shape(_NAME, "sample_weight", sample_weight, (tracks,), "[K]")
    check_shape(_NAME, "output_weight", output_weight, (tracks,), "[K]")
    _check_pair("noise", noise, "noise_weight", noise_weight)
    _check_pair("blend_mask", blend_mask, "blend_source", blend_source)
    if noise is not None and noise_weight is not None:
        check_shape(_NAME, "noise", noise, (tracks, channels, height, width), "[K, C, h, w]")
        check_shape(_NAME, "noise_weight", noise_weight, (tracks,), "[K]")
    if blend_mask is not None and blend_source is not None:
        check_shape(_NAME, "blend_mask", blend_mask, (tracks, 1, height, width), "[K, 1, h, w]")
        check_shape(_NAME, "blend_source", blend_source, (tracks,), "[K]")
    floating: dict[str, Tensor | None] = {
        "latents": latents,
        "noise_pred": noise_pred,
        "guidance_weights": guidance_weights,
        "sample_weight": sample_weight,
        "output_weight": output_weight,
        "noise": noise,
        "noise_weight": noise_weight,
        "blend_mask": blend_mask,
    }
    for name, tensor in floating.items():
        if tensor is not None:
            check_dtype(_NAME, name, tensor, _HALF_AND_SINGLE if chosen == "triton" else _FLOATING)
    check_dtype(_NAME, "guidance_rows", guidance_rows, (torch.int64,))
    if blend_source is not None:
        check_dtype(_NAME, "blend_source", blend_source, (torch.int64,))
    check_same_device(_NAME, floating | {"guidance_rows": guidance_rows, "blend_source": blend_source})
    if check_values:
        check_rows(_NAME, "guidance_rows", guidance_rows, noise_pred.shape[0])
        if blend_source is not None:
            check_rows(_NAME, "blend_source", blend_source, tracks)


def _check_pair(first: str, one: Tensor | None, second: str, other: Tensor | None) -> None:
    if (one is None) != (other is None):
        missing, present = (first, second) if one is None else (second, first)
        raise AdapEditError(f"{_NAME}: {present} is given without {missing}; give both or neither")
