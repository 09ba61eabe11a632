"""Knobs and result of the word relation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from adapedit_kernels.checks import check_choice
from adapedit_kernels.errors import AdapEditError

__all__ = ["FREED_EARLY", "HELD_BASE", "RelationSettings", "WordRelation"]

HELD_BASE = 0.8
"""Share of the trajectory that tokens without a word are held, before the share of early words is taken off."""

FREED_EARLY = 0.1
"""A kept word with fewer steps than this share counts as freed early."""


class WordRelation(NamedTuple):
    """What FWT finds for a batch of edits."""

    relation: Tensor  # [B, N], cosine with the key embedding, in [-1, 1]
    word_steps: Tensor  # [B, N], share of the trajectory that a token is held, in [0, 1]
    key_embedding: Tensor  # [B, V], length 1, or 0 where there is no key word
    default_steps: Tensor  # [B], the share for tokens without a word


@dataclass(frozen=True, kw_only=True)
class RelationSettings:
    """How maps become weights and relations become steps.

    Attributes:
        threshold: values below it become 0; a probability, or a share of the column's peak.
        threshold_mode: ``"relative"`` (to each token's peak) or ``"absolute"``.
        normalise: ``"sum"`` or ``"softmax"`` over the pixels.
        temperature: of the softmax.
        centre: subtract the features' mean over the pixels first.
        variant: ``"paper"``, ``l (1 - exp(L - 1))``, or ``"released"``, ``l (exp(1 - L) - 1)``.
    """

    threshold: float = 0.3
    threshold_mode: str = "relative"
    normalise: str = "sum"
    temperature: float = 0.01
    centre: bool = True
    variant: str = "paper"

    def __post_init__(self) -> None:
        check_choice("word_relation", "threshold_mode", self.threshold_mode, ("absolute", "relative"))
        check_choice("word_relation", "normalise", self.normalise, ("sum", "softmax"))
        check_choice("word_relation", "variant", self.variant, ("paper", "released"))
        if not 0 <= self.threshold <= 1:
            raise AdapEditError(
                f"word_relation: threshold is {self.threshold}, wanted 0 to 1; 0 masks nothing"
            )
        if not self.temperature > 0:
            raise AdapEditError(
                f"word_relation: temperature is {self.temperature}, wanted more than 0; try 0.01"
            )
