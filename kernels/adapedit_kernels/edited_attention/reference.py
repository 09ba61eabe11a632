"""Edited cross-attention in plain PyTorch: the specification, and what runs wherever no Triton kernel does.

Differentiable in query, key and value; nothing in place and no branch on values, so that it exports.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_kernels.dispatch import to_dtype, wide_dtype


def prepare_values(
    value: Tensor,
    edited_row: Tensor,
    token_map: Tensor,
    own_weight: Tensor,
    spatial_weight: Tensor,
    *,
    spatial: bool,
) -> Tensor:
    """Values with which two plain attentions are an edited one; see `adapedit_kernels.edited_attention`."""
    wide = wide_dtype(value)
    token_map, own, weight = (to_dtype(t, wide) for t in (token_map, own_weight, spatial_weight))
    # M^ V = M_source A (1 - u - v S) V + M (u + v S) V: linear in both maps, and A, u, v act on tokens alone.
    taken, kept = token_map * (1 - own).unsqueeze(1), torch.diag_embed(own)
    taken_less, kept_more = token_map * -weight.unsqueeze(1), torch.diag_embed(weight)
    if spatial:
        of_source, of_own = torch.cat([taken, taken_less], 1), torch.cat([kept, kept_more], 1)
    else:
        of_source, of_own = taken + taken_less, kept + kept_more
    mix = torch.stack([of_source, of_own])  # [2, E, W N, N]
    mixed = mix @ to_dtype(value.index_select(0, edited_row), wide)
    return to_dtype(mixed, value.dtype).unflatten(2, (2 if spatial else 1, value.shape[1]))


def edited_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, edits: Sequence[Tensor], scale: float
) -> Tensor:
    """Fused attention of all rows, and of the edited ones twice more, in the place of theirs.

    edits: edited_row, source_row, prepared values, and the spatial map where there is one; none: no row is edited.
    """
    plain = _attention(query, key, value, heads, scale)
    if not edits:
        return plain
    edited_row, source_row, prepared, *spatial_map = edits
    # One row for each part of the values: backends want values as wide as keys.
    rows = torch.stack([torch.cat([source_row, edited_row])] * prepared.shape[2], 1).flatten()
    values = prepared.flatten(0, 2)
    mixed = _attention(query.index_select(0, rows), key.index_select(0, rows), values, heads, scale)
    of_source, of_own = mixed.unflatten(0, (2, -1, prepared.shape[2])).split(1)
    mixed = (of_source + of_own).squeeze(0)  # [E, W, P, H D]
    if spatial_map:
        always, by_place = mixed.split(1, 1)
        mixed = always + to_dtype(spatial_map[0], mixed.dtype).unsqueeze(1).unsqueeze(-1) * by_place
    itself = (edited_row == source_row)[:, None, None]
    mixed = torch.where(itself, plain.index_select(0, edited_row), mixed.squeeze(1))
    return plain.index_put((edited_row,), mixed)


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
    """[B, P, H D] from queries [B, P, H D], keys and values [B, N, H D]."""
    query, key, value = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)
