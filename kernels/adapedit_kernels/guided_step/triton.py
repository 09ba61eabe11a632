"""Guidance, scheduler update and local blend in one pass over the latents, and the launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit
def _stepped(predicted, weights, latents, noise, track, place, pred_place, inside, size, NOISE: tl.constexpr):
    """The guided step of one track at some of its values, before any blend: float32."""
    noise_pred, guidance_rows, rows, guidance, pred_row_stride = predicted
    guidance_weights, sample_weight, output_weight, noise_weight = weights
    eps = tl.zeros([place.shape[0]], dtype=tl.float32)
    for index in range(guidance):
        row = tl.load(guidance_rows + track * guidance + index)
        row = tl.minimum(tl.maximum(row, 0), rows - 1)  # a wrong row must not read foreign memory
        weight = tl.load(guidance_weights + track * guidance + index).to(tl.float32)
        pred = tl.load(noise_pred + row * pred_row_stride + pred_place, mask=inside, other=0.0)
        eps += weight * pred.to(tl.float32)
    sample = tl.load(latents + track * size + place, mask=inside, other=0.0).to(tl.float32)
    result = tl.load(sample_weight + track).to(tl.float32) * sample
    result += tl.load(output_weight + track).to(tl.float32) * eps
    if NOISE:
        fresh = tl.load(noise + track * size + place, mask=inside, other=0.0).to(tl.float32)
        result += tl.load(noise_weight + track).to(tl.float32) * fresh
    return result


# By default Triton compiles anew for a number that is 1, and for one that 16 divides: rows come and go in a server.
@triton.jit(do_not_specialize=["rows", "tracks"])
def guided_step_kernel(
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
    out,
    rows,
    tracks,
    guidance,
    channels,
    height,
    width,
    pred_row_stride,
    pred_channel_stride,
    pred_height_stride,
    pred_width_stride,
    BLOCK: tl.constexpr,
    NOISE: tl.constexpr,
    BLEND: tl.constexpr,
):
    track = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixels = height * width
    size = channels * pixels
    inside = place < size
    pixel = place % pixels
    pred_place = place // pixels * pred_channel_stride
    pred_place += pixel // width * pred_height_stride + pixel % width * pred_width_stride
    predicted = (noise_pred, guidance_rows, rows, guidance, pred_row_stride)
    weights = (guidance_weights, sample_weight, output_weight, noise_weight)
    result = _stepped(predicted, weights, latents, noise, track, place, pred_place, inside, size, NOISE)
    if BLEND:
        source = tl.load(blend_source + track)
        source = tl.minimum(tl.maximum(source, 0), tracks - 1)
        if source != track:
            base = _stepped(
                predicted, weights, latents, noise, source, place, pred_place, inside, size, NOISE
            )
            mask = tl.load(blend_mask + track * pixels + pixel, mask=inside, other=0.0).to(tl.float32)
            result = base + mask * (result - base)
    tl.store(out + track * size + place, result.to(out.dtype.element_ty), mask=inside)


def launch(noise_pred: Tensor, latents: Tensor, *others: Tensor | None) -> Tensor:
    """Launch the kernel on arguments that fit; takes any strides of ``noise_pred``, else contiguous tensors.

    others: the rest of the reference's arguments, in its order, which is the kernel's.
    """
    out = torch.empty_like(latents)
    tracks, channels, height, width = latents.shape
    if out.numel() == 0:
        return out
    guidance_rows, _, _, _, noise, _, blend_mask, _ = others
    assert guidance_rows is not None
    grid = (triton.cdiv(channels * height * width, _BLOCK), tracks)
    sizes = (noise_pred.shape[0], tracks, guidance_rows.shape[1], channels, height, width)
    guided_step_kernel[grid](
        *(noise_pred, latents, *others, out, *sizes, *noise_pred.stride()),
        BLOCK=_BLOCK,
        NOISE=noise is not None,
        BLEND=blend_mask is not None,
        num_warps=4,
    )
    return out
