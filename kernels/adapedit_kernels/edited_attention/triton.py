"""Edited cross-attention as one Triton kernel: both attentions with prepared values and the interpolation by S.

A program takes a block of pixels of one head of an edited row and goes over the keys block by block, the softmax
online. Where W is 2, probabilities times S meet the second part of the values in the same accumulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from adapedit_kernels.edited_attention.reference import edited_attention

LOG2_E = 1.4426950408889634


@triton.jit
def load_tile(start, row, row_stride, rows, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[rows of the block, BLOCK] channels from ``first`` on, 0 beyond the last row and channel."""
    channel = first + tl.arange(0, BLOCK)
    place = start + row[:, None] * row_stride + channel[None, :]
    if first + BLOCK <= WIDTH:
        return tl.load(place, mask=row[:, None] < rows, other=0.0)
    return tl.load(place, mask=(row[:, None] < rows) & (channel[None, :] < WIDTH), other=0.0)


@triton.jit
def logits_of(
    queries, key, key_stride, token, tokens, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr
):
    """Q K^T [pixels, tokens of the block] float32, -inf beyond the last token. queries: the pieces of Q."""
    q, q_tail = queries
    k = load_tile(key, token, key_stride, tokens, 0, WIDTH, HEAD)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee")
    if TAIL > 0:
        k_tail = load_tile(key, token, key_stride, tokens, HEAD, WIDTH, TAIL)
        logits = tl.dot(q_tail, tl.trans(k_tail), logits, input_precision="ieee")
    return tl.where(token[None, :] < tokens, logits, float("-inf"))


@triton.jit
def _block(
    state,
    queries,
    key,
    values,
    strides,
    token,
    tokens,
    place_weight,
    exponent_scale,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    SPATIAL: tl.constexpr,
):
    """The state (peak, sum of powers, the two pieces of the output) after a block of keys."""
    peak, total, acc, acc_tail = state
    key_stride, value_stride, part_stride = strides
    logits = logits_of(queries, key, key_stride, token, tokens, WIDTH, HEAD, TAIL) * exponent_scale
    higher = tl.maximum(peak, tl.max(logits, axis=1))
    rescale = tl.exp2(peak - higher)
    powers = tl.exp2(logits - higher[:, None])
    total = total * rescale + tl.sum(powers, axis=1)
    acc *= rescale[:, None]
    acc_tail *= rescale[:, None]
    for part in tl.static_range(2 if SPATIAL else 1):
        start = values + part * part_stride
        v = load_tile(start, token, value_stride, tokens, 0, WIDTH, HEAD)
        weighted = powers if part == 0 else powers * place_weight[:, None]
        probs = weighted.to(v.dtype)
        acc = tl.dot(probs, v, acc, input_precision="ieee")
        if TAIL > 0:
            v_tail = load_tile(start, token, value_stride, tokens, HEAD, WIDTH, TAIL)
            acc_tail = tl.dot(probs, v_tail, acc_tail, input_precision="ieee")
    return higher, total, acc, acc_tail


# By default Triton compiles anew for a number that is 1, and for one that 16 divides: rows come and go in a server.
# All strides of a model are such multiples, which lets it load 16 bytes at a time.
@triton.jit(do_not_specialize=["batch"])
def edited_attention_kernel(
    query,
    key,
    values,
    out,
    edited_row,
    source_row,
    spatial_map,
    log_sum_exp,
    exponent_scale,
    batch,
    heads,
    pixels,
    tokens,
    query_batch_stride,
    query_pixel_stride,
    key_batch_stride,
    key_token_stride,
    value_half_stride,
    value_edit_stride,
    value_part_stride,
    value_token_stride,
    out_batch_stride,
    out_pixel_stride,
    spatial_map_stride,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LAST_N: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    SPATIAL: tl.constexpr,
    LSE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Keys are taken BLOCK_N at a time and, where LAST_N is not 0, as many as that at the end."""
    edit = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    # A wrong row must not read or write foreign memory.
    row = tl.minimum(tl.maximum(tl.load(edited_row + edit), 0), batch - 1)
    source = tl.minimum(tl.maximum(tl.load(source_row + edit), 0), batch - 1)
    if row == source:
        return
    place_weight = tl.zeros([BLOCK_P], dtype=tl.float32)
    if SPATIAL:
        place = spatial_map + edit * spatial_map_stride + pixel
        place_weight = tl.load(place, mask=pixel < pixels, other=0.0).to(tl.float32)
    result = tl.zeros([BLOCK_P, HEAD], dtype=tl.float32)
    result_tail = tl.zeros([BLOCK_P, TAIL if TAIL > 0 else 1], dtype=tl.float32)
    strides = (key_token_stride, value_token_stride, value_part_stride)
    for half in tl.range(0, 2, disable_licm=True):
        taken = tl.where(half == 0, source, row)
        q_start = query + taken * query_batch_stride + head * WIDTH
        k_start = key + taken * key_batch_stride + head * WIDTH
        v_start = values + half * value_half_stride + edit * value_edit_stride + head * WIDTH
        q = load_tile(q_start, pixel, query_pixel_stride, pixels, 0, WIDTH, HEAD)
        q_tail = q
        if TAIL > 0:
            q_tail = load_tile(q_start, pixel, query_pixel_stride, pixels, HEAD, WIDTH, TAIL)
        queries = (q, q_tail)
        peak = tl.full([BLOCK_P], float("-inf"), dtype=tl.float32)
        total = tl.zeros([BLOCK_P], dtype=tl.float32)
        acc = tl.zeros([BLOCK_P, HEAD], dtype=tl.float32)
        acc_tail = tl.zeros([BLOCK_P, TAIL if TAIL > 0 else 1], dtype=tl.float32)
        state = (peak, total, acc, acc_tail)
        whole = tokens // BLOCK_N * BLOCK_N if LAST_N > 0 else tokens
        for start in tl.range(0, whole, BLOCK_N, num_stages=STAGES):
            state = _block(
                state, queries, k_start, v_start, strides, start + tl.arange(0, BLOCK_N), tokens, place_weight,
                exponent_scale, WIDTH, HEAD, TAIL, SPATIAL,
            )  # fmt: skip
        if LAST_N > 0:
            state = _block(
                state, queries, k_start, v_start, strides, whole + tl.arange(0, LAST_N), tokens, place_weight,
                exponent_scale, WIDTH, HEAD, TAIL, SPATIAL,
            )  # fmt: skip
        peak, total, acc, acc_tail = state
        share = 1.0 / total
        result += acc * share[:, None]
        result_tail += acc_tail * share[:, None]
        if LSE:  # of the row itself, which comes last
            lse = (peak + tl.log2(total)) * 0.6931471805599453
            tl.store(log_sum_exp + (edit * heads + head) * pixels + pixel, lse, mask=pixel < pixels)
    o_start = out + row * out_batch_stride + head * WIDTH
    store_tile(o_start, result, pixel, out_pixel_stride, pixels, 0, WIDTH, HEAD)
    if TAIL > 0:
        store_tile(o_start, result_tail, pixel, out_pixel_stride, pixels, HEAD, WIDTH, TAIL)


@triton.jit
def store_tile(start, tile, row, row_stride, rows, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    channel = first + tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (channel[None, :] < WIDTH)
    tl.store(
        start + row[:, None] * row_stride + channel[None, :], tile.to(start.dtype.element_ty), mask=inside
    )


class Tile(NamedTuple):
    """Sizes of one program; the names are the kernel's."""

    BLOCK_P: int  # pixels
    BLOCK_N: int  # keys at a time
    LAST_N: int  # keys at the end, 0: there is no shorter block
    HEAD: int  # channels of a head in one piece
    TAIL: int  # and in another, 0: there is none
    STAGES: int
    num_warps: int


def split_width(width: int) -> tuple[int, int]:
    """Channels of a head as two powers of two of at least 16, the second 0 where one holds all."""
    head = max(16, 1 << (width.bit_length() - 1))
    return head, block_of(width - head)


def block_of(size: int) -> int:
    """The least power of two from 16 on that holds so many; 0 where there are none."""
    return max(16, 1 << (size - 1).bit_length()) if size > 0 else 0


def choose_tile(dtype: torch.dtype, width: int, pixels: int, tokens: int) -> Tile:
    """Tile for a call on heads of this width; every one compiles without spills for sm_80 to sm_120."""
    head, tail = split_width(width)
    if dtype == torch.float32:  # no tensor cores: operands live in registers, so they are cut finer
        return Tile(16, 16, 0, head, tail, 1, 4)
    block = 64 if width <= 64 or (width <= 96 and pixels >= 1024) else 32
    last = block_of(tokens % block)
    last = 0 if last == block else last
    large = pixels >= 1024 and width <= 96
    return Tile(64 if large else 16, block, last, head, tail, 2, 8 if width > 96 else 4)


def launch(
    query: Tensor, key: Tensor, value: Tensor, heads: int, edits: Sequence[Tensor], scale: float
) -> Tensor:
    """Plain attention of all rows, and the edited ones in their place."""
    out = edited_attention(query, key, value, heads, (), scale)
    write_edited(query, key, out, heads, edits, scale)
    return out


def write_edited(
    query: Tensor,
    key: Tensor,
    out: Tensor,
    heads: int,
    edits: Sequence[Tensor],
    scale: float,
    *,
    log_sum_exp: Tensor | None = None,
) -> None:
    """Write the edited rows of ``out`` [B, P, H D], on arguments that fit.

    log_sum_exp: [E, H, P] float32 contiguous, of the edited rows' own logits.
    """
    edited_row, source_row, prepared, *spatial_map = edits
    batch, pixels, channels = query.shape
    entries, width = len(edited_row), channels // heads
    if out.numel() == 0 or not entries:
        return
    tile = choose_tile(query.dtype, width, pixels, key.shape[1])
    edited_attention_kernel[(triton.cdiv(pixels, tile.BLOCK_P), heads, entries)](
        *(query, key, prepared, out, edited_row, source_row),
        *(spatial_map[0] if spatial_map else None, log_sum_exp, scale * LOG2_E),
        *(batch, heads, pixels, key.shape[1]),
        *(*query.stride()[:2], *key.stride()[:2], *prepared.stride()[:4], *out.stride()[:2]),
        spatial_map[0].stride(0) if spatial_map else 0,
        WIDTH=width,
        SPATIAL=bool(spatial_map),
        LSE=log_sum_exp is not None,
        **tile._asdict(),
    )
