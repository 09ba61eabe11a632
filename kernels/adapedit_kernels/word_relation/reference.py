"""The relation of each word to the edit (FWT) in plain PyTorch: the specification, its knobs and its result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_kernels.dispatch import check_choice, to_dtype, wide_dtype
from adapedit_kernels.errors import AdapEditError

HELD_BASE = 0.8
"""Share of the trajectory that tokens without a word are held, before the share of early words is taken off."""

FREED_EARLY = 0.1
"""A kept word with fewer steps than this share counts as freed early."""

_TINY = 1e-12


class WordRelation(NamedTuple):
    """What FWT finds for a batch of edits."""

    relation: Tensor  # [B, N], cosine with the key embedding, in [-1, 1]
    word_steps: Tensor  # [B, N], share of the trajectory that a token is held, in [0, 1]
    key_embedding: Tensor  # [B, V], length 1, or 0 where there is no key word
    default_steps: Tensor  # [B], the share for tokens without a word


class RelationKnobs(NamedTuple):
    """How maps become weights and relations become steps: tensors [B], so that each edit has its own."""

    lambda_tau: Tensor  # floating, factor on the steps
    threshold: Tensor  # floating; values of the maps below it become 0
    relative: Tensor  # bool: the threshold is a share of each token's peak, else a probability
    temperature: Tensor  # floating, of a softmax over the pixels; 0: masked values are divided by their sum
    centre: Tensor  # bool: subtract the features' mean over the pixels first
    released: Tensor  # bool: steps are `l (exp(1 - L) - 1)`, else `l (1 - exp(L - 1))`

    @classmethod
    def make(
        cls,
        batch: int,
        *,
        lambda_tau: float = 1.0,
        threshold: float = 0.3,
        threshold_mode: str = "relative",
        normalise: str = "sum",
        temperature: float = 0.01,
        centre: bool = True,
        variant: str = "paper",
        device: torch.device | str | None = None,
    ) -> RelationKnobs:
        """The same knobs for all edits of a batch: float32 and bool, on ``device``.

        Args:
            threshold_mode: ``"relative"`` or ``"absolute"``.
            normalise: ``"sum"`` or ``"softmax"``, which alone uses the temperature.
            variant: ``"paper"`` or ``"released"``.

        Raises:
            AdapEditError: an unknown word, a threshold outside [0, 1] or a temperature that is not above 0.
        """
        check_choice("word_relation", "threshold_mode", threshold_mode, ("absolute", "relative"))
        check_choice("word_relation", "normalise", normalise, ("sum", "softmax"))
        check_choice("word_relation", "variant", variant, ("paper", "released"))
        if not 0 <= threshold <= 1:
            raise AdapEditError(f"word_relation: threshold is {threshold}, wanted 0 to 1; 0 masks nothing")
        if not temperature > 0:
            raise AdapEditError(f"word_relation: temperature is {temperature}, wanted more than 0; try 0.01")

        def full(value: float) -> Tensor:
            dtype = torch.bool if isinstance(value, bool) else torch.float32
            return torch.full((batch,), value, dtype=dtype, device=device)

        return cls(
            lambda_tau=full(float(lambda_tau)),
            threshold=full(float(threshold)),
            relative=full(threshold_mode == "relative"),
            temperature=full(float(temperature) if normalise == "softmax" else 0.0),
            centre=full(bool(centre)),
            released=full(variant == "released"),
        )


def pixel_weights(maps: Tensor, knobs: RelationKnobs) -> Tensor:
    """Mask the averaged maps [B, P, N] and normalise each token's column over the pixels.

    Returns:
        [B, P, N]; a column sums to 1, or is 0 throughout where all of it was masked.
    """
    column = (maps.shape[0], 1, 1)
    threshold = to_dtype(knobs.threshold, maps.dtype).reshape(column)
    temperature = to_dtype(knobs.temperature, maps.dtype).reshape(column)
    peak = maps.amax(dim=1, keepdim=True)
    limit = torch.where(knobs.relative.reshape(column), threshold * peak, threshold)
    kept = torch.where(maps >= limit, maps, 0.0)
    total = kept.sum(dim=1, keepdim=True)
    seen, softmax = total > 0, temperature > 0
    shares = kept / torch.where(seen, total, 1.0)
    powers = (kept / torch.where(softmax, temperature, 1.0)).softmax(dim=1)
    return torch.where(seen, torch.where(softmax, powers, shares), 0.0)


def word_relation(
    maps: Tensor, features: Tensor, key_tokens: Tensor, word_of_token: Tensor, knobs: Iterable[Tensor]
) -> WordRelation:
    """See :func:`adapedit_kernels.word_relation.word_relation`; both forms of a switch are computed, and one taken."""
    knobs = RelationKnobs(*knobs)
    wide = wide_dtype(maps, features)
    maps, features = to_dtype(maps, wide), to_dtype(features, wide)
    centre, released = knobs.centre[:, None, None], knobs.released[:, None]
    weights = pixel_weights(maps, knobs)
    features = torch.where(centre, features - features.mean(dim=1, keepdim=True), features)
    # Centred features sum to 0, so a constant in the weights only adds rounding: nearly all of the result where
    # a softmax is almost flat. A column that is flat has no place in the picture, and so no embedding.
    weights = torch.where(centre, weights - weights.amin(dim=1, keepdim=True), weights)
    embedding = weights.transpose(1, 2) @ features  # [B, N, V], Eq. 5
    embedding = F.normalize(embedding, dim=-1, eps=_TINY)
    keys = to_dtype(key_tokens, wide)[:, None]  # [B, 1, N]
    key_embedding = F.normalize((keys @ embedding)[:, 0], dim=-1, eps=_TINY)  # [B, V]

    has_word = word_of_token >= 0
    same_word = (word_of_token[:, :, None] == word_of_token[:, None, :]) & has_word[:, :, None]
    itself = torch.eye(maps.shape[2], dtype=torch.bool, device=maps.device)
    group = (same_word | itself).to(wide)  # [B, N, N]
    word_embedding = F.normalize(group @ embedding, dim=-1, eps=_TINY)
    relation = (word_embedding @ key_embedding[:, :, None])[..., 0].clamp(-1, 1)  # Eq. 6

    difference = torch.where(released, (1 - relation).exp() - 1, 1 - (relation - 1).exp())
    steps = (to_dtype(knobs.lambda_tau, wide)[:, None] * difference).clamp(0, 1)  # Eq. 7
    is_key = (group @ keys.transpose(1, 2))[..., 0] > 0
    steps = torch.where(is_key, 0.0, steps)

    word_share = torch.where(has_word & ~is_key, 1 / group.sum(dim=-1), 0.0)  # a word counts once
    early = (word_share * (steps < FREED_EARLY)).sum(dim=-1) / word_share.sum(dim=-1).clamp_min(_TINY)
    default_steps = (HELD_BASE - early).clamp_min(0)
    steps = torch.where(has_word | is_key, steps, default_steps[:, None])
    return WordRelation(relation, steps, key_embedding, default_steps)
