"""How edited attention is cut into programs: one table for the launcher and for compilation ahead of time."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Tile", "choose_tile", "padded_tokens", "stride_unit"]


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
    """Tile for a call; every one of them compiles without spills for sm_80 to sm_120 (see the resource report).

    Args:
        dtype: of query, key and value.
        width: of a head, in channels.
        pixels: of a row.
        tokens: of a row.
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
    """Largest of 8 and 1 that divides all strides: 8 elements let the kernel load 16 bytes at a time."""
    return 8 if all(stride % 8 == 0 for stride in strides) else 1
