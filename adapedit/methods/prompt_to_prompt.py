"""Prompt-to-Prompt as data: one tau for all words unless told otherwise, S = 1, lambda_s = 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from adapedit.methods.base import Cells, Context, Findings, Method, Share, whole_error
from adapedit.methods.words import Span, Words, WordSpans, WordValues, ends, local_blend, with_word_values
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from torch import Tensor

    from adapedit.prompts.alignment import Alignment, Word
    from adapedit_engine.plan import EditOutcome, EditPlan


class PromptToPrompt(Method, name="prompt-to-prompt"):
    """Prompt-to-Prompt (Hertz et al. 2022), whose tokens are aligned as in its authors' code, and not as AdapEdit's.

    edit_type:           "replace": word for word, of prompts with as many words between spaces; a word that changes
                         takes the map of what it replaces. "refine": tokens that both prompts have in order take the
                         source's maps, new ones keep their own, others fall away. "reweight": token for token, times
                         the equalizer. "auto": "replace" where it can be, else "refine"; both take an equalizer, too.
    cross_replace_steps: share of the trajectory in which a word's map is the source's, or two: from and to. Also
                         {"default_": 0.8, "dog": 0.4}, as in the authors' code.
    word_replace_steps:  the same for single words, over `cross_replace_steps`: {"dog": 0.4}.
    self_replace_steps:  share in which self-attention at the coarse levels is the source's, or two: from and to.
    local_blend:         words outside whose places the source's latents are kept: "dog", of either prompt; ("dog",
                         "cat"), of the source and of the target; true: those that the edit is about.
    equalizer:           factors on words' maps: {"dog": 2}; the paper's are -2 to 2.
    """

    edit_type: Literal["auto", "replace", "refine", "reweight"] = "auto"
    cross_replace_steps: Span = 0.8
    word_replace_steps: WordSpans = ()
    self_replace_steps: Span = 0.4
    local_blend: Words = ()
    blend_threshold: Share = 0.3
    blend_start: Share = 0.2
    blend_grow: Cells = 1
    equalizer: WordValues = ()

    @model_validator(mode="before")
    @classmethod
    def _part_words(cls, values: Any) -> Any:
        """Of {"default_": ..., word: ...} the default apart from the words."""
        given = values.get("cross_replace_steps") if isinstance(values, Mapping) else None
        if not isinstance(given, Mapping):
            return values
        if values.get("word_replace_steps"):
            raise whole_error(
                "cross_replace_steps names words, and so does word_replace_steps; use one of them"
            )
        words = {word: span for word, span in given.items() if word != "default_"}
        return {**values, "cross_replace_steps": given.get("default_", 1.0), "word_replace_steps": words}

    def plan(self, context: Context, observed: EditOutcome | None) -> EditPlan:
        import torch

        from adapedit_engine.plan import CrossEdit, SelfEdit

        alignment = context.alignment
        token_map, own_weight = self._maps(alignment)
        ones = torch.ones(alignment.num_tokens, dtype=torch.float32, device="cpu")
        every = torch.tensor(ends(self.cross_replace_steps), dtype=torch.float32, device="cpu")
        by_word = ((one, ends(one.value)) for one in self.word_replace_steps)
        spans = with_word_values(every * ones[:, None], alignment, by_word)
        factors = with_word_values(ones, alignment, ((one, one.value) for one in self.equalizer))
        rows = context.from_source(context.coarse_layers(), *ends(self.self_replace_steps))
        return context.plan(
            cross_attention=CrossEdit(
                token_map=context.on_target(token_map * factors),
                # What a new word is given is its own map: while held that is scaled, and when free it is not.
                own_weight=context.on_target(own_weight * factors),
                word_starts=context.on_target(spans[:, 0]),
                word_steps=context.on_target(spans[:, 1]),
                strength=torch.ones(2, dtype=torch.float32, device="cpu"),
            ),
            self_attention=SelfEdit(query=rows, key=rows),
            local_blend=local_blend(context, self),
        )

    def findings(self, context: Context, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        return Findings(word_steps=None if edited.word_steps is None else edited.word_steps[1].cpu())

    def _maps(self, alignment: Alignment) -> tuple[Tensor, Tensor]:
        """A [N, N], and u [N], of the edit's type."""
        import torch

        old, new = (prompt.split() for prompt in (alignment.source_prompt, alignment.target_prompt))
        kind = self.edit_type
        if kind == "auto":
            kind = "replace" if len(old) == len(new) else "refine"
        if kind == "reweight" and not self.equalizer:
            raise AdapEditError("edit_type 'reweight' wants an equalizer, such as equalizer={'dog': 2}")
        if kind == "replace" and len(old) != len(new):
            raise AdapEditError(
                f"edit_type 'replace' wants prompts of as many words, got {len(old)} and {len(new)}; use 'refine'"
            )
        nothing = torch.zeros(alignment.num_tokens, dtype=torch.float32, device="cpu")
        if kind == "replace":
            return replacement_map(alignment), nothing
        return refinement_maps(alignment) if kind == "refine" else (torch.diag(nothing + 1), nothing)


def replacement_map(alignment: Alignment) -> Tensor:
    """A [N, N] of prompts with as many words between spaces.

    A word that changes takes what the other has: token for token, or each of them shared evenly. What comes before is
    taken place for place, and what comes after the last by its own place in the target, as the authors' code has it,
    whatever tokens the words had; places that the source then has too few of are empty.
    """
    import torch

    tokens = alignment.num_tokens
    result = torch.zeros(tokens, tokens, dtype=torch.float32, device="cpu")
    old = _pieces(alignment.source_prompt, alignment.source_words)
    new = _pieces(alignment.target_prompt, alignment.target_words)
    source = target = 0  # the first places that nothing was said of
    for (before, places), (after, others) in zip(old, new, strict=True):
        if before == after:
            continue
        for step in range(places[0] - source):
            result[source + step, target + step] = 1
        if len(places) == len(others):
            result[places, others] = 1
        else:
            result[places[0] : places[-1] + 1, others] = 1 / len(others)
        source, target = places[-1] + 1, others[-1] + 1
    rest = torch.arange(target, tokens - max(0, source - target), device="cpu")
    result[rest, rest] = 1
    return result


def _pieces(prompt: str, words: Sequence[Word]) -> list[tuple[str, list[int]]]:
    """What stands between spaces, with its tokens."""
    found, rest = [], list(words)
    for piece in prompt.split():
        tokens: list[int] = []
        length = 0
        while rest and length < len(piece):
            word = rest.pop(0)
            tokens += word.tokens
            length += len(word.text)
        found.append((piece, tokens))
    return found


def refinement_maps(alignment: Alignment) -> tuple[Tensor, Tensor]:
    """A [N, N] and u [N] by the longest sequence of tokens that both prompts have, start and end among them.

    Of several as long the one is taken that keeps the earlier tokens of the target. Padding takes its own place.
    """
    import torch

    source = alignment.source_input_ids[: 2 + alignment.source_words[-1].tokens[-1]].tolist()
    target = alignment.target_input_ids[: 2 + alignment.target_words[-1].tokens[-1]].tolist()
    best = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, old in enumerate(source, 1):
        for j, new in enumerate(target, 1):
            best[i][j] = best[i - 1][j - 1] + 1 if old == new else max(best[i - 1][j], best[i][j - 1])
    result = torch.eye(alignment.num_tokens, dtype=torch.float32, device="cpu")
    result[:, : len(target)] = 0
    own = torch.zeros(alignment.num_tokens, dtype=torch.float32, device="cpu")
    own[: len(target)] = 1
    i, j = len(source), len(target)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            result[i, j], own[j] = 1, 0
    return result, own
