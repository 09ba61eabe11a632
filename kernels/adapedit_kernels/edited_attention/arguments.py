"""What edited attention takes, checked before anything is computed or launched."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.checks import check_dtype, check_last_stride, check_rows, check_same_device, check_shape
from adapedit_kernels.errors import AdapEditError

__all__ = ["HEAD_WIDTHS", "MAX_TOKENS", "Controls", "check_arguments"]

Controls = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]

HEAD_WIDTHS = range(8, 257)
MAX_TOKENS = 128

_NAME = "edited_attention"
_HALF_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
_FLOATING = (*_HALF_AND_SINGLE, torch.float64)
_CONTROL_NAMES = ("source_row", "token_map", "own_weight", "spatial_weight", "spatial_map")


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    controls: Controls,
    map_sum: Tensor | None,
    *,
    edited: bool,
    check_values: bool,
    chosen: str,
) -> None:
    """Raise AdapEditError unless the arguments fit together and the chosen implementation takes them."""
    check_shape(_NAME, "query", query, (None, None, None, None), "[B, H, P, D]")
    batch, heads, pixels, width = query.shape
    check_shape(_NAME, "key", key, (batch, heads, None, width), "[B, H, N, D]")
    tokens = key.shape[2]
    check_shape(_NAME, "value", value, (batch, heads, tokens, width), "[B, H, N, D]")
    check_dtype(_NAME, "query", query, _HALF_AND_SINGLE if chosen == "triton" else _FLOATING)
    check_dtype(_NAME, "key", key, (query.dtype,))
    check_dtype(_NAME, "value", value, (query.dtype,))
    tensors: dict[str, Tensor | None] = {"query": query, "key": key, "value": value}
    if edited:
        tensors |= dict(zip(_CONTROL_NAMES, controls, strict=True))
        shapes = ((batch,), (batch, tokens, tokens), (batch, tokens), (batch, tokens), (batch, pixels))
        letters = ("[B]", "[B, N, N]", "[B, N]", "[B, N]", "[B, P]")
        for name, control, shape, axes in zip(_CONTROL_NAMES, controls, shapes, letters, strict=True):
            if control is None:
                raise AdapEditError(
                    f"{_NAME}: {name} is None, wanted {axes}; give all controls or edited=False"
                )
            check_shape(_NAME, name, control, shape, axes)
            check_dtype(_NAME, name, control, (torch.int64,) if name == "source_row" else _FLOATING)
    if map_sum is not None:
        tensors["map_sum"] = map_sum
        check_shape(_NAME, "map_sum", map_sum, (batch, pixels, tokens), "[B, P, N]")
        check_dtype(_NAME, "map_sum", map_sum, (torch.float32, torch.float64))
    check_same_device(_NAME, tensors)
    if chosen == "triton":
        _check_kernel_limits(tensors, tokens, width)
    if edited and check_values:
        assert controls[0] is not None
        check_rows(_NAME, "source_row", controls[0], batch)


def _check_kernel_limits(tensors: dict[str, Tensor | None], tokens: int, width: int) -> None:
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
        if tensor is None:
            continue
        check_last_stride(_NAME, name, tensor)
        if name == "map_sum":
            check_dtype(_NAME, name, tensor, (torch.float32,))
