"""How much each pixel looks like the edited words (DPS) in plain PyTorch: the specification."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from adapedit_kernels.precision import to_dtype, wide_dtype

__all__ = ["resize_map", "spatial_similarity"]

_TINY = 1e-12


def spatial_similarity(
    features: Tensor, key_embedding: Tensor, lambda_spatial: Tensor, *, centre: bool
) -> Tensor:
    """``S = lambda_S clamp(cos(E_V, E_k), 0, 1)``, Eq. 9.

    Args:
        features: [B, P, V].
        key_embedding: [B, V]; a row of zeros gives 0.
        lambda_spatial: [B].
        centre: subtract the features' mean over the pixels first.

    Returns:
        [B, P], float32, or float64 for float64 features.
    """
    wide = wide_dtype(features)
    features, key_embedding = to_dtype(features, wide), to_dtype(key_embedding, wide)
    if centre:
        features = features - features.mean(dim=1, keepdim=True)
    direction = F.normalize(key_embedding, dim=-1, eps=_TINY)
    cosine = (F.normalize(features, dim=-1, eps=_TINY) @ direction[:, :, None])[..., 0]
    return to_dtype(lambda_spatial, wide)[:, None] * cosine.clamp(0, 1)


def resize_map(pixel_map: Tensor, map_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Resize maps [B, h w] from ``map_size`` to ``size``: bilinear, pixel centres, no smoothing."""
    if map_size == size:
        return pixel_map
    picture = pixel_map.reshape(pixel_map.shape[0], 1, *map_size)
    return F.interpolate(picture, size=size, mode="bilinear", align_corners=False).flatten(1)
