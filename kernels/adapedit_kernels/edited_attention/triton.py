"""Edited cross-attention as one Triton kernel, how it is cut into programs, and its launch.

One program takes a block of pixels of one row: of one head, or, where maps are asked, of all heads in turn, so that
the average over heads is summed in registers, in a fixed order and without atomics. The maps of the source row are
computed again from its query and key: cheaper than writing probabilities to memory and reading them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634


@triton.jit
def _logits(query, key, strides, block, exponent_scale, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Logits of one head in powers of two: [pixels of the block, tokens] float32, -inf beyond the last token.

    strides: of a pixel in query and a token in key. block: its pixels and tokens, and how many there are in all.
    """
    query_stride, key_stride = strides
    pixel, token, pixels, tokens = block
    logits = tl.zeros([pixel.shape[0], token.shape[0]], dtype=tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK_D):
        channel = start + tl.arange(0, BLOCK_D)
        q = tl.load(
            query + pixel[:, None] * query_stride + channel[None, :],
            mask=(pixel[:, None] < pixels) & (channel[None, :] < WIDTH),
            other=0.0,
        )
        k = tl.load(
            key + token[None, :] * key_stride + channel[:, None],
            mask=(token[None, :] < tokens) & (channel[:, None] < WIDTH),
            other=0.0,
        )
        logits = tl.dot(q, k, logits, input_precision="ieee")
    return tl.where(token[None, :] < tokens, logits * exponent_scale, float("-inf"))


@triton.jit
def _times(probs, matrix, stride, column, tokens, columns, CHUNK: tl.constexpr):
    """probs [BLOCK_P, BLOCK_N] times a matrix in memory, a few of its rows at a time."""
    BLOCK_P: tl.constexpr = probs.shape[0]
    BLOCK_N: tl.constexpr = probs.shape[1]
    CHUNKS: tl.constexpr = BLOCK_N // CHUNK
    total = tl.zeros([BLOCK_P, column.shape[0]], dtype=tl.float32)
    slices = tl.reshape(probs, [BLOCK_P, CHUNKS, CHUNK])
    for index in tl.range(0, tl.cdiv(tokens, CHUNK), disable_licm=True):
        chosen = tl.where(tl.arange(0, CHUNKS)[None, :, None] == index, slices, 0.0)
        part = tl.sum(chosen, axis=1)
        token = index * CHUNK + tl.arange(0, CHUNK)
        values = tl.load(
            matrix + token[:, None] * stride + column[None, :],
            mask=(token[:, None] < tokens) & (column[None, :] < columns),
            other=0.0,
        )
        total = tl.dot(part.to(values.dtype), values, total, input_precision="ieee")
    return total


@triton.jit
def _remapped(
    query,
    key,
    token_map,
    strides,
    token_map_stride,
    block,
    exponent_scale,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """softmax(scale Q K^T) A of one head of the source row, a few source tokens at a time, the softmax online."""
    pixel, column, pixels, tokens = block
    BLOCK_P: tl.constexpr = pixel.shape[0]
    peak = tl.full([BLOCK_P], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_P], dtype=tl.float32)
    remapped = tl.zeros([BLOCK_P, column.shape[0]], dtype=tl.float32)
    for start in tl.range(0, tokens, CHUNK, disable_licm=True):
        token = start + tl.arange(0, CHUNK)
        part = (pixel, token, pixels, tokens)
        logits = _logits(query, key, strides, part, exponent_scale, WIDTH, BLOCK_D)
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        rescale = tl.exp2(peak - higher)
        peak = higher
        powers = tl.exp2(logits - peak[:, None])
        total = total * rescale + tl.sum(powers, axis=1)
        a = tl.load(
            token_map + token[:, None] * token_map_stride + column[None, :],
            mask=(token[:, None] < tokens) & (column[None, :] < tokens),
            other=0.0,
        ).to(query.dtype.element_ty)
        remapped = tl.dot(powers.to(a.dtype), a, remapped * rescale[:, None], input_precision="ieee")
    return remapped / total[:, None]


@triton.jit
def _store(place, tile, stride, pixel, channel, pixels, width):
    tl.store(
        place + pixel[:, None] * stride + channel[None, :],
        tile.to(place.dtype.element_ty),
        mask=(pixel[:, None] < pixels) & (channel[None, :] < width),
    )


# By default Triton compiles anew for a number that is 1, and for one that 16 divides: rows come and go in a server.
@triton.jit(do_not_specialize=["batch"])
def edited_attention_kernel(
    query,
    key,
    value,
    out,
    source_row,
    token_map,
    own_weight,
    spatial_weight,
    spatial_map,
    map_sum,
    exponent_scale,
    map_scale,
    batch,
    heads,
    pixels,
    tokens,
    query_batch_stride,
    query_head_stride,
    query_pixel_stride,
    key_batch_stride,
    key_head_stride,
    key_token_stride,
    value_batch_stride,
    value_head_stride,
    value_token_stride,
    out_batch_stride,
    out_head_stride,
    out_pixel_stride,
    token_map_batch_stride,
    token_map_stride,
    own_weight_stride,
    spatial_weight_stride,
    spatial_map_stride,
    map_batch_stride,
    map_pixel_stride,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKED_VALUES: tl.constexpr,
    EDITED: tl.constexpr,
    MAPS: tl.constexpr,
    STRIDE_UNIT: tl.constexpr,
):
    # A multiple that the compiler sees lets it load 16 bytes at a time, whatever the heads' width.
    query_batch_stride *= STRIDE_UNIT
    query_head_stride *= STRIDE_UNIT
    query_pixel_stride *= STRIDE_UNIT
    key_batch_stride *= STRIDE_UNIT
    key_head_stride *= STRIDE_UNIT
    key_token_stride *= STRIDE_UNIT
    value_batch_stride *= STRIDE_UNIT
    value_head_stride *= STRIDE_UNIT
    value_token_stride *= STRIDE_UNIT
    out_batch_stride *= STRIDE_UNIT
    out_head_stride *= STRIDE_UNIT
    out_pixel_stride *= STRIDE_UNIT
    row = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    token = tl.arange(0, BLOCK_N)
    strides = (query_pixel_stride, key_token_stride)
    block = (pixel, token, pixels, tokens)
    first_head = tl.program_id(1)
    last_head = first_head + 1
    if MAPS:
        first_head = 0
        last_head = heads
        map_total = tl.zeros([BLOCK_P, BLOCK_N], dtype=tl.float32)
    source = row
    if EDITED:
        source = tl.load(source_row + row)
        source = tl.minimum(tl.maximum(source, 0), batch - 1)  # a wrong row must not read foreign memory

    for head in tl.range(first_head, last_head, disable_licm=True):
        logits = _logits(
            query + row * query_batch_stride + head * query_head_stride,
            key + row * key_batch_stride + head * key_head_stride,
            strides,
            block,
            exponent_scale,
            WIDTH,
            BLOCK_D,
        )
        probs = tl.exp2(logits - tl.max(logits, axis=1)[:, None])
        probs = probs / tl.sum(probs, axis=1)[:, None]
        if MAPS:
            map_total += probs
        if EDITED:  # noqa: SIM102 - this one is decided when compiling, the next one when running
            if source != row:
                remapped = _remapped(
                    query + source * query_batch_stride + head * query_head_stride,
                    key + source * key_batch_stride + head * key_head_stride,
                    token_map + row * token_map_batch_stride,
                    strides,
                    token_map_stride,
                    block,
                    exponent_scale,
                    WIDTH,
                    BLOCK_D,
                    CHUNK,
                )
                u = tl.load(own_weight + row * own_weight_stride + token, mask=token < tokens, other=0.0)
                v = tl.load(
                    spatial_weight + row * spatial_weight_stride + token, mask=token < tokens, other=0.0
                )
                s = tl.load(spatial_map + row * spatial_map_stride + pixel, mask=pixel < pixels, other=0.0)
                weight = u.to(tl.float32)[None, :] + v.to(tl.float32)[None, :] * s.to(tl.float32)[:, None]
                probs = remapped + weight * (probs - remapped)
        values = value + row * value_batch_stride + head * value_head_stride
        place = out + row * out_batch_stride + head * out_head_stride
        if CHUNKED_VALUES:
            for start in tl.range(0, WIDTH, BLOCK_D, disable_licm=True):
                channel = start + tl.arange(0, BLOCK_D)
                part = _times(probs, values, value_token_stride, channel, tokens, WIDTH, CHUNK)
                _store(place, part, out_pixel_stride, pixel, channel, pixels, WIDTH)
        else:
            for start in tl.static_range(0, WIDTH, BLOCK_D):
                channel = start + tl.arange(0, BLOCK_D)
                tile = tl.load(
                    values + token[:, None] * value_token_stride + channel[None, :],
                    mask=(token[:, None] < tokens) & (channel[None, :] < WIDTH),
                    other=0.0,
                )
                part = tl.dot(probs.to(tile.dtype), tile, input_precision="ieee")
                _store(place, part, out_pixel_stride, pixel, channel, pixels, WIDTH)
    if MAPS:
        total = map_sum + row * map_batch_stride + pixel[:, None] * map_pixel_stride + token[None, :]
        inside = (pixel[:, None] < pixels) & (token[None, :] < tokens)
        tl.store(total, tl.load(total, mask=inside, other=0.0) + map_scale * map_total, mask=inside)


class Tile(NamedTuple):
    """Sizes of one program; the names are the kernel's."""

    BLOCK_P: int  # pixels
    BLOCK_D: int  # channels loaded at a time
    CHUNK: int  # source tokens remapped at a time
    CHUNKED_VALUES: bool  # multiply by the values a few tokens at a time too
    num_warps: int


def padded_tokens(tokens: int) -> int:
    """Width of the tile that holds all tokens: a power of two, as the compiler wants, and at least 16 for a dot."""
    return max(16, 1 << (tokens - 1).bit_length())


def choose_tile(dtype: torch.dtype, width: int, pixels: int, tokens: int, *, maps: bool) -> Tile:
    """Tile for a call on heads of this width; every one compiles without spills for sm_80 to sm_120.

    maps: whether the average over heads is kept in registers too.
    """
    chunk = min(32, padded_tokens(tokens))
    if dtype == torch.float32:  # no tensor cores: operands live in registers, so they are cut finer
        return Tile(16, 16, 16, True, 4)
    if maps or width > 96 or pixels < 1024:
        return Tile(16, 32, chunk, False, 4)
    # 16 pixels a warp. With wide heads the registers are just enough for half a chunk on sm_86 and sm_89.
    return Tile(64, 32, chunk if width <= 64 else 16, False, 4)


def stride_unit(strides: list[int]) -> int:
    """The larger of 8 and 1 that divides all strides: 8 elements let the kernel load 16 bytes at a time."""
    return 8 if all(stride % 8 == 0 for stride in strides) else 1


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: Sequence[Tensor],
    map_sum: Tensor | None,
    map_weight: float,
    scale: float,
) -> Tensor:
    """Launch the kernel on arguments that :func:`check_arguments` has passed.

    Returns:
        [B, P, H, D] contiguous, so that bringing the heads back together costs nothing.
    """
    batch, heads, pixels, width = query.shape
    tokens = key.shape[2]
    out = torch.empty(batch, pixels, heads, width, dtype=query.dtype, device=query.device)
    if out.numel() == 0:
        return out
    tile = choose_tile(query.dtype, width, pixels, tokens, maps=map_sum is not None)
    heads_first = (query, key, value, out.transpose(1, 2))
    strides = [stride for tensor in heads_first for stride in tensor.stride()[:3]]
    unit = stride_unit(strides)
    given: Sequence[Tensor | None] = controls or (None,) * 5
    control_strides: Sequence[int] = (0,) * 5
    if controls:
        _, token_map, *rest = controls
        control_strides = (*token_map.stride()[:2], *(control.stride(0) for control in rest))
    grid = (triton.cdiv(pixels, tile.BLOCK_P), heads if map_sum is None else 1, batch)
    edited_attention_kernel[grid](
        *(query, key, value, out, *given, map_sum),
        *(scale * _LOG2_E, map_weight / heads, batch, heads, pixels, tokens),
        *(stride // unit for stride in strides),
        *control_strides,
        *((0, 0) if map_sum is None else map_sum.stride()[:2]),
        WIDTH=width,
        BLOCK_N=padded_tokens(tokens),
        EDITED=bool(controls),
        MAPS=map_sum is not None,
        STRIDE_UNIT=unit,
        num_stages=1,
        **tile._asdict(),
    )
    return out
