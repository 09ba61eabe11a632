"""FWT: how close each word of a prompt is to the words that are edited, and how long it is held."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import chosen_implementation, wants_gradient
from adapedit_kernels.word_relation import reference
from adapedit_kernels.word_relation.arguments import check_arguments
from adapedit_kernels.word_relation.operator import word_relation_operator
from adapedit_kernels.word_relation.settings import RelationSettings, WordRelation

__all__ = ["RelationSettings", "WordRelation", "word_relation"]

_NAME = "word_relation"


def word_relation(
    maps: Tensor,
    features: Tensor,
    key_tokens: Tensor,
    word_of_token: Tensor,
    *,
    lambda_tau: float | Tensor = 1.0,
    threshold: float = 0.3,
    threshold_mode: str = "relative",
    normalise: str = "sum",
    temperature: float = 0.01,
    centre: bool = True,
    variant: str = "paper",
    implementation: str = "auto",
) -> WordRelation:
    """Relation and number of steps of every token, Eq. 5 to 7 of the AdapEdit paper, for a batch of edits.

    A word of several tokens has one embedding, the normalised mean of its tokens' embeddings, and so one relation
    and one number of steps. Averaging embeddings rather than relations keeps the relation a cosine: an edit's only
    key word is related to itself by exactly 1 however many tokens it has.

    Where no token is a key (identical prompts) there is nothing to be close to: the key embedding and all
    relations are 0, and so every word is held for ``lambda_tau (1 - 1/e)`` of the trajectory (``"released"``:
    ``lambda_tau (e - 1)``), at most all of it.

    Args:
        maps: [B, P, N] floating, cross-attention averaged over steps, layers and heads.
        features: [B, P, V] floating, visual features at the same pixels.
        key_tokens: [B, N] bool, tokens of words that the source prompt does not have at that place.
        word_of_token: [B, N] int64, number of the word that a token belongs to; -1 for start, end and padding.
        lambda_tau: factor on the steps; a number or [B].
        threshold, threshold_mode, normalise, temperature, centre, variant: see :class:`RelationSettings`.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        :class:`WordRelation`, float32 (float64 for float64 inputs with the reference). Tokens without a word get
        ``default_steps = max(0, 0.8 - share of kept words with fewer than 0.1)``.

    Raises:
        AdapEditError: shapes, dtypes, devices or knobs that don't fit.
        ImplementationError: the named implementation can't run here.
    """
    settings = RelationSettings(
        threshold=threshold,
        threshold_mode=threshold_mode,
        normalise=normalise,
        temperature=temperature,
        centre=centre,
        variant=variant,
    )
    gradient = wants_gradient(maps, features)
    chosen = chosen_implementation(implementation, maps.device, gradient=gradient, operation=_NAME)
    batch = maps.shape[0]
    if not isinstance(lambda_tau, Tensor):
        lambda_tau = torch.full((batch,), float(lambda_tau), dtype=torch.float32, device=maps.device)
    check_arguments(maps, features, key_tokens, word_of_token, lambda_tau, chosen=chosen)
    if chosen == "reference":
        return reference.word_relation(maps, features, key_tokens, word_of_token, lambda_tau, settings)
    return WordRelation(
        *word_relation_operator(
            maps,
            features,
            key_tokens,
            word_of_token,
            lambda_tau,
            settings.threshold,
            settings.threshold_mode,
            settings.normalise,
            settings.temperature,
            settings.centre,
            settings.variant,
        )
    )
