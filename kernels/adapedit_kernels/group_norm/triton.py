"""Group norm and SiLU as two Triton kernels (moments of parts, norm), and their launch.

A program has some pixels of one group in registers. Moments of parts are put together by Chan, Golub and LeVeque's
formula, in the same order every time; sums of squares alone would lose what is left after the mean's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES = 4096
"""Of a program: pixels times channels of a group, filled up to a power of two."""


@triton.jit
def _place(pixels, channels, width, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of this program: where its values are in memory, which of them are there, and their channels."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * width + tl.arange(0, BLOCK_C)
    mine = channel < (tl.program_id(1) + 1) * width
    first = tl.program_id(2).to(tl.int64) * pixels * channels
    inside = (pixel[:, None] < pixels) & mine[None, :]
    return first + pixel[:, None] * channels + channel[None, :], inside, channel, mine


@triton.jit(do_not_specialize=["pixels"])
def moments_kernel(x, moments, pixels, channels, width, groups, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean, and sum of squared distances from it, of a part: [B, groups, parts, 2]."""
    place, inside, _, _ = _place(pixels, channels, width, BLOCK_P, BLOCK_C)
    tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(pixels - tl.program_id(0) * BLOCK_P, BLOCK_P) * width
    mean = tl.sum(tl.sum(tile, axis=1), axis=0) / count
    apart = tl.where(inside, tile - mean, 0.0)
    out = (tl.program_id(2) * groups + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    tl.store(moments + 2 * out, mean)
    tl.store(moments + 2 * out + 1, tl.sum(tl.sum(apart * apart, axis=1), axis=0))


@triton.jit(do_not_specialize=["pixels", "eps"])
def norm_kernel(
    x,
    moments,
    weight,
    bias,
    out,
    pixels,
    channels,
    width,
    groups,
    eps,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    place, inside, channel, mine = _place(pixels, channels, width, BLOCK_P, BLOCK_C)
    part = tl.arange(0, BLOCK_S)
    there = part < tl.num_programs(0)
    own = moments + 2 * ((tl.program_id(2) * groups + tl.program_id(1)) * tl.num_programs(0) + part)
    count = tl.where(there, tl.minimum(pixels - part * BLOCK_P, BLOCK_P), 0).to(tl.float32) * width
    means = tl.load(own, mask=there, other=0.0)
    total = tl.sum(count, axis=0)
    mean = tl.sum(means * count, axis=0) / total
    apart = tl.load(own + 1, mask=there, other=0.0) + count * (means - mean) * (means - mean)
    scale = 1.0 / tl.sqrt(tl.sum(apart, axis=0) / total + eps)
    tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=mine, other=0.0).to(tl.float32) * scale
    result = (tile - mean) * factor[None, :] + tl.load(bias + channel, mask=mine, other=0.0)[None, :]
    if SILU:
        result = result * tl.sigmoid(result)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


def launch(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """Launch the kernels on arguments that fit."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    out = torch.empty(batch, height, width, channels, dtype=x.dtype, device=x.device).permute(0, 3, 1, 2)
    if x.numel() == 0:
        return out
    per_group, pixels = channels // groups, height * width
    block_c = triton.next_power_of_2(per_group)
    block_p = max(1, min(_VALUES // block_c, triton.next_power_of_2(pixels)))
    grid = (triton.cdiv(pixels, block_p), groups, batch)
    moments = torch.empty(batch, groups, grid[0], 2, dtype=torch.float32, device=x.device)
    sizes = (pixels, channels, per_group, groups)
    blocks = {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": 4}
    moments_kernel[grid](x, moments, *sizes, **blocks)
    parts = triton.next_power_of_2(grid[0])
    norm_kernel[grid](x, moments, weight, bias, out, *sizes, eps, SILU=silu, BLOCK_S=parts, **blocks)
    return out
