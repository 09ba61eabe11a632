"""Spatial similarity as Triton kernels (mean, cosine, resize), and their launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adapedit_kernels.checks import check_contiguous

__all__ = ["launch", "mean_kernel", "resize_kernel", "similarity_kernel"]

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
    total = tl.zeros([BLOCK_V], dtype=tl.float32)
    for start in range(0, pixels, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        tile = tl.load(
            features + row * batch_stride + pixel[:, None] * pixel_stride + channel[None, :] * channel_stride,
            mask=(pixel[:, None] < pixels) & (channel[None, :] < channels),
            other=0.0,
        )
        total += tl.sum(tile.to(tl.float32), axis=0)
    tl.store(mean + row * channels + channel, total / pixels, mask=channel < channels)


@triton.jit
def similarity_kernel(
    features,
    mean,
    key_embedding,
    lambda_spatial,
    out,
    pixels,
    channels,
    batch_stride,
    pixel_stride,
    channel_stride,
    BLOCK_P: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CENTRE: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    product = tl.zeros([BLOCK_P], dtype=tl.float32)
    length = tl.zeros([BLOCK_P], dtype=tl.float32)
    key_length = tl.zeros([BLOCK_V], dtype=tl.float32)
    for start in range(0, channels, BLOCK_V):
        channel = start + tl.arange(0, BLOCK_V)
        tile = tl.load(
            features + row * batch_stride + pixel[:, None] * pixel_stride + channel[None, :] * channel_stride,
            mask=(pixel[:, None] < pixels) & (channel[None, :] < channels),
            other=0.0,
        ).to(tl.float32)
        if CENTRE:
            centre = tl.load(mean + row * channels + channel, mask=channel < channels, other=0.0)
            tile = tile - centre[None, :]
        key = tl.load(key_embedding + row * channels + channel, mask=channel < channels, other=0.0).to(
            tl.float32
        )
        product += tl.sum(tile * key[None, :], axis=1)
        length += tl.sum(tile * tile, axis=1)
        key_length += key * key
    norm = tl.maximum(tl.sqrt(length), _TINY) * tl.maximum(tl.sqrt(tl.sum(key_length, axis=0)), _TINY)
    cosine = tl.minimum(tl.maximum(product / norm, 0.0), 1.0)
    factor = tl.load(lambda_spatial + row).to(tl.float32)
    tl.store(out + row * pixels + pixel, factor * cosine, mask=pixel < pixels)


@triton.jit
def _axis(place, size, wanted):
    """Two neighbours along one axis and the weight of the second, for bilinear sampling at pixel centres."""
    at = tl.maximum((place + 0.5) * (size.to(tl.float32) / wanted.to(tl.float32)) - 0.5, 0.0)
    low = tl.minimum(at.to(tl.int32), size - 1)
    return low, tl.minimum(low + 1, size - 1), at - low


# A side of 1 would be a constant, which has no dtype, and every new size a compilation.
@triton.jit(do_not_specialize=["height", "width", "wanted_height", "wanted_width"])
def resize_kernel(
    small,
    out,
    height,
    width,
    wanted_height,
    wanted_width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < wanted_height * wanted_width
    top, bottom, down = _axis(place // wanted_width, height, wanted_height)
    left, right, across = _axis(place % wanted_width, width, wanted_width)
    base = small + row * height * width
    upper_left = tl.load(base + top * width + left, mask=inside, other=0.0)
    upper_right = tl.load(base + top * width + right, mask=inside, other=0.0)
    lower_left = tl.load(base + bottom * width + left, mask=inside, other=0.0)
    lower_right = tl.load(base + bottom * width + right, mask=inside, other=0.0)
    upper = upper_left + across * (upper_right - upper_left)
    lower = lower_left + across * (lower_right - lower_left)
    tl.store(out + row * wanted_height * wanted_width + place, upper + down * (lower - upper), mask=inside)


def launch(
    features: Tensor,
    key_embedding: Tensor,
    lambda_spatial: Tensor,
    centre: bool,
    map_size: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """Launch the kernels on arguments that fit; features of any strides, the rest contiguous.

    Raises:
        AdapEditError: a tensor other than ``features`` is not contiguous.
    """
    check_contiguous("spatial_similarity", "key_embedding", key_embedding)
    check_contiguous("spatial_similarity", "lambda_spatial", lambda_spatial)
    batch, pixels, channels = features.shape
    similarity = torch.empty(batch, pixels, dtype=torch.float32, device=features.device)
    mean = torch.empty(batch, channels, dtype=torch.float32, device=features.device) if centre else None
    if similarity.numel() == 0:
        return similarity.new_empty(batch, size[0] * size[1])
    blocks = {"BLOCK_P": _BLOCK_P, "BLOCK_V": _BLOCK_V, "num_warps": 4}
    sizes = (pixels, channels, *features.stride())
    if centre:
        mean_kernel[(triton.cdiv(channels, _BLOCK_V), batch)](features, mean, *sizes, **blocks)
    similarity_kernel[(triton.cdiv(pixels, _BLOCK_P), batch)](
        features, mean, key_embedding, lambda_spatial, similarity, *sizes, CENTRE=centre, **blocks
    )
    if size == map_size:
        return similarity
    resized = torch.empty(batch, size[0] * size[1], dtype=torch.float32, device=features.device)
    grid = (triton.cdiv(resized.shape[1], 256), batch)
    resize_kernel[grid](similarity, resized, *map_size, *size, BLOCK=256, num_warps=4)
    return resized
