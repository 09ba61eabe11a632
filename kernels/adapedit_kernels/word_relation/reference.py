"""The relation of each word to the edit (FWT) in plain PyTorch: the specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_kernels.precision import to_dtype, wide_dtype
from adapedit_kernels.word_relation.settings import FREED_EARLY, HELD_BASE, RelationSettings, WordRelation

__all__ = ["pixel_weights", "word_relation"]

_TINY = 1e-12


def pixel_weights(maps: Tensor, settings: RelationSettings) -> Tensor:
    """Mask the averaged maps and normalise each token's column over the pixels.

    Args:
        maps: [B, P, N] averaged cross-attention.
        settings: threshold and normalisation.

    Returns:
        [B, P, N]; a column sums to 1, or is 0 throughout where all of it was masked.
    """
    peak = maps.amax(dim=1, keepdim=True)
    limit = settings.threshold * peak if settings.threshold_mode == "relative" else settings.threshold
    kept = torch.where(maps >= limit, maps, 0.0)
    total = kept.sum(dim=1, keepdim=True)
    seen = total > 0
    if settings.normalise == "sum":
        return torch.where(seen, kept / torch.where(seen, total, 1.0), 0.0)
    return torch.where(seen, (kept / settings.temperature).softmax(dim=1), 0.0)


def word_relation(
    maps: Tensor,
    features: Tensor,
    key_tokens: Tensor,
    word_of_token: Tensor,
    lambda_tau: Tensor,
    settings: RelationSettings,
) -> WordRelation:
    """See :func:`adapedit_kernels.word_relation.word_relation`; ``lambda_tau`` is a tensor [B] here."""
    wide = wide_dtype(maps, features)
    maps, features, lambda_tau = to_dtype(maps, wide), to_dtype(features, wide), to_dtype(lambda_tau, wide)
    weights = pixel_weights(maps, settings)
    if settings.centre:
        features = features - features.mean(dim=1, keepdim=True)
        # Centred features sum to 0, so a constant in the weights only adds rounding: nearly all of the result where
        # a softmax is almost flat. A column that is flat has no place in the picture, and so no embedding.
        weights = weights - weights.amin(dim=1, keepdim=True)
    embedding = weights.transpose(1, 2) @ features  # [B, N, V], Eq. 5
    embedding = F.normalize(embedding, dim=-1, eps=_TINY)
    key_embedding = F.normalize(
        (to_dtype(key_tokens, wide)[:, None] @ embedding)[:, 0], dim=-1, eps=_TINY
    )  # [B, V]

    has_word = word_of_token >= 0
    same_word = (word_of_token[:, :, None] == word_of_token[:, None, :]) & has_word[:, :, None]
    itself = torch.eye(maps.shape[2], dtype=torch.bool, device=maps.device)
    group = (same_word | itself).to(wide)  # [B, N, N]
    word_embedding = F.normalize(group @ embedding, dim=-1, eps=_TINY)
    relation = (word_embedding @ key_embedding[:, :, None])[..., 0].clamp(-1, 1)  # Eq. 6

    difference = 1 - (relation - 1).exp() if settings.variant == "paper" else (1 - relation).exp() - 1
    steps = (lambda_tau[:, None] * difference).clamp(0, 1)  # Eq. 7
    is_key = (group @ to_dtype(key_tokens, wide)[:, :, None])[..., 0] > 0
    steps = torch.where(is_key, 0.0, steps)

    word_share = torch.where(has_word & ~is_key, 1 / group.sum(dim=-1), 0.0)  # a word counts once
    early = (word_share * (steps < FREED_EARLY)).sum(dim=-1) / word_share.sum(dim=-1).clamp_min(_TINY)
    default_steps = (HELD_BASE - early).clamp_min(0)
    steps = torch.where(has_word | is_key, steps, default_steps[:, None])
    return WordRelation(relation, steps, key_embedding, default_steps)
