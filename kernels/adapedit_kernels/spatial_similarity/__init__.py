"""DPS: where in the picture an edit may act."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import (
    FLOATING,
    check_dtype,
    check_same_device,
    check_shape,
    implementation_for,
    operator_implementation,
)
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
    chosen = implementation_for(_NAME, implementation, features, key_embedding)
    if chosen == "triton":
        return spatial_similarity_operator(features, key_embedding, lambda_spatial, centre)
    check_arguments(features, key_embedding, lambda_spatial, centre, chosen=chosen)
    return reference.spatial_similarity(features, key_embedding, lambda_spatial, centre)


@torch.library.custom_op("adapedit_kernels::spatial_similarity", mutates_args=())
def spatial_similarity_operator(
    features: Tensor, key_embedding: Tensor, lambda_spatial: Tensor, centre: Tensor
) -> Tensor:
    """The similarity as a PyTorch operator, one node to compilers and exporters."""
    chosen = operator_implementation(features)
    check_arguments(features, key_embedding, lambda_spatial, centre, chosen=chosen)
    if chosen == "triton":
        from adapedit_kernels.spatial_similarity.triton import launch

        return launch(features, key_embedding, lambda_spatial, centre)
    return reference.spatial_similarity(features, key_embedding, lambda_spatial, centre)


@spatial_similarity_operator.register_fake
def _(features: Tensor, *_: object) -> Tensor:
    return features.new_empty(features.shape[:2], dtype=torch.float32)


def check_arguments(
    features: Tensor, key_embedding: Tensor, lambda_spatial: Tensor, centre: Tensor, *, chosen: str
) -> None:
    """Raise AdapEditError unless the arguments fit together and the chosen implementation takes them."""
    check_shape(_NAME, "features", features, (None, None, None), "[B, P, V]")
    batch, _, channels = features.shape
    check_shape(_NAME, "key_embedding", key_embedding, (batch, channels), "[B, V]")
    check_shape(_NAME, "lambda_spatial", lambda_spatial, (batch,), "[B]")
    check_shape(_NAME, "centre", centre, (batch,), "[B]")
    if 0 in features.shape:
        raise AdapEditError(f"{_NAME}: features {list(features.shape)} hold nothing")
    floating = {"features": features, "key_embedding": key_embedding, "lambda_spatial": lambda_spatial}
    for name, tensor in floating.items():
        check_dtype(_NAME, name, tensor, FLOATING[chosen])
    check_dtype(_NAME, "centre", centre, (torch.bool,))
    check_same_device(_NAME, floating | {"centre": centre})
