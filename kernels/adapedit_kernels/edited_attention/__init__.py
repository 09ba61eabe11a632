"""Cross-attention whose maps are blended with those of other rows, as plain attention with other values.

With ``M = softmax(scale Q K^T)``, ``R = M_source A`` and ``W = u + v S`` an edited row gives
``(R + W (M - R)) V``. That is linear in both maps, and ``A``, ``u`` and ``v`` act on tokens alone, so that

    V_a = A diag(1 - u) V     V_b = -A diag(v) V     V_c = diag(u) V     V_d = diag(v) V
    out = M_source V_a + M V_c + S (M_source V_b + M V_d)

:func:`prepare_values` makes those four once a prompt or a step, and no probabilities are ever formed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapedit_kernels import dispatch
from adapedit_kernels.dispatch import FLOATING, INTEGER
from adapedit_kernels.edited_attention import reference
from adapedit_kernels.errors import AdapEditError

__all__ = ["edited_attention", "prepare_values"]

_NAME = "edited_attention"


def prepare_values(
    value: Tensor,
    *,
    edited_row: Tensor,
    token_map: Tensor,
    own_weight: Tensor,
    spatial_weight: Tensor,
    spatial: bool = True,
) -> Tensor:
    """Values [2, E, W, N, C], for the source's map and for the row's own; W is 2, or 1 where S is 1 everywhere.

    Args:
        value: [B, N, C] floating; values of several layers may lie side by side.
        edited_row: [E] int64, the rows that are edited.
        token_map: ``A`` [E, N, N] floating; ``A[e, i, j]`` is the weight of source token i in target token j.
        own_weight: ``u`` [E, N] floating.
        spatial_weight: ``v`` [E, N] floating.
        spatial: whether the attention is given a spatial map; False: S is 1 everywhere.
    """
    return reference.prepare_values(value, edited_row, token_map, own_weight, spatial_weight, spatial=spatial)


def edited_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    edited_row: Tensor | None = None,
    source_row: Tensor | None = None,
    prepared: Tensor | None = None,
    spatial_map: Tensor | None = None,
    scale: float | None = None,
    check_values: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """Cross-attention [B, P, H * D] with some rows' maps blended with those of their source rows.

    Every row gets PyTorch's fused attention, so one that is not edited, or is its own source, has the same bits
    whatever is said of others. With the reference it is differentiable in query, key and value, and exports.

    Args:
        query: [B, P, H * D] float32, float16 or bfloat16 (the reference takes float64 too).
        key: [B, N, H * D], dtype of the query.
        value: [B, N, H * D], dtype of the query.
        heads: H.
        edited_row: [E] int64, the rows that are edited, each named once; None: no row is.
        source_row: [E] int64, the row whose map is taken; the row itself: it is not edited after all.
        prepared: [2, E, W, N, H * D] as :func:`prepare_values` makes it, dtype of the query.
        spatial_map: ``S`` [E, P] floating, where W is 2.
        scale: factor on the logits, by default ``D ** -0.5``.
        check_values: look at the values of the rows too. On a CUDA tensor this waits for the device, so a loop that
            checked its controls once passes False; the kernel itself clamps rows into the batch.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``: of the edited rows.

    Raises:
        AdapEditError: shapes, dtypes, devices or strides that don't fit, rows outside the batch.
        ImplementationError: the named implementation can't run here.
    """
    chosen = dispatch.implementation_for(_NAME, implementation, query, key, value)
    own = (query.dtype,)
    expected: dict[str, Any] = {
        "query": (query, "B P C", FLOATING[chosen]),
        "key": (key, "B N C", own),
        "value": (value, "B N C", own),
    }
    if edited_row is not None:
        expected |= _of_edits(edited_row, source_row, prepared, spatial_map, own)
    dispatch.check_attention(_NAME, expected, heads, chosen, check_values=check_values)
    scale = (query.shape[-1] // heads) ** -0.5 if scale is None else float(scale)
    edits = [tensor for tensor, *_ in list(expected.values())[3:] if tensor is not None]
    if chosen == "triton" and edits:
        return edited_attention_operator(query, key, value, heads, edits, scale)
    return reference.edited_attention(query, key, value, heads, edits, scale)


def _of_edits(
    edited_row: Tensor,
    source_row: Tensor | None,
    prepared: Tensor | None,
    spatial_map: Tensor | None,
    own: Any,
) -> dict[str, Any]:
    """What is expected of the edits. own: dtypes of the prepared values."""
    if source_row is None or prepared is None:
        missing = "source_row" if source_row is None else "prepared"
        raise AdapEditError(f"{_NAME}: {missing} is None and edited_row is not; give all of the edit or none")
    return {
        "edited_row": (edited_row, "E", INTEGER),
        "source_row": (source_row, "E", INTEGER),
        "prepared": (prepared, "2 E 1 N C" if spatial_map is None else "2 E 2 N C", own),
        "spatial_map": (spatial_map, "E P", FLOATING["reference"]),
    }


edited_attention_operator = dispatch.operator(
    _NAME,
    "(Tensor query, Tensor key, Tensor value, int heads, Tensor[] edits, float scale) -> Tensor",
    reference.edited_attention,
    lambda query, *_: torch.empty_like(query, memory_format=torch.contiguous_format),
)
