"""Prompt-to-Prompt as data: one tau for all words unless told otherwise, S = 1, lambda_s = 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapedit.methods.base import Cells, Context, Findings, Method, Share
from adapedit.methods.words import Words, WordValue, local_blend, with_word_values

if TYPE_CHECKING:
    from adapedit_engine.plan import EditOutcome, EditPlan


class PromptToPrompt(Method, name="prompt-to-prompt"):
    """Prompt-to-Prompt (Hertz et al. 2022): replacement, refinement and re-weighting follow from the alignment.

    cross_replace_steps: share of the trajectory in which a word's map is the source's.
    word_replace_steps:  the same for single words, over `cross_replace_steps`.
    self_replace_steps:  share in which self-attention at the coarse levels is the source's.
    local_blend:         words (of either prompt) outside whose places the source's latents are kept; true: those
                         that the edit is about.
    equalizer:           factors on words' maps.
    """

    cross_replace_steps: Share = 0.8
    word_replace_steps: tuple[WordValue, ...] = ()
    self_replace_steps: Share = 0.4
    local_blend: Words = ()
    blend_threshold: Share = 0.3
    blend_start: Share = 0.2
    blend_grow: Cells = 1
    equalizer: tuple[WordValue, ...] = ()

    def plan(self, context: Context, observed: EditOutcome | None) -> EditPlan:
        import torch

        from adapedit_engine.plan import CrossEdit, SelfEdit

        alignment = context.alignment
        ones = torch.ones(alignment.num_tokens, dtype=torch.float32, device="cpu")
        word_steps = with_word_values(ones * self.cross_replace_steps, alignment, self.word_replace_steps)
        factors = with_word_values(ones, alignment, self.equalizer)
        rows = context.from_source(context.coarse_layers(), stop=self.self_replace_steps)
        return context.plan(
            cross_attention=CrossEdit(
                token_map=context.on_target(alignment.token_map * factors),
                # What an inserted word is given is its own map: while held that is scaled, and when free it is not.
                own_weight=context.on_target(alignment.own_weight * factors),
                word_steps=context.on_target(word_steps),
                strength=torch.ones(2, dtype=torch.float32, device="cpu"),
            ),
            self_attention=SelfEdit(query=rows, key=rows),
            local_blend=local_blend(context, self),
        )

    def findings(self, context: Context, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        return Findings(word_steps=None if edited.word_steps is None else edited.word_steps[1].cpu())
