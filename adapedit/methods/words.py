"""Words in knobs: how people name them, and the tokens that they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict, Field

from adapedit.methods.base import Context, Knob
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from torch import Tensor

    from adapedit.prompts.alignment import Alignment
    from adapedit_engine.plan import LocalBlend

Words = tuple[str, ...] | bool
"""Words of either prompt; true: those that the edit is about and what they replace; none: false or ()."""


class WordValue(BaseModel):
    """A value for a word of the target prompt; `occurrence` counts from 1, None means every one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    word: str
    value: Knob
    occurrence: int | None = Field(default=None, ge=1)


class Blending(Protocol):
    """Settings of a method with a local blend."""

    local_blend: Words
    blend_threshold: float
    blend_start: float
    blend_grow: int


def with_word_values(values: Tensor, alignment: Alignment, changes: Iterable[WordValue]) -> Tensor:
    """A copy of per-token `values` [N] with the named words' tokens set."""
    values = values.clone()
    for change in changes:
        words = alignment.find(change.word, change.occurrence)
        values[alignment.token_mask(words)] = change.value
    return values


def local_blend(context: Context, settings: Blending) -> LocalBlend | None:
    """The blend that the settings ask for, of the target."""
    import torch

    from adapedit_engine.plan import LocalBlend

    if not settings.local_blend:
        return None
    of_source, of_target = blend_tokens(context.alignment, settings.local_blend)
    share = {"dtype": torch.float32, "device": "cpu"}
    return LocalBlend(
        token_weights=context.on_target(of_target),
        source_weights=context.on_target(of_source),
        threshold=torch.tensor([1.0, settings.blend_threshold], **share),
        start=torch.tensor([2.0, settings.blend_start], **share),
        grow=torch.tensor([0, settings.blend_grow], dtype=torch.int64, device="cpu"),
    )


def edited_tokens(alignment: Alignment) -> Tensor:
    """[2, N]: 1 at the tokens of what the edit is about, in the source (row 0) and in the target prompt.

    Of an edit that only deletes, the target's are those of what the words belonged to; of one that only inserts, the
    source's are those of what the words belong to.
    """
    import torch

    return torch.stack([alignment.source_key_tokens, key_tokens(alignment)]).to(torch.float32)


def key_tokens(alignment: Alignment) -> Tensor:
    """[N] bool: tokens of the key words; of an edit that only deletes, those of what the words belonged to."""
    return alignment.key_tokens if alignment.key_tokens.any() else alignment.anchor_tokens


def blend_tokens(alignment: Alignment, words: Words) -> Tensor:
    """[2, N]: 1 at the tokens of `words` in the source (row 0) and target prompt; a word in neither is an error."""
    import torch

    if isinstance(words, bool):
        return edited_tokens(alignment)
    weights = torch.zeros(2, alignment.num_tokens, dtype=torch.float32, device="cpu")
    for text in words:
        missing = None
        for row, prompt in enumerate(("source", "target")):
            try:
                found = alignment.find(text, prompt=prompt)  # type: ignore[arg-type]
            except AdapEditError as error:
                if missing is not None:
                    raise AdapEditError(f"{error}; and {missing}") from error
                missing = error
                continue
            weights[row, alignment.token_mask(found)] = 1
    return weights
