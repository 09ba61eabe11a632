"""Guidance, scheduler update and local blend in plain PyTorch: the specification."""

from __future__ import annotations

from torch import Tensor

from adapedit_kernels.dispatch import to_dtype, wide_dtype


def guided_step(
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
) -> Tensor:
    """See :func:`adapedit_kernels.guided_step.guided_step`; computed in float32 at least."""
    wide = wide_dtype(latents, noise_pred)
    tracks, guidance = guidance_rows.shape
    rows = noise_pred.index_select(0, guidance_rows.reshape(-1))
    rows = to_dtype(rows, wide).reshape(tracks, guidance, *noise_pred.shape[1:])  # [K, G, C, h, w]
    eps = (to_dtype(guidance_weights, wide)[:, :, None, None, None] * rows).sum(dim=1)
    column = (tracks, 1, 1, 1)
    stepped = (
        to_dtype(sample_weight, wide).reshape(column) * to_dtype(latents, wide)
        + to_dtype(output_weight, wide).reshape(column) * eps
    )
    if noise is not None and noise_weight is not None:
        stepped = stepped + to_dtype(noise_weight, wide).reshape(column) * to_dtype(noise, wide)
    if blend_mask is not None and blend_source is not None:
        source = stepped.index_select(0, blend_source)
        stepped = source + to_dtype(blend_mask, wide) * (stepped - source)
    return to_dtype(stepped, latents.dtype)
