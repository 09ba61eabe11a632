"""Cross-attention that edits its probabilities and shows its maps.

``torch.ops.adapedit_kernels.edited_attention`` and ``…edited_attention_maps`` (which adds to ``map_sum``) are operators
that compilers and exporters pass through as one node. They take a list of the five controls, empty where no row is
edited, and return [B, P, H, D].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_kernels.dispatch import (
    FLOATING,
    check_dtype,
    check_last_stride,
    check_rows,
    check_same_device,
    check_shape,
    implementation_for,
    operator_implementation,
)
from adapedit_kernels.edited_attention import reference
from adapedit_kernels.errors import AdapEditError

__all__ = ["edited_attention", "edited_attention_with_maps"]

HEAD_WIDTHS = range(8, 257)
MAX_TOKENS = 128

_NAME = "edited_attention"
_CONTROLS = {
    "source_row": "[B]",
    "token_map": "[B, N, N]",
    "own_weight": "[B, N]",
    "spatial_weight": "[B, N]",
    "spatial_map": "[B, P]",
}


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
    controls = _controls(edited, source_row, token_map, own_weight, spatial_weight, spatial_map)
    chosen = implementation_for(_NAME, implementation, query, key, value)
    if chosen == "triton":
        return _operated(query, key, value, controls, map_sum, map_weight, scale, check_values)
    check_arguments(query, key, value, controls, map_sum, check_values=check_values, chosen=chosen)
    if not controls and map_sum is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    return _run(query, key, value, controls, map_sum, map_weight, scale, chosen)


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
    is its own source comes out the same to the last bit whatever ``edited`` and ``maps`` say, since PyTorch's fused
    attention, which rounds differently, is never used here.

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
    controls = _controls(edited, source_row, token_map, own_weight, spatial_weight, spatial_map)
    chosen = implementation_for(_NAME, implementation, query, key, value, map_sum)
    if chosen == "triton":
        if map_sum is None and maps:
            shape = (query.shape[0], query.shape[2], key.shape[2])
            map_sum = torch.zeros(shape, dtype=torch.float32, device=query.device)
        return _operated(query, key, value, controls, map_sum, map_weight, scale, check_values), map_sum
    check_arguments(query, key, value, controls, map_sum, check_values=check_values, chosen=chosen)
    out, own = reference.edited_attention_with_maps(query, key, value, controls, scale=scale, maps=maps)
    if own is None:
        return out, None
    if map_sum is not None:
        return out, torch.add(map_sum, own, alpha=map_weight)
    return out, own if map_weight == 1 else own * map_weight


def _controls(edited: bool, *controls: Tensor | None) -> list[Tensor]:
    """The five controls, or none of them where no row is edited."""
    given: list[Tensor] = []
    for (name, axes), control in zip(_CONTROLS.items(), controls if edited else (), strict=edited):
        if control is None:
            raise AdapEditError(f"{_NAME}: {name} is None, wanted {axes}; give all controls or edited=False")
        given.append(control)
    return given


def _operated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: list[Tensor],
    map_sum: Tensor | None,
    map_weight: float,
    scale: float,
    check_values: bool,
) -> Tensor:
    tensors = (query, key, value, controls)
    if map_sum is None:
        out = edited_attention_operator(*tensors, scale, check_values)
    else:
        out = edited_attention_maps_operator(*tensors, map_sum, map_weight, scale, check_values)
    return out.transpose(1, 2)


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: list[Tensor],
    map_sum: Tensor | None,
    map_weight: float,
    scale: float,
    chosen: str,
) -> Tensor:
    """[B, H, P, D]; adds to ``map_sum`` in place."""
    if chosen == "triton":
        from adapedit_kernels.edited_attention.triton import launch

        return launch(query, key, value, controls, map_sum, map_weight, scale).transpose(1, 2)
    wanted = map_sum is not None
    out, maps = reference.edited_attention_with_maps(query, key, value, controls, scale=scale, maps=wanted)
    if map_sum is not None and maps is not None:
        map_sum.add_(maps.detach(), alpha=map_weight)
    return out


@torch.library.custom_op("adapedit_kernels::edited_attention", mutates_args=())
def edited_attention_operator(
    query: Tensor, key: Tensor, value: Tensor, controls: list[Tensor], scale: float, check_values: bool
) -> Tensor:
    chosen = operator_implementation(query)
    check_arguments(query, key, value, controls, None, check_values=check_values, chosen=chosen)
    return _run(query, key, value, controls, None, 1.0, scale, chosen).transpose(1, 2).contiguous()


@torch.library.custom_op("adapedit_kernels::edited_attention_maps", mutates_args=("map_sum",))
def edited_attention_maps_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: list[Tensor],
    map_sum: Tensor,
    map_weight: float,
    scale: float,
    check_values: bool,
) -> Tensor:
    chosen = operator_implementation(query)
    check_arguments(query, key, value, controls, map_sum, check_values=check_values, chosen=chosen)
    return _run(query, key, value, controls, map_sum, map_weight, scale, chosen).transpose(1, 2).contiguous()


@edited_attention_operator.register_fake
@edited_attention_maps_operator.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    batch, heads, pixels, width = query.shape
    return query.new_empty(batch, pixels, heads, width)


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: Sequence[Tensor],
    map_sum: Tensor | None,
    *,
    check_values: bool,
    chosen: str,
) -> None:
    """Raise AdapEditError unless the arguments fit together and the chosen implementation takes them.

    controls: source row, token map, own weight, spatial weight and spatial map; none where no row is edited.
    """
    check_shape(_NAME, "query", query, (None, None, None, None), "[B, H, P, D]")
    batch, heads, pixels, width = query.shape
    check_shape(_NAME, "key", key, (batch, heads, None, width), "[B, H, N, D]")
    tokens = key.shape[2]
    check_shape(_NAME, "value", value, (batch, heads, tokens, width), "[B, H, N, D]")
    check_dtype(_NAME, "query", query, FLOATING[chosen])
    check_dtype(_NAME, "key", key, (query.dtype,))
    check_dtype(_NAME, "value", value, (query.dtype,))
    shapes = ((batch,), (batch, tokens, tokens), (batch, tokens), (batch, tokens), (batch, pixels))
    tensors = {"query": query, "key": key, "value": value}
    for (name, axes), control, shape in zip(_CONTROLS.items(), controls, shapes, strict=bool(controls)):
        tensors[name] = control
        check_shape(_NAME, name, control, shape, axes)
        integer = name == "source_row"
        check_dtype(_NAME, name, control, (torch.int64,) if integer else FLOATING["reference"])
    if map_sum is not None:
        tensors["map_sum"] = map_sum
        check_shape(_NAME, "map_sum", map_sum, (batch, pixels, tokens), "[B, P, N]")
        check_dtype(_NAME, "map_sum", map_sum, (torch.float32, torch.float64))
    check_same_device(_NAME, tensors)
    if chosen == "triton":
        _check_kernel_limits(tensors, tokens, width)
    if controls and check_values:
        check_rows(_NAME, "source_row", controls[0], batch)


def _check_kernel_limits(tensors: dict[str, Tensor], tokens: int, width: int) -> None:
    if tokens > MAX_TOKENS:
        raise AdapEditError(
            f"{_NAME}: {tokens} tokens, the kernel takes 1 to {MAX_TOKENS}; name implementation='reference'"
        )
    if width not in HEAD_WIDTHS:
        raise AdapEditError(
            f"{_NAME}: heads are {width} wide, the kernel takes {HEAD_WIDTHS.start} to {HEAD_WIDTHS.stop - 1}; "
            "name implementation='reference'"
        )
    for name, tensor in tensors.items():
        check_last_stride(_NAME, name, tensor)
        if name == "map_sum":
            check_dtype(_NAME, name, tensor, (torch.float32,))
