"""FWT: how close each word of a prompt is to the words that are edited, and how long it is held."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels import dispatch
from adapedit_kernels.dispatch import BOOL, FLOATING, INTEGER
from adapedit_kernels.errors import AdapEditError
from adapedit_kernels.word_relation import reference
from adapedit_kernels.word_relation.reference import RelationKnobs, WordRelation

__all__ = ["RelationKnobs", "WordRelation", "word_relation"]

MAX_TOKENS = 512

_NAME = "word_relation"


def word_relation(
    maps: Tensor,
    features: Tensor,
    key_tokens: Tensor,
    word_of_token: Tensor,
    knobs: RelationKnobs,
    *,
    implementation: str = "auto",
) -> WordRelation:
    """Relation and number of steps of every token, Eq. 5 to 7 of the AdapEdit paper, for a batch of edits.

    A word of several tokens has one embedding, the normalised mean of its tokens' embeddings, and so one relation
    and one number of steps. Averaging embeddings rather than relations keeps the relation a cosine: an edit's only
    key word is related to itself by exactly 1 however many tokens it has.

    Where no token is a key (identical prompts) there is nothing to be close to: the key embedding and all
    relations are 0, and so every word is held for ``lambda_tau (1 - 1/e)`` of the trajectory (released:
    ``lambda_tau (e - 1)``), at most all of it.

    Args:
        maps: [B, P, N] floating, cross-attention averaged over steps, layers and heads.
        features: [B, P, V] floating, visual features at the same pixels.
        key_tokens: [B, N] bool, tokens of words that the source prompt does not have at that place.
        word_of_token: [B, N] int64, number of the word that a token belongs to; -1 for start, end and padding.
        knobs: tensors [B]; their values are not looked at, see :meth:`RelationKnobs.make` for what they may be.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        :class:`WordRelation`, float32 (float64 for float64 inputs with the reference). Tokens without a word get
        ``default_steps = max(0, 0.8 - share of kept words with fewer than 0.1)``.

    Raises:
        AdapEditError: shapes, dtypes or devices that don't fit.
        ImplementationError: the named implementation can't run here.
    """
    chosen = dispatch.implementation_for(_NAME, implementation, maps, features)
    floating = FLOATING[chosen]
    switches = ("relative", "centre", "released")
    expected = {
        "maps": (maps, "B P N", floating),
        "features": (features, "B P V", floating),
        "key_tokens": (key_tokens, "B N", BOOL),
        "word_of_token": (word_of_token, "B N", INTEGER),
        **{n: (knob, "B", BOOL if n in switches else floating) for n, knob in knobs._asdict().items()},
    }
    dispatch.check_tensors(_NAME, expected)
    if 0 in maps.shape or 0 in features.shape:
        raise AdapEditError(
            f"{_NAME}: maps {list(maps.shape)} and features {list(features.shape)} hold nothing"
        )
    if chosen == "reference":
        return reference.word_relation(maps, features, key_tokens, word_of_token, knobs)
    if maps.shape[2] > MAX_TOKENS:
        raise AdapEditError(
            f"{_NAME}: {maps.shape[2]} tokens, the kernel takes 1 to {MAX_TOKENS}; "
            "name implementation='reference'"
        )
    dispatch.check_layout(_NAME, expected, last=("maps",), free=("features",))
    return WordRelation(*word_relation_operator(maps, features, key_tokens, word_of_token, list(knobs)))


def _fake(maps: Tensor, features: Tensor, *_: object) -> tuple[Tensor, ...]:
    batch, _pixels, tokens = maps.shape
    shapes = ((batch, tokens), (batch, tokens), (batch, features.shape[2]), (batch,))
    return tuple(maps.new_empty(shape, dtype=torch.float32) for shape in shapes)


word_relation_operator = dispatch.operator(
    _NAME,
    "(Tensor maps, Tensor features, Tensor key_tokens, Tensor word_of_token, Tensor[] knobs) "
    "-> (Tensor relation, Tensor word_steps, Tensor key_embedding, Tensor default_steps)",
    reference.word_relation,
    _fake,
)
