"""Spatial similarity as a PyTorch operator; see the operators of edited attention for where it runs what."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import interpreting
from adapedit_kernels.spatial_similarity import reference
from adapedit_kernels.spatial_similarity.arguments import check_arguments

__all__ = ["spatial_similarity_operator"]


@torch.library.custom_op("adapedit_kernels::spatial_similarity", mutates_args=())
def spatial_similarity_operator(
    features: Tensor,
    key_embedding: Tensor,
    lambda_spatial: Tensor,
    centre: bool,
    map_height: int,
    map_width: int,
    height: int,
    width: int,
) -> Tensor:
    kernel = features.is_cuda or interpreting()
    chosen = "triton" if kernel else "reference"
    map_size, size = (map_height, map_width), (height, width)
    check_arguments(features, key_embedding, lambda_spatial, map_size, size, chosen=chosen)
    if kernel:
        from adapedit_kernels.spatial_similarity.triton import launch

        return launch(features, key_embedding, lambda_spatial, centre, map_size, size)
    similarity = reference.spatial_similarity(features, key_embedding, lambda_spatial, centre=centre)
    return reference.resize_map(similarity, map_size, size)


@spatial_similarity_operator.register_fake
def _(
    features: Tensor,
    key_embedding: Tensor,
    lambda_spatial: Tensor,
    centre: bool,
    map_height: int,
    map_width: int,
    height: int,
    width: int,
) -> Tensor:
    return features.new_empty(features.shape[0], height * width, dtype=torch.float32)
