"""Edited attention as PyTorch operators, which compilers and exporters pass through as one node.

``torch.ops.adapedit_kernels.edited_attention`` and ``…edited_attention_maps`` (which adds to ``map_sum``) return
[B, P, H, D]. They launch the Triton kernel on CUDA tensors, and on CPU tensors where Triton is interpreted; on
other CPU tensors they compute the reference, so that a graph traced on the CPU can be run there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import interpreting
from adapedit_kernels.edited_attention import reference
from adapedit_kernels.edited_attention.arguments import check_arguments

__all__ = ["edited_attention_maps_operator", "edited_attention_operator"]


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    map_sum: Tensor | None,
    map_weight: float,
    scale: float,
    edited: bool,
    check_values: bool,
) -> Tensor:
    kernel = query.is_cuda or interpreting()
    chosen = "triton" if kernel else "reference"
    check_arguments(
        query, key, value, controls, map_sum, edited=edited, check_values=check_values, chosen=chosen
    )
    if kernel:
        from adapedit_kernels.edited_attention.launcher import launch

        return launch(query, key, value, controls, map_sum, map_weight, scale, edited=edited)
    source_row, token_map, own_weight, spatial_weight, spatial_map = controls
    out, maps = reference.edited_attention_with_maps(
        query,
        key,
        value,
        source_row=source_row,
        token_map=token_map,
        own_weight=own_weight,
        spatial_weight=spatial_weight,
        spatial_map=spatial_map,
        scale=scale,
        edited=edited,
        maps=map_sum is not None,
    )
    if map_sum is not None and maps is not None:
        map_sum.add_(maps, alpha=map_weight)
    return out.transpose(1, 2).contiguous()


@torch.library.custom_op("adapedit_kernels::edited_attention", mutates_args=())
def edited_attention_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source_row: Tensor | None,
    token_map: Tensor | None,
    own_weight: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_map: Tensor | None,
    scale: float,
    edited: bool,
    check_values: bool,
) -> Tensor:
    controls = (source_row, token_map, own_weight, spatial_weight, spatial_map)
    return _run(query, key, value, controls, None, 1.0, scale, edited, check_values)


@edited_attention_operator.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source_row: Tensor | None,
    token_map: Tensor | None,
    own_weight: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_map: Tensor | None,
    scale: float,
    edited: bool,
    check_values: bool,
) -> Tensor:
    batch, heads, pixels, width = query.shape
    return query.new_empty(batch, pixels, heads, width)


@torch.library.custom_op("adapedit_kernels::edited_attention_maps", mutates_args=("map_sum",))
def edited_attention_maps_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source_row: Tensor | None,
    token_map: Tensor | None,
    own_weight: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_map: Tensor | None,
    map_sum: Tensor,
    map_weight: float,
    scale: float,
    edited: bool,
    check_values: bool,
) -> Tensor:
    controls = (source_row, token_map, own_weight, spatial_weight, spatial_map)
    return _run(query, key, value, controls, map_sum, map_weight, scale, edited, check_values)


@edited_attention_maps_operator.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source_row: Tensor | None,
    token_map: Tensor | None,
    own_weight: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_map: Tensor | None,
    map_sum: Tensor,
    map_weight: float,
    scale: float,
    edited: bool,
    check_values: bool,
) -> Tensor:
    batch, heads, pixels, width = query.shape
    return query.new_empty(batch, pixels, heads, width)
