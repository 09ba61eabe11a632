"""Cross-attention maps, averaged over heads: the only place where attention probabilities are formed."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.attention_maps import reference
from adapedit_kernels.dispatch import (
    FLOATING,
    INTEGER,
    check_heads,
    check_last_stride,
    check_rows,
    check_tensors,
    implementation_for,
    launch,
    operator_implementation,
)

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
    chosen = implementation_for(_NAME, implementation, query, key, map_sum)
    check_arguments(query, key, heads, map_row, map_sum, check_values=check_values, chosen=chosen)
    scale = (query.shape[-1] // heads) ** -0.5 if scale is None else float(scale)
    if chosen == "triton":
        if map_sum is None:
            rows = query.shape[0] if map_row is None else len(map_row)
            map_sum = query.new_zeros(rows, query.shape[1], key.shape[1], dtype=torch.float32)
        attention_maps_operator(query, key, heads, map_row, map_sum, map_weight, scale)
        return map_sum
    maps = _by_reference(query, key, heads, map_row, scale)
    if map_sum is not None:
        return torch.add(map_sum, maps, alpha=map_weight)
    return maps if map_weight == 1 else maps * map_weight


def _by_reference(query: Tensor, key: Tensor, heads: int, map_row: Tensor | None, scale: float) -> Tensor:
    if map_row is not None:
        query, key = query.index_select(0, map_row), key.index_select(0, map_row)
    return reference.attention_maps(query, key, heads, scale=scale)


@torch.library.custom_op("adapedit_kernels::attention_maps", mutates_args=("map_sum",))
def attention_maps_operator(
    query: Tensor,
    key: Tensor,
    heads: int,
    map_row: Tensor | None,
    map_sum: Tensor,
    map_weight: float,
    scale: float,
) -> None:
    if operator_implementation(query) == "reference":
        map_sum.add_(_by_reference(query, key, heads, map_row, scale), alpha=map_weight)
        return
    launch(_NAME, query, key, heads, map_row, map_sum, map_weight, scale)


@attention_maps_operator.register_fake
def _(*_: object) -> None:
    return None


def check_arguments(
    query: Tensor,
    key: Tensor,
    heads: int,
    map_row: Tensor | None,
    map_sum: Tensor | None,
    *,
    check_values: bool,
    chosen: str,
) -> None:
    """Raise AdapEditError unless the arguments fit together and the chosen implementation takes them."""
    sums = (torch.float32,) if chosen == "triton" else (torch.float32, torch.float64)
    rows = "B" if map_row is None else "M"
    expected = {
        "query": (query, "B P C", FLOATING[chosen]),
        "key": (key, "B N C", (query.dtype,)),
        "map_row": (map_row, "M", INTEGER),
        "map_sum": (map_sum, f"{rows} P N", sums),
    }
    check_tensors(_NAME, expected)
    check_heads(_NAME, heads, query.shape[2], chosen)
    if chosen == "triton":
        for name, (tensor, *_) in expected.items():
            if tensor is not None:
                check_last_stride(_NAME, name, tensor)
    if map_row is not None and check_values:
        check_rows(_NAME, "map_row", map_row, query.shape[0])
