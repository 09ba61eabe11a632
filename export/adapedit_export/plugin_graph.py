"""The UNet's graph with edited cross-attention as one node a layer, which full TensorRT's plug-in takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapedit_engine.processors import split_heads
from adapedit_export.tensorrt.plugin import NAMESPACE, PLUGIN

CONTROLS = ("source_row", "token_map", "own_weight", "spatial_weight", "spatial_map")
VERSION = "1"
"""Of the plug-in, as TensorRT's parser looks for it."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    maps: bool,
    map_sum: Tensor | None,
    map_weight: float,
    check_values: bool,
    **controls: Any,
) -> tuple[Tensor, Tensor | None]:
    """In place of `edited_attention_with_maps` while a UNet is traced: a node, of no value anywhere else.

    Its inputs and outputs are laid out as `adapedit_export.tensorrt.plugin` says.
    """
    heads = query.shape[1]
    joined = [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)]
    mixed, own = torch.onnx.ops.symbolic_multi_out(
        PLUGIN,
        (*joined, *(controls[name] for name in CONTROLS)),
        attrs={
            "heads": heads,
            "scale": float(scale),
            "plugin_namespace": NAMESPACE,
            "plugin_version": VERSION,
        },
        dtypes=(query.dtype, torch.float32),
        shapes=(joined[0].shape, (query.shape[0], query.shape[2], key.shape[2])),
        version=1,
    )
    if not maps:
        return split_heads(mixed, heads), None
    # The node's outputs are its own alone, so the sum over layers is left to TensorRT, which fuses such things.
    weighted = own * map_weight
    return split_heads(mixed, heads), weighted if map_sum is None else map_sum + weighted
