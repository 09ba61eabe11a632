"""DPS: where in the picture an edit may act."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adapedit_kernels.checks import check_dtype, check_same_device, check_shape
from adapedit_kernels.dispatch import chosen_implementation
from adapedit_kernels.errors import AdapEditError
from adapedit_kernels.spatial_similarity import reference

__all__ = ["spatial_similarity"]

_NAME = "spatial_similarity"
_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _square(pixels: int) -> tuple[int, int]:
    side = math.isqrt(pixels)
    if side * side != pixels:
        raise AdapEditError(f"{_NAME}: {pixels} pixels are no square; give map_size=(height, width)")
    return side, side


def spatial_similarity(
    features: Tensor,
    key_embedding: Tensor,
    *,
    lambda_spatial: float | Tensor = 1.0,
    centre: bool = True,
    size: tuple[int, int] | None = None,
    map_size: tuple[int, int] | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Similarity of every pixel with the edited words, Eq. 9 of the AdapEdit paper, for a batch of edits.

    Args:
        features: [B, P, V] floating, visual features at the map resolution.
        key_embedding: [B, V] floating, of any length; a row of zeros gives 0 everywhere.
        lambda_spatial: factor; a number or [B].
        centre: subtract the features' mean over the pixels first.
        size: (height, width) wanted, by default that of the features; bilinear, pixel centres.
        map_size: (height, width) of the features, needed for ``size`` where P is no square.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        ``S`` [B, height width] float32 (float64 for float64 inputs with the reference).

    Raises:
        AdapEditError: shapes, dtypes or devices that don't fit.
        ImplementationError: the named implementation can't run here.
    """
    chosen_implementation(implementation, features.device, operation=_NAME)
    check_shape(_NAME, "features", features, (None, None, None), "[B, P, V]")
    batch, pixels, channels = features.shape
    check_shape(_NAME, "key_embedding", key_embedding, (batch, channels), "[B, V]")
    check_dtype(_NAME, "features", features, _FLOATING)
    check_dtype(_NAME, "key_embedding", key_embedding, _FLOATING)
    if not isinstance(lambda_spatial, Tensor):
        lambda_spatial = torch.full(
            (batch,), float(lambda_spatial), dtype=torch.float32, device=features.device
        )
    check_shape(_NAME, "lambda_spatial", lambda_spatial, (batch,), "[B]")
    check_same_device(
        _NAME, {"features": features, "key_embedding": key_embedding, "lambda_spatial": lambda_spatial}
    )
    if map_size is not None and map_size[0] * map_size[1] != pixels:
        raise AdapEditError(
            f"{_NAME}: map_size {map_size} has not the features' {pixels} pixels; give their size"
        )
    similarity = reference.spatial_similarity(features, key_embedding, lambda_spatial, centre=centre)
    if size is None:
        return similarity
    return reference.resize_map(similarity, map_size or _square(pixels), size)
