"""What spatial similarity takes, checked before anything is computed or launched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adapedit_kernels.checks import check_dtype, check_same_device, check_shape
from adapedit_kernels.errors import AdapEditError

__all__ = ["check_arguments", "square"]

_NAME = "spatial_similarity"
_HALF_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
_FLOATING = (*_HALF_AND_SINGLE, torch.float64)


def square(pixels: int) -> tuple[int, int]:
    """Height and width of a square map."""
    side = math.isqrt(pixels)
    if side * side != pixels:
        raise AdapEditError(f"{_NAME}: {pixels} pixels are no square; give map_size=(height, width)")
    return side, side


def check_arguments(
    features: Tensor,
    key_embedding: Tensor,
    lambda_spatial: Tensor,
    map_size: tuple[int, int] | None,
    size: tuple[int, int] | None,
    *,
    chosen: str,
) -> None:
    """Raise AdapEditError unless the arguments fit together and the chosen implementation takes them."""
    check_shape(_NAME, "features", features, (None, None, None), "[B, P, V]")
    batch, pixels, channels = features.shape
    check_shape(_NAME, "key_embedding", key_embedding, (batch, channels), "[B, V]")
    check_shape(_NAME, "lambda_spatial", lambda_spatial, (batch,), "[B]")
    if 0 in features.shape:
        raise AdapEditError(f"{_NAME}: features {list(features.shape)} hold nothing")
    floating = _HALF_AND_SINGLE if chosen == "triton" else _FLOATING
    named = {"features": features, "key_embedding": key_embedding, "lambda_spatial": lambda_spatial}
    for name, tensor in named.items():
        check_dtype(_NAME, name, tensor, floating)
    check_same_device(_NAME, dict(named))
    if map_size is not None and map_size[0] * map_size[1] != pixels:
        raise AdapEditError(
            f"{_NAME}: map_size {map_size} has not the features' {pixels} pixels; give their size"
        )
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise AdapEditError(f"{_NAME}: size is {size}, wanted (height, width) of at least 1")
