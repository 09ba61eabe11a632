"""Cross-attention that edits its probabilities and shows its maps."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import chosen_implementation, wants_gradient
from adapedit_kernels.edited_attention import reference
from adapedit_kernels.edited_attention.arguments import Controls, check_arguments
from adapedit_kernels.edited_attention.operator import (
    edited_attention_maps_operator,
    edited_attention_operator,
)
from adapedit_kernels.errors import AdapEditError

__all__ = ["edited_attention", "edited_attention_with_maps"]


def edited_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    source_row: Tensor | None = None,
    token_map: Tensor | None = None,
    own_weight: Tensor | None = None,
    spatial_weight: Tensor | None = None,
    spatial_map: Tensor | None = None,
    scale: float | None = None,
    map_sum: Tensor | None = None,
    map_weight: float = 1.0,
    edited: bool = True,
    check_values: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """Cross-attention with the maps of some rows blended with those of their source rows.

    ``M = softmax(scale Q K^T)``, ``R = M[source_row] A``, ``W = u + v S``, ``M^ = R + W (M - R)``,
    ``out = M^ V``; a row that is its own source uses ``M``.

    Args:
        query: [B, H, P, D] float32, float16 or bfloat16 (the reference takes float64 too).
        key: [B, H, N, D], dtype of the query.
        value: [B, H, N, D], dtype of the query.
        source_row: [B] int64, the row that a row takes its map from.
        token_map: ``A`` [B, N, N] floating; ``A[b, i, j]`` is the weight of source token i in target token j.
        own_weight: ``u`` [B, N] floating.
        spatial_weight: ``v`` [B, N] floating.
        spatial_map: ``S`` [B, P] floating.
        scale: factor on the logits, by default ``D ** -0.5``.
        map_sum: [B, P, N] float32, added to in place: ``map_weight`` times the mean over heads of each row's own
            ``M`` (never the blended map).
        map_weight: see ``map_sum``.
        edited: a static promise: False says that no row takes its map from another. The controls may then be
            None, and plain attention is all that is paid for.
        check_values: look at the values of ``source_row`` too. On a CUDA tensor this waits for the device, so a
            loop that checked its controls once passes False; the kernel itself clamps rows into the batch.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        [B, H, P, D] in the query's dtype.

    Raises:
        AdapEditError: shapes, dtypes, devices or strides that don't fit, rows outside the batch.
        ImplementationError: the named implementation can't run here.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    controls = (source_row, token_map, own_weight, spatial_weight, spatial_map)
    chosen = _choose(implementation, query, key, value)
    if chosen == "triton":
        if map_sum is None:
            out = edited_attention_operator(query, key, value, *controls, scale, edited, check_values)
        else:
            out = edited_attention_maps_operator(
                query, key, value, *controls, map_sum, map_weight, scale, edited, check_values
            )
        return out.transpose(1, 2)
    check_arguments(
        query, key, value, controls, map_sum, edited=edited, check_values=check_values, chosen=chosen
    )
    wanted = map_sum is not None
    out, maps = _reference(query, key, value, controls, scale, edited, maps=wanted, fused=True)
    if map_sum is not None and maps is not None:
        map_sum.add_(maps.detach(), alpha=map_weight)
    return out


def edited_attention_with_maps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    source_row: Tensor | None = None,
    token_map: Tensor | None = None,
    own_weight: Tensor | None = None,
    spatial_weight: Tensor | None = None,
    spatial_map: Tensor | None = None,
    scale: float | None = None,
    edited: bool = True,
    maps: bool = True,
    map_sum: Tensor | None = None,
    map_weight: float = 1.0,
    check_values: bool = True,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """As :func:`edited_attention`, as a function: returns the output and the averaged own maps.

    Maps of several layers are averaged by handing what one layer returned to the next, each with its share as
    ``map_weight``: on a GPU all add to one accumulator, which costs no pass over the maps.

    With the reference both are differentiable in query, key and value, and the call exports to ONNX. A row that
    is its own source comes out the same to the last bit whatever ``edited`` and ``maps`` say, since fused
    attention is never used here.

    Args:
        maps: False returns None in place of the maps, and on a GPU saves their cost.
        map_sum: [B, P, N], what an earlier call returned: given up, since Triton adds to it in place and the
            reference does not.
        map_weight: the factor on this call's maps.

    Returns:
        out [B, H, P, D], and ``map_sum``, if given, plus ``map_weight`` times the mean over heads of each row's
        own ``M`` [B, P, N] float32 (float64 for float64), or None.

    Raises:
        AdapEditError, ImplementationError: as :func:`edited_attention`; ``map_sum`` where no maps are wanted.
    """
    if map_sum is not None and not maps:
        raise AdapEditError(
            "edited_attention: map_sum is given and maps=False, which adds nothing; leave one out"
        )
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    controls = (source_row, token_map, own_weight, spatial_weight, spatial_map)
    chosen = _choose(implementation, query, key, value, map_sum)
    if chosen == "triton" and not maps:
        out = edited_attention_operator(query, key, value, *controls, scale, edited, check_values)
        return out.transpose(1, 2), None
    if chosen == "triton":
        if map_sum is None:
            shape = (query.shape[0], query.shape[2], key.shape[2])
            map_sum = torch.zeros(shape, dtype=torch.float32, device=query.device)
        out = edited_attention_maps_operator(
            query, key, value, *controls, map_sum, map_weight, scale, edited, check_values
        )
        return out.transpose(1, 2), map_sum
    check_arguments(
        query, key, value, controls, map_sum, edited=edited, check_values=check_values, chosen=chosen
    )
    out, own = _reference(query, key, value, controls, scale, edited, maps=maps)
    if own is None:
        return out, None
    if map_sum is not None:
        return out, torch.add(map_sum, own, alpha=map_weight)
    return out, own if map_weight == 1 else own * map_weight


def _choose(implementation: str, query: Tensor, *others: Tensor | None) -> str:
    gradient = wants_gradient(query, *others)
    return chosen_implementation(
        implementation, query.device, gradient=gradient, operation="edited_attention"
    )


def _reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: Controls,
    scale: float,
    edited: bool,
    *,
    maps: bool,
    fused: bool = False,
) -> tuple[Tensor, Tensor | None]:
    source_row, token_map, own_weight, spatial_weight, spatial_map = controls
    return reference.edited_attention_with_maps(
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
        maps=maps,
        fused=fused,
    )
