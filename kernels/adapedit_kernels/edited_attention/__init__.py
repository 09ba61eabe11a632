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
    INTEGER,
    check_last_stride,
    check_rows,
    check_tensors,
    implementation_for,
    launch,
    operator_implementation,
)
from adapedit_kernels.edited_attention import reference
from adapedit_kernels.errors import AdapEditError

__all__ = ["edited_attention", "edited_attention_with_maps"]

HEAD_WIDTHS = range(8, 257)
MAX_TOKENS = 128

_NAME = "edited_attention"
_CONTROLS = {
    "source_row": "B",
    "token_map": "B N N",
    "own_weight": "B N",
    "spatial_weight": "B N",
    "spatial_map": "B P",
}
_Tensors = tuple[Tensor, Tensor, Tensor, list[Tensor]]  # query, key, value and the controls


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
    tensors = (query, key, value, controls)
    chosen = implementation_for(_NAME, implementation, query, key, value)
    if chosen == "triton":
        return _operated(tensors, map_sum, map_weight, scale, check_values)
    check_arguments(*tensors, map_sum, check_values=check_values, chosen=chosen)
    if not controls and map_sum is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    return _by_reference(tensors, map_sum, map_weight, scale)


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
    tensors = (query, key, value, controls)
    chosen = implementation_for(_NAME, implementation, query, key, value, map_sum)
    if chosen == "triton":
        if map_sum is None and maps:
            shape = (query.shape[0], query.shape[2], key.shape[2])
            map_sum = torch.zeros(shape, dtype=torch.float32, device=query.device)
        return _operated(tensors, map_sum, map_weight, scale, check_values), map_sum
    check_arguments(*tensors, map_sum, check_values=check_values, chosen=chosen)
    out, own = reference.edited_attention_with_maps(*tensors, scale=scale, maps=maps)
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
            wanted = axes.replace(" ", ", ")
            raise AdapEditError(
                f"{_NAME}: {name} is None, wanted [{wanted}]; give all controls or edited=False"
            )
        given.append(control)
    return given


def _operated(
    tensors: _Tensors, map_sum: Tensor | None, map_weight: float, scale: float, check_values: bool
) -> Tensor:
    if map_sum is None:
        out = edited_attention_operator(*tensors, scale, check_values)
    else:
        out = edited_attention_maps_operator(*tensors, map_sum, map_weight, scale, check_values)
    return out.transpose(1, 2)


def _by_reference(tensors: _Tensors, map_sum: Tensor | None, map_weight: float, scale: float) -> Tensor:
    """The reference, [B, H, P, D]; adds to ``map_sum`` in place."""
    out, maps = reference.edited_attention_with_maps(*tensors, scale=scale, maps=map_sum is not None)
    if map_sum is not None and maps is not None:
        map_sum.add_(maps.detach(), alpha=map_weight)
    return out


def _operate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: list[Tensor],
    map_sum: Tensor | None,
    map_weight: float,
    scale: float,
    check_values: bool,
) -> Tensor:
    """What both operators do: [B, P, H, D]."""
    chosen = operator_implementation(query)
    check_arguments(query, key, value, controls, map_sum, check_values=check_values, chosen=chosen)
    if chosen == "reference":
        out = _by_reference((query, key, value, controls), map_sum, map_weight, scale)
        return out.transpose(1, 2).contiguous()
    return launch(_NAME, query, key, value, controls, map_sum, map_weight, scale)


@torch.library.custom_op("adapedit_kernels::edited_attention", mutates_args=())
def edited_attention_operator(
    query: Tensor, key: Tensor, value: Tensor, controls: list[Tensor], scale: float, check_values: bool
) -> Tensor:
    return _operate(query, key, value, controls, None, 1.0, scale, check_values)


edited_attention_maps_operator = torch.library.custom_op(
    "adapedit_kernels::edited_attention_maps",
    _operate,
    mutates_args=("map_sum",),
    schema="(Tensor query, Tensor key, Tensor value, Tensor[] controls, Tensor(a!) map_sum, float map_weight, "
    "float scale, bool check_values) -> Tensor",
)


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
    floating, own = FLOATING[chosen], (query.dtype,)
    expected = {
        "query": (query, "B H P D", floating),
        "key": (key, "B H N D", own),
        "value": (value, "B H N D", own),
    }
    for (name, axes), control in zip(_CONTROLS.items(), controls, strict=bool(controls)):
        expected[name] = (control, axes, INTEGER if name == "source_row" else FLOATING["reference"])
    if map_sum is not None:
        sums = (torch.float32,) if chosen == "triton" else (torch.float32, torch.float64)
        expected["map_sum"] = (map_sum, "B P N", sums)
    check_tensors(_NAME, expected)
    if chosen == "triton":
        _check_kernel_limits(key.shape[2], query.shape[3])
        for name, (tensor, *_) in expected.items():
            check_last_stride(_NAME, name, tensor)
    if controls and check_values:
        check_rows(_NAME, "source_row", controls[0], query.shape[0])


def _check_kernel_limits(tokens: int, width: int) -> None:
    if tokens > MAX_TOKENS:
        raise AdapEditError(
            f"{_NAME}: {tokens} tokens, the kernel takes 1 to {MAX_TOKENS}; name implementation='reference'"
        )
    if width not in HEAD_WIDTHS:
        raise AdapEditError(
            f"{_NAME}: heads are {width} wide, the kernel takes {HEAD_WIDTHS.start} to {HEAD_WIDTHS.stop - 1}; "
            "name implementation='reference'"
        )
