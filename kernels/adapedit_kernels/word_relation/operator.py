"""The word relation as a PyTorch operator; see the operators of edited attention for where it runs what."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import interpreting
from adapedit_kernels.word_relation import reference
from adapedit_kernels.word_relation.arguments import check_arguments
from adapedit_kernels.word_relation.settings import RelationSettings

__all__ = ["word_relation_operator"]


@torch.library.custom_op("adapedit_kernels::word_relation", mutates_args=())
def word_relation_operator(
    maps: Tensor,
    features: Tensor,
    key_tokens: Tensor,
    word_of_token: Tensor,
    lambda_tau: Tensor,
    threshold: float,
    threshold_mode: str,
    normalise: str,
    temperature: float,
    centre: bool,
    variant: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    settings = RelationSettings(
        threshold=threshold,
        threshold_mode=threshold_mode,
        normalise=normalise,
        temperature=temperature,
        centre=centre,
        variant=variant,
    )
    kernel = maps.is_cuda or interpreting()
    chosen = "triton" if kernel else "reference"
    check_arguments(maps, features, key_tokens, word_of_token, lambda_tau, chosen=chosen)
    if kernel:
        from adapedit_kernels.word_relation.triton import launch

        found = launch(maps, features, key_tokens, word_of_token, lambda_tau, settings)
        return found.relation, found.word_steps, found.key_embedding, found.default_steps
    found = reference.word_relation(maps, features, key_tokens, word_of_token, lambda_tau, settings)
    return found.relation, found.word_steps, found.key_embedding, found.default_steps


@word_relation_operator.register_fake
def _(
    maps: Tensor,
    features: Tensor,
    key_tokens: Tensor,
    word_of_token: Tensor,
    lambda_tau: Tensor,
    threshold: float,
    threshold_mode: str,
    normalise: str,
    temperature: float,
    centre: bool,
    variant: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, tokens = maps.shape
    single = torch.float32
    return (
        maps.new_empty(batch, tokens, dtype=single),
        maps.new_empty(batch, tokens, dtype=single),
        maps.new_empty(batch, features.shape[2], dtype=single),
        maps.new_empty(batch, dtype=single),
    )
