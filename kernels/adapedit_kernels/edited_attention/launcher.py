"""Launches the kernel of edited attention."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from adapedit_kernels.edited_attention.arguments import Controls
from adapedit_kernels.edited_attention.tiles import choose_tile, padded_tokens, stride_unit
from adapedit_kernels.edited_attention.triton import edited_attention_kernel

__all__ = ["launch"]

_LOG2_E = 1.4426950408889634


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: Controls,
    map_sum: Tensor | None,
    map_weight: float,
    scale: float,
    *,
    edited: bool,
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
    source_row, token_map, own_weight, spatial_weight, spatial_map = controls if edited else (None,) * 5
    strides = [
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        out.stride(0),
        out.stride(2),
        out.stride(1),
    ]
    unit = stride_unit(strides)
    control_strides: tuple[int, ...] = (0, 0, 0, 0, 0)
    if (
        token_map is not None
        and own_weight is not None
        and spatial_weight is not None
        and spatial_map is not None
    ):
        control_strides = (
            *token_map.stride()[:2],
            own_weight.stride(0),
            spatial_weight.stride(0),
            spatial_map.stride(0),
        )
    grid = (triton.cdiv(pixels, tile.BLOCK_P), heads if map_sum is None else 1, batch)
    edited_attention_kernel[grid](
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
        scale * _LOG2_E,
        map_weight / heads,
        batch,
        heads,
        pixels,
        tokens,
        *(stride // unit for stride in strides),
        *control_strides,
        *((0, 0) if map_sum is None else map_sum.stride()[:2]),
        WIDTH=width,
        BLOCK_N=padded_tokens(tokens),
        EDITED=edited,
        MAPS=map_sum is not None,
        STRIDE_UNIT=unit,
        num_stages=1,
        **tile._asdict(),
    )
    return out
