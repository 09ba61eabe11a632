"""How much each pixel looks like the edited words (DPS) in plain PyTorch: the specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_kernels.dispatch import to_dtype, wide_dtype

_TINY = 1e-12


def spatial_similarity(
    features: Tensor, key_embedding: Tensor, lambda_spatial: Tensor, centre: Tensor
) -> Tensor:
    """``S = lambda_S clamp(cos(E_V, E_k), 0, 1)``, Eq. 9.

    See :func:`adapedit_kernels.spatial_similarity.spatial_similarity`; computed in float32 at least.
    """
    wide = wide_dtype(features)
    features, key_embedding = to_dtype(features, wide), to_dtype(key_embedding, wide)
    features = torch.where(centre[:, None, None], features - features.mean(dim=1, keepdim=True), features)
    direction = F.normalize(key_embedding, dim=-1, eps=_TINY)
    cosine = (F.normalize(features, dim=-1, eps=_TINY) @ direction[:, :, None])[..., 0]
    return to_dtype(lambda_spatial, wide)[:, None] * cosine.clamp(0, 1)
