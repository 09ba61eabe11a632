"""The word relation as three Triton kernels (embed, relate, finish), and their launch.

The masked maps' column sums are never formed: dividing a column by its sum (or by the softmax's) only scales a
token's embedding, and embeddings are brought to length 1 right after.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from adapedit_kernels.word_relation.reference import FREED_EARLY, HELD_BASE, RelationKnobs, WordRelation

_TINY = tl.constexpr(1e-12)
_FREED_EARLY = tl.constexpr(FREED_EARLY)
_HELD_BASE = tl.constexpr(HELD_BASE)
_BLOCK_P = 16
_BLOCK_V = 32


@triton.jit
def embed_kernel(
    maps,
    features,
    threshold,
    relative,
    temperature,
    centre,
    embedding,
    pixels,
    tokens,
    channels,
    map_batch_stride,
    map_pixel_stride,
    batch_stride,
    pixel_stride,
    channel_stride,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Weighted sums of features for all tokens and some channels: [N, BLOCK_V] of one row."""
    row = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    token = tl.arange(0, BLOCK_N)
    column = maps + row * map_batch_stride + token[:, None]
    feature = features + row * batch_stride + channel[None, :] * channel_stride
    # Reduced after the loop: Triton up to 3.7 fails to compile a reduction in it whose result is used more than once.
    peaks = tl.full([BLOCK_N, BLOCK_P], float("-inf"), dtype=tl.float32)
    leasts = tl.full([BLOCK_N, BLOCK_P], float("inf"), dtype=tl.float32)
    middle = tl.zeros([BLOCK_V], dtype=tl.float32)
    for start in range(0, pixels, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        inside = (pixel[None, :] < pixels) & (token[:, None] < tokens)
        columns = tl.load(column + pixel[None, :] * map_pixel_stride, mask=inside, other=float("-inf"))
        columns = columns.to(tl.float32)
        peaks = tl.maximum(peaks, columns)
        leasts = tl.minimum(leasts, tl.where(inside, columns, float("inf")))
        visible = (pixel[:, None] < pixels) & (channel[None, :] < channels)
        tile = tl.load(feature + pixel[:, None] * pixel_stride, mask=visible, other=0.0)
        middle += tl.sum(tile.to(tl.float32), axis=0)
    peak, least = tl.max(peaks, axis=1), tl.min(leasts, axis=1)
    centred = tl.load(centre + row) != 0
    middle = tl.where(centred, middle / pixels, 0.0)
    limit = tl.load(threshold + row).to(tl.float32)
    limit = tl.where(tl.load(relative + row) != 0, limit * peak, limit)
    warmth = tl.load(temperature + row).to(tl.float32)
    softmax = warmth > 0
    warmth = tl.where(softmax, warmth, 1.0)
    seen = (peak >= limit) & (peak > 0)
    # Centred features sum to 0: the weights' common part would only add rounding, so it is taken off.
    common = tl.where(least >= limit, least, 0.0)
    common = tl.where(softmax, tl.exp((common - peak) / warmth), common)
    common = tl.where(centred, common, 0.0)

    total = tl.zeros([BLOCK_N, BLOCK_V], dtype=tl.float32)
    for start in range(0, pixels, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        inside = (pixel[None, :] < pixels) & (token[:, None] < tokens)
        weight = tl.load(column + pixel[None, :] * map_pixel_stride, mask=inside, other=0.0).to(tl.float32)
        weight = tl.where(weight >= limit[:, None], weight, 0.0)
        weight = tl.where(softmax, tl.exp((weight - peak[:, None]) / warmth), weight)
        weight = tl.where(inside & seen[:, None], weight - common[:, None], 0.0)
        visible = (pixel[:, None] < pixels) & (channel[None, :] < channels)
        tile = tl.load(feature + pixel[:, None] * pixel_stride, mask=visible, other=0.0).to(tl.float32)
        total = tl.dot(weight, tile - middle[None, :], total, input_precision="ieee")
    place = embedding + row * tokens * channels + token[:, None] * channels + channel[None, :]
    tl.store(place, total, mask=(token[:, None] < tokens) & (channel[None, :] < channels))


@triton.jit
def _unit_rows(embedding, row, token, channel, tokens, channels, inverse):
    tile = tl.load(
        embedding + row * tokens * channels + token[:, None] * channels + channel[None, :],
        mask=(token[:, None] < tokens) & (channel[None, :] < channels),
        other=0.0,
    )
    return tile * inverse[:, None]


@triton.jit
def relate_kernel(
    embedding,
    key_tokens,
    word_of_token,
    lambda_tau,
    released,
    relation,
    word_steps,
    word_share,
    key_embedding,
    tokens,
    channels,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Relation and steps of one token; the first token's program also writes the key embedding."""
    row = tl.program_id(1).to(tl.int64)
    this = tl.program_id(0)
    token = tl.arange(0, BLOCK_N)
    real = token < tokens
    squares = tl.zeros([BLOCK_N], dtype=tl.float32)
    ones = tl.full([BLOCK_N], 1.0, dtype=tl.float32)
    for start in range(0, channels, BLOCK_V):
        tile = _unit_rows(embedding, row, token, start + tl.arange(0, BLOCK_V), tokens, channels, ones)
        squares += tl.sum(tile * tile, axis=1)
    inverse = 1.0 / tl.maximum(tl.sqrt(squares), _TINY)

    is_key = (tl.load(key_tokens + row * tokens + token, mask=real, other=0) != 0).to(tl.float32)
    words = tl.load(word_of_token + row * tokens + token, mask=real, other=-1)
    word = tl.load(word_of_token + row * tokens + this)
    group = (real & (((words == word) & (word >= 0)) | (token == this))).to(tl.float32)
    product = tl.zeros([BLOCK_V], dtype=tl.float32)
    word_squares = tl.zeros([BLOCK_V], dtype=tl.float32)
    key_squares = tl.zeros([BLOCK_V], dtype=tl.float32)
    for start in range(0, channels, BLOCK_V):
        tile = _unit_rows(embedding, row, token, start + tl.arange(0, BLOCK_V), tokens, channels, inverse)
        word_part = tl.sum(tile * group[:, None], axis=0)
        key_part = tl.sum(tile * is_key[:, None], axis=0)
        product += word_part * key_part
        word_squares += word_part * word_part
        key_squares += key_part * key_part
    key_norm = tl.maximum(tl.sqrt(tl.sum(key_squares, axis=0)), _TINY)
    word_norm = tl.maximum(tl.sqrt(tl.sum(word_squares, axis=0)), _TINY)
    cosine = tl.sum(product, axis=0) / (key_norm * word_norm)
    cosine = tl.minimum(tl.maximum(cosine, -1.0), 1.0)

    paper = 1.0 - tl.exp(cosine - 1.0)
    difference = tl.where(tl.load(released + row) != 0, tl.exp(1.0 - cosine) - 1.0, paper)
    steps = tl.load(lambda_tau + row).to(tl.float32) * difference
    steps = tl.minimum(tl.maximum(steps, 0.0), 1.0)
    in_key_word = tl.sum(group * is_key, axis=0) > 0
    steps = tl.where(in_key_word, 0.0, steps)
    share = tl.where((word >= 0) & (in_key_word == 0), 1.0 / tl.sum(group, axis=0), 0.0)
    tl.store(relation + row * tokens + this, cosine)
    tl.store(word_steps + row * tokens + this, steps)
    tl.store(word_share + row * tokens + this, share)
    if this == 0:
        for start in range(0, channels, BLOCK_V):
            channel = start + tl.arange(0, BLOCK_V)
            tile = _unit_rows(embedding, row, token, channel, tokens, channels, inverse)
            key_part = tl.sum(tile * is_key[:, None], axis=0) / key_norm
            tl.store(key_embedding + row * channels + channel, key_part, mask=channel < channels)


@triton.jit
def finish_kernel(
    key_tokens, word_of_token, word_share, word_steps, default_steps, tokens, BLOCK_N: tl.constexpr
):
    """The default for tokens without a word, from the share of kept words that are freed early."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK_N)
    real = token < tokens
    share = tl.load(word_share + row * tokens + token, mask=real, other=0.0)
    steps = tl.load(word_steps + row * tokens + token, mask=real, other=1.0)
    early = tl.sum(tl.where(steps < _FREED_EARLY, share, 0.0), axis=0) / tl.maximum(
        tl.sum(share, axis=0), _TINY
    )
    # This way round: the interpreter of Triton 3.7 takes no constant on the left.
    default = tl.maximum(-early + _HELD_BASE, 0.0)
    tl.store(default_steps + row, default)
    word = tl.load(word_of_token + row * tokens + token, mask=real, other=0)
    is_key = tl.load(key_tokens + row * tokens + token, mask=real, other=1)
    wordless = real & (word < 0) & (is_key == 0)
    tl.store(
        word_steps + row * tokens + token, tl.zeros([BLOCK_N], dtype=tl.float32) + default, mask=wordless
    )


def launch(
    maps: Tensor, features: Tensor, key_tokens: Tensor, word_of_token: Tensor, knobs: Iterable[Tensor]
) -> WordRelation:
    """Launch the kernels on arguments that fit; features of any strides."""
    knobs = RelationKnobs(*knobs)
    batch, pixels, tokens = maps.shape
    channels = features.shape[2]

    def fresh(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=maps.device)

    result = WordRelation(fresh(batch, tokens), fresh(batch, tokens), fresh(batch, channels), fresh(batch))
    embedding, word_share = fresh(batch, tokens, channels), fresh(batch, tokens)
    words = (key_tokens, word_of_token)
    weighting = (knobs.threshold, knobs.relative, knobs.temperature, knobs.centre)
    sizes = (pixels, tokens, channels, *maps.stride()[:2], *features.stride())
    block_n = max(16, triton.next_power_of_2(tokens))
    blocks = {"BLOCK_N": block_n, "BLOCK_V": _BLOCK_V, "num_warps": max(4, block_n // 32)}
    embed_kernel[(triton.cdiv(channels, _BLOCK_V), batch)](
        maps, features, *weighting, embedding, *sizes, BLOCK_P=_BLOCK_P, **blocks
    )
    found = (result.relation, result.word_steps, word_share, result.key_embedding)
    relate_kernel[(tokens, batch)](
        embedding, *words, knobs.lambda_tau, knobs.released, *found, tokens, channels, **blocks
    )
    finish_kernel[(batch,)](
        *words, word_share, result.word_steps, result.default_steps, tokens, BLOCK_N=block_n, num_warps=1
    )
    return result
