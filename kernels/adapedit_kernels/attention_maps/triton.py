"""Attention maps as two Triton kernels: probabilities of a head and a block of pixels, and their sum over heads.

Heads go to programs of their own, so that few rows fill a GPU; what each adds lies in memory until it is summed, in a
fixed order and without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adapedit_kernels.edited_attention.triton import LOG2_E, block_of, load_tile, logits_of, split_width


@triton.jit(do_not_specialize=["batch"])
def map_kernel(
    query,
    key,
    map_row,
    partial,
    exponent_scale,
    batch,
    heads,
    pixels,
    tokens,
    query_batch_stride,
    query_pixel_stride,
    key_batch_stride,
    key_token_stride,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LAST_N: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Probabilities [M, H, P, N] float32. All tokens are at hand: BLOCK_N of them and LAST_N more."""
    place = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = place
    if LISTED:  # a wrong row must not read foreign memory
        row = tl.minimum(tl.maximum(tl.load(map_row + place), 0), batch - 1)
    q_start = query + row * query_batch_stride + head * WIDTH
    k_start = key + row * key_batch_stride + head * WIDTH
    q = load_tile(q_start, pixel, query_pixel_stride, pixels, 0, WIDTH, HEAD)
    q_tail = q
    if TAIL > 0:
        q_tail = load_tile(q_start, pixel, query_pixel_stride, pixels, HEAD, WIDTH, TAIL)
    token = tl.arange(0, BLOCK_N)
    logits = logits_of((q, q_tail), k_start, key_token_stride, token, tokens, WIDTH, HEAD, TAIL)
    logits *= exponent_scale
    peak = tl.max(logits, axis=1)
    if LAST_N > 0:
        last = BLOCK_N + tl.arange(0, LAST_N)
        more = logits_of((q, q_tail), k_start, key_token_stride, last, tokens, WIDTH, HEAD, TAIL)
        more *= exponent_scale
        peak = tl.maximum(peak, tl.max(more, axis=1))
    powers = tl.exp2(logits - peak[:, None])
    total = tl.sum(powers, axis=1)
    if LAST_N > 0:
        powers_more = tl.exp2(more - peak[:, None])
        total += tl.sum(powers_more, axis=1)
    share = 1.0 / total
    start = partial + ((place * heads + head) * pixels + pixel[:, None]) * tokens
    inside = pixel[:, None] < pixels
    tl.store(start + token[None, :], powers * share[:, None], mask=inside & (token[None, :] < tokens))
    if LAST_N > 0:
        tl.store(start + last[None, :], powers_more * share[:, None], mask=inside & (last[None, :] < tokens))


@triton.jit
def map_sum_kernel(partial, map_sum, map_scale, heads, values, map_batch_stride, BLOCK: tl.constexpr):
    """Add the sum over heads of ``partial`` [M, H, values], scaled, to ``map_sum`` [M, values]."""
    place = tl.program_id(1).to(tl.int64)
    value = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = value < values
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for head in tl.range(0, heads):
        total += tl.load(partial + (place * heads + head) * values + value, mask=inside, other=0.0)
    target = map_sum + place * map_batch_stride + value
    tl.store(target, tl.load(target, mask=inside, other=0.0) + map_scale * total, mask=inside)


SUM_BLOCK = 256


def map_tile(width: int, tokens: int) -> dict[str, int]:
    """Sizes of a program of :func:`map_kernel`, by the kernel's names: 77 tokens are 64 and 16."""
    head, tail = split_width(width)
    whole = max(16, 1 << (tokens.bit_length() - 1))
    return {"BLOCK_P": 16, "BLOCK_N": whole, "LAST_N": block_of(tokens - whole), "HEAD": head, "TAIL": tail}


def launch(
    query: Tensor,
    key: Tensor,
    heads: int,
    map_row: Tensor | None,
    map_sum: Tensor,
    map_weight: float,
    scale: float,
) -> None:
    """Add to ``map_sum`` [M, P, N] in place, on arguments that fit."""
    batch, pixels, channels = query.shape
    rows, tokens, width = len(map_sum), key.shape[1], channels // heads
    if map_sum.numel() == 0:
        return
    partial = torch.empty(rows, heads, pixels, tokens, dtype=torch.float32, device=query.device)
    tile = map_tile(width, tokens)
    map_kernel[(triton.cdiv(pixels, tile["BLOCK_P"]), heads, rows)](
        *(query, key, map_row, partial, scale * LOG2_E, batch, heads, pixels, tokens),
        *(*query.stride()[:2], *key.stride()[:2]),
        WIDTH=width,
        LISTED=map_row is not None,
        num_warps=4,
        **tile,
    )
    values = pixels * tokens
    map_sum_kernel[(triton.cdiv(values, SUM_BLOCK), rows)](
        *(partial, map_sum, map_weight / heads, heads, values, map_sum.stride(0)), BLOCK=SUM_BLOCK
    )
