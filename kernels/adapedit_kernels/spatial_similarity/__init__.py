"""DPS: where in the picture an edit may act."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels import dispatch
from adapedit_kernels.dispatch import BOOL, FLOATING
from adapedit_kernels.errors import AdapEditError
from adapedit_kernels.spatial_similarity import reference

__all__ = ["spatial_similarity"]

_NAME = "spatial_similarity"


def spatial_similarity(
    features: Tensor,
    key_embedding: Tensor,
    lambda_spatial: Tensor,
    centre: Tensor,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Similarity of every pixel with the edited words, Eq. 9 of the AdapEdit paper, for a batch of edits.

    Args:
        features: [B, P, V] floating, visual features at the map resolution.
        key_embedding: [B, V] floating, of any length; a row of zeros gives 0 everywhere.
        lambda_spatial: [B] floating, factor.
        centre: [B] bool, subtract the features' mean over the pixels first.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        ``S`` [B, P] float32 (float64 for float64 features with the reference).

    Raises:
        AdapEditError: shapes, dtypes or devices that don't fit.
        ImplementationError: the named implementation can't run here.
    """
    chosen = dispatch.implementation_for(_NAME, implementation, features, key_embedding)
    floating = FLOATING[chosen]
    expected = {
        "features": (features, "B P V", floating),
        "key_embedding": (key_embedding, "B V", floating),
        "lambda_spatial": (lambda_spatial, "B", floating),
        "centre": (centre, "B", BOOL),
    }
    dispatch.check_tensors(_NAME, expected)
    if 0 in features.shape:
        raise AdapEditError(f"{_NAME}: features {list(features.shape)} hold nothing")
    if chosen == "reference":
        return reference.spatial_similarity(features, key_embedding, lambda_spatial, centre)
    dispatch.check_layout(_NAME, expected, free=("features",))
    return spatial_similarity_operator(features, key_embedding, lambda_spatial, centre)


spatial_similarity_operator = dispatch.operator(
    _NAME,
    "(Tensor features, Tensor key_embedding, Tensor lambda_spatial, Tensor centre) -> Tensor",
    reference.spatial_similarity,
    lambda features, *_: features.new_empty(features.shape[:2], dtype=torch.float32),
)
