"""DPS: where in the picture an edit may act."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import chosen_implementation, wants_gradient
from adapedit_kernels.spatial_similarity import reference
from adapedit_kernels.spatial_similarity.arguments import check_arguments, square
from adapedit_kernels.spatial_similarity.operator import spatial_similarity_operator

__all__ = ["spatial_similarity"]

_NAME = "spatial_similarity"


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
    gradient = wants_gradient(features, key_embedding)
    chosen = chosen_implementation(implementation, features.device, gradient=gradient, operation=_NAME)
    if not isinstance(lambda_spatial, Tensor):
        rows = (features.shape[0],)
        lambda_spatial = torch.full(rows, float(lambda_spatial), dtype=torch.float32, device=features.device)
    check_arguments(features, key_embedding, lambda_spatial, map_size, size, chosen=chosen)
    pixels = features.shape[1]
    if map_size is None:
        map_size = (1, pixels) if size is None else square(pixels)
    size = map_size if size is None else size
    if chosen == "triton":
        return spatial_similarity_operator(features, key_embedding, lambda_spatial, centre, *map_size, *size)
    similarity = reference.spatial_similarity(features, key_embedding, lambda_spatial, centre=centre)
    return reference.resize_map(similarity, map_size, size)
