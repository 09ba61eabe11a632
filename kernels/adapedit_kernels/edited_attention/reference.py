"""Edited cross-attention in plain PyTorch: the specification, and the path that runs on the CPU.

Differentiable in query, key and value; no operation in place and no branch on values, so that it exports.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapedit_kernels.dispatch import to_dtype, wide_dtype


def blend_maps(
    own: Tensor,
    source_row: Tensor,
    token_map: Tensor,
    own_weight: Tensor,
    spatial_weight: Tensor,
    spatial_map: Tensor,
) -> Tensor:
    """Blend each row's cross-attention map with the map of its source row.

    ``R = M[source_row] A``, ``W = u + v S``, ``M^ = R + W (M - R)``, written ``M + (1 - W)(R - M)`` so that
    a row that is its own source (``W`` set to 1) keeps ``M`` to the last bit.

    Args:
        own: ``M`` [B, H, P, N], probabilities.
        source_row: [B] int64.
        token_map: ``A`` [B, N, N], source token to target token.
        own_weight: ``u`` [B, N].
        spatial_weight: ``v`` [B, N].
        spatial_map: ``S`` [B, P].

    Returns:
        ``M^`` [B, H, P, N] in the dtype of ``own``.
    """
    remapped = own.index_select(0, source_row) @ to_dtype(token_map, own.dtype)[:, None]  # [B, H, P, N]
    weight = own_weight[:, None, :] + spatial_weight[:, None, :] * spatial_map[:, :, None]  # [B, P, N]
    itself = source_row == torch.arange(own.shape[0], device=source_row.device)
    source_share = to_dtype(torch.where(itself[:, None, None], 0.0, 1.0 - weight), own.dtype)
    return own + source_share[:, None] * (remapped - own)


def edited_attention_with_maps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: Sequence[Tensor],
    *,
    scale: float,
    maps: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Attention whose probabilities are edited, and the rows' own maps averaged over heads.

    ``controls`` are the five arguments of :func:`blend_maps` after ``own``, none where no row is edited.
    Shapes as in :func:`adapedit_kernels.edited_attention.edited_attention`. Half precision is computed in float32
    and rounded once at the end.

    Returns:
        out [B, H, P, D] in the query's dtype, and ``M`` averaged over heads [B, P, N] (float32, or float64
        for float64 inputs), or None where ``maps`` is False.
    """
    wide = wide_dtype(query)
    logits = (to_dtype(query, wide) * scale) @ to_dtype(key, wide).transpose(-1, -2)
    own = logits.softmax(dim=-1)  # [B, H, P, N]
    blended = blend_maps(own, *controls) if controls else own
    out = to_dtype(blended @ to_dtype(value, wide), query.dtype)
    # Under autocast the products before it are in half precision, and so is their softmax.
    return out, (to_dtype(own, wide).mean(dim=1) if maps else None)
