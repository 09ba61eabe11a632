"""Cross-attention maps in plain PyTorch: the specification, and what runs wherever no Triton kernel does."""

from __future__ import annotations

from torch import Tensor

from adapedit_kernels.dispatch import to_dtype, wide_dtype


def attention_maps(query: Tensor, key: Tensor, heads: int, map_row: Tensor | None, *, scale: float) -> Tensor:
    """``softmax(scale Q K^T)`` averaged over heads, [M, P, N]; half precision is computed in float32."""
    if map_row is not None:
        query, key = query.index_select(0, map_row), key.index_select(0, map_row)
    wide = wide_dtype(query)
    query, key = (to_dtype(t, wide).unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key))
    probs = ((query * scale) @ key.transpose(-1, -2)).softmax(dim=-1)
    # Under autocast the product is in half precision, and so is its softmax.
    return to_dtype(probs, wide).mean(dim=1)
