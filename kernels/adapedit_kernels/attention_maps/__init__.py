"""Cross-attention maps, averaged over heads: the only place where attention probabilities are formed."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels import dispatch
from adapedit_kernels.attention_maps import reference
from adapedit_kernels.dispatch import FLOATING, INTEGER

__all__ = ["attention_maps"]

_NAME = "attention_maps"


def attention_maps(
    query: Tensor,
    key: Tensor,
    *,
    heads: int,
    map_row: Tensor | None = None,
    scale: float | None = None,
    map_sum: Tensor | None = None,
    map_weight: float = 1.0,
    check_values: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """Maps [M, P, N] of the rows asked for: ``map_sum``, if given, plus ``map_weight`` times the mean over heads of M.

    Maps of several layers are averaged by handing what one layer returned to the next, each with its share as
    ``map_weight``: Triton adds to it in place, the reference does not and is differentiable in query and key.

    Args:
        query: [B, P, H * D] float32, float16 or bfloat16 (the reference takes float64 too).
        key: [B, N, H * D], dtype of the query.
        heads: H.
        map_row: [M] int64, the rows whose maps are wanted; None: all.
        scale: factor on the logits, by default ``D ** -0.5``.
        map_sum: [M, P, N] float32 (float64 for float64), what an earlier call returned: given up.
        map_weight: the factor on this call's maps.
        check_values: look at the values of ``map_row`` too; on a CUDA tensor this waits for the device.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Raises:
        AdapEditError: shapes, dtypes, devices or strides that don't fit, rows outside the batch.
        ImplementationError: the named implementation can't run here.
    """
    chosen = dispatch.implementation_for(_NAME, implementation, query, key, map_sum)
    sums = (torch.float32,) if chosen == "triton" else (torch.float32, torch.float64)
    expected = {
        "query": (query, "B P C", FLOATING[chosen]),
        "key": (key, "B N C", (query.dtype,)),
        "map_row": (map_row, "M", INTEGER),
        "map_sum": (map_sum, "B P N" if map_row is None else "M P N", sums),
    }
    dispatch.check_attention(_NAME, expected, heads, chosen, check_values=check_values)
    scale = (query.shape[-1] // heads) ** -0.5 if scale is None else float(scale)
    if chosen == "triton":
        if map_sum is None:
            rows = query.shape[0] if map_row is None else len(map_row)
            map_sum = query.new_zeros(rows, query.shape[1], key.shape[1], dtype=torch.float32)
        attention_maps_operator(query, key, heads, map_row, map_sum, map_weight, scale)
        return map_sum
    maps = reference.attention_maps(query, key, heads, map_row, scale=scale)
    if map_sum is not None:
        return torch.add(map_sum, maps, alpha=map_weight)
    return maps if map_weight == 1 else maps * map_weight


def _add(
    query: Tensor,
    key: Tensor,
    heads: int,
    map_row: Tensor | None,
    map_sum: Tensor,
    map_weight: float,
    scale: float,
) -> None:
    map_sum.add_(reference.attention_maps(query, key, heads, map_row, scale=scale), alpha=map_weight)


attention_maps_operator = dispatch.operator(
    _NAME,
    "(Tensor query, Tensor key, int heads, Tensor? map_row, Tensor(a!) map_sum, float map_weight, float scale) -> ()",
    _add,
    lambda *_: None,
)
