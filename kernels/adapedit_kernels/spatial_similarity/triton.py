"""Spatial similarity as two Triton kernels (mean, cosine), and their launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TINY = tl.constexpr(1e-12)
_BLOCK_P = 32
_BLOCK_V = 64


@triton.jit
def mean_kernel(
    features,
    mean,
    pixels,
    channels,
    batch_stride,
    pixel_stride,
    channel_stride,
    BLOCK_P: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    feature = features + row * batch_stride + channel[None, :] * channel_stride
    total = tl.zeros([BLOCK_V], dtype=tl.float32)
    for start in range(0, pixels, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        inside = (pixel[:, None] < pixels) & (channel[None, :] < channels)
        tile = tl.load(feature + pixel[:, None] * pixel_stride, mask=inside, other=0.0)
        total += tl.sum(tile.to(tl.float32), axis=0)
    tl.store(mean + row * channels + channel, total / pixels, mask=channel < channels)


@triton.jit
def similarity_kernel(
    features,
    mean,
    key_embedding,
    lambda_spatial,
    centre,
    out,
    pixels,
    channels,
    batch_stride,
    pixel_stride,
    channel_stride,
    BLOCK_P: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    feature = features + row * batch_stride + pixel[:, None] * pixel_stride
    product = tl.zeros([BLOCK_P], dtype=tl.float32)
    length = tl.zeros([BLOCK_P], dtype=tl.float32)
    key_length = tl.zeros([BLOCK_V], dtype=tl.float32)
    centred = tl.load(centre + row) != 0
    for start in range(0, channels, BLOCK_V):
        channel = start + tl.arange(0, BLOCK_V)
        inside = (pixel[:, None] < pixels) & (channel[None, :] < channels)
        tile = tl.load(feature + channel[None, :] * channel_stride, mask=inside, other=0.0).to(tl.float32)
        middle = tl.load(mean + row * channels + channel, mask=channel < channels, other=0.0)
        tile = tile - tl.where(centred, middle, 0.0)[None, :]
        key = tl.load(key_embedding + row * channels + channel, mask=channel < channels, other=0.0)
        key = key.to(tl.float32)
        product += tl.sum(tile * key[None, :], axis=1)
        length += tl.sum(tile * tile, axis=1)
        key_length += key * key
    norm = tl.maximum(tl.sqrt(length), _TINY) * tl.maximum(tl.sqrt(tl.sum(key_length, axis=0)), _TINY)
    cosine = tl.minimum(tl.maximum(product / norm, 0.0), 1.0)
    factor = tl.load(lambda_spatial + row).to(tl.float32)
    tl.store(out + row * pixels + pixel, factor * cosine, mask=pixel < pixels)


def launch(features: Tensor, key_embedding: Tensor, lambda_spatial: Tensor, centre: Tensor) -> Tensor:
    """Launch the kernels on arguments that fit; features of any strides, the rest contiguous."""
    batch, pixels, channels = features.shape
    out = torch.empty(batch, pixels, dtype=torch.float32, device=features.device)
    mean = torch.empty(batch, channels, dtype=torch.float32, device=features.device)
    blocks = {"BLOCK_P": _BLOCK_P, "BLOCK_V": _BLOCK_V, "num_warps": 4}
    sizes = (pixels, channels, *features.stride())
    mean_kernel[(triton.cdiv(channels, _BLOCK_V), batch)](features, mean, *sizes, **blocks)
    similarity_kernel[(triton.cdiv(pixels, _BLOCK_P), batch)](
        features, mean, key_embedding, lambda_spatial, centre, out, *sizes, **blocks
    )
    return out
