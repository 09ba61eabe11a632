"""Prompt-to-Prompt as data: one tau for all words unless told otherwise, S = 1, lambda_s = 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from adapedit.methods.context import EditContext, Findings, Method
from adapedit.methods.settings import AdapEdit, PromptToPrompt, Words, WordValue
from adapedit.prompts.alignment import Alignment
from adapedit_engine.blend import LocalBlend
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_kernels.errors import AdapEditError


@dataclass(frozen=True)
class PromptToPromptMethod(Method):
    """Replacement and refinement are the alignment's token map and own weight; re-weighting scales both."""

    settings: PromptToPrompt

    def plan(self, context: EditContext, observed: EditOutcome | None) -> EditPlan:
        settings, alignment = self.settings, context.alignment
        word_steps = torch.full((alignment.num_tokens,), settings.cross_replace_steps)
        word_steps = with_word_values(word_steps, alignment, settings.word_replace_steps)
        factors = with_word_values(torch.ones(alignment.num_tokens), alignment, settings.equalizer)
        rows = context.self_table(settings.self_replace_steps)
        return context.plan(
            (context.source, context.target),
            source_track=(0, 0),
            token_map=context.on_target(alignment.token_map * factors),
            # What an inserted word is given is its own map: while held that is scaled, and when free it is not.
            own_weight=context.on_target(alignment.own_weight * factors),
            word_steps=context.on_target(word_steps),
            self_query=rows,
            self_key=rows,
            local_blend=local_blend(alignment, settings),
            collect=True,
        )

    def findings(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        return Findings(word_steps=None if edited.word_steps is None else edited.word_steps[1].cpu())


def with_word_values(values: Tensor, alignment: Alignment, changes: Iterable[WordValue]) -> Tensor:
    """A copy of per-token `values` [N] with the named words' tokens set."""
    values = values.clone()
    for change in changes:
        words = alignment.find(change.word, change.occurrence)
        values[alignment.token_mask(words)] = change.value
    return values


def local_blend(alignment: Alignment, settings: PromptToPrompt | AdapEdit) -> LocalBlend | None:
    """The blend that the settings ask for."""
    if not settings.local_blend:
        return None
    return LocalBlend(
        token_weights=blend_tokens(alignment, settings.local_blend),
        threshold=settings.blend_threshold,
        start=settings.blend_start,
        grow=settings.blend_grow,
    )


def edited_tokens(alignment: Alignment) -> Tensor:
    """[2, N]: 1 at the tokens of what the edit is about, in the source (row 0) and in the target prompt.

    Of an edit that only deletes, the target's are those of what the words belonged to; of one that only inserts, the
    source's are those of what the words belong to.
    """
    target = alignment.key_tokens if alignment.key_tokens.any() else alignment.anchor_tokens
    return torch.stack([alignment.source_key_tokens, target]).float()


def blend_tokens(alignment: Alignment, words: Words) -> Tensor:
    """[2, N]: 1 at the tokens of `words` in the source (row 0) and target prompt; a word in neither is an error."""
    if isinstance(words, bool):
        return edited_tokens(alignment)
    weights = torch.zeros(2, alignment.num_tokens)
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
