"""Words in knobs: how people name them, and the tokens that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from adapedit.methods.base import Context, Share
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from torch import Tensor

    from adapedit.prompts.alignment import Alignment
    from adapedit_engine.plan import LocalBlend

PROMPTS: tuple[Literal["source"], Literal["target"]] = ("source", "target")


def _span(value: Any) -> Any:
    given = list(value) if isinstance(value, (tuple, list)) else [0, value]
    if len(given) != 2 or not all(type(end) in (int, float) for end in given):
        raise ValueError("a share of the steps was wanted, or two: from and to")
    if not 0 <= given[0] <= given[1] <= 1:
        raise ValueError("wanted between 0 and 1")
    return value


def _words(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, (tuple, list)) else [None]
    if not all(isinstance(part, str) for part in given):
        given = [[part] if isinstance(part, str) else part for part in given]
        if len(given) != 2 or not all(isinstance(part, (tuple, list)) for part in given):
            raise ValueError("wanted a word, words, true, or words of the source and words of the target")
    return tuple(given)


def _by_word(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = list(value.items())
    if not isinstance(value, (tuple, list)):
        raise ValueError("values by word were wanted, such as {'dog': 0.5}")
    names = ("word", "value")
    return [dict(zip(names, one, strict=False)) if isinstance(one, (tuple, list)) else one for one in value]


Span = Annotated[float | tuple[float, float], BeforeValidator(_span)]
"""A share of the steps from the first on, or two: from and to."""

Words = Annotated[bool | tuple[str, ...] | tuple[tuple[str, ...], tuple[str, ...]], BeforeValidator(_words)]
"""Words of whichever prompt has them, or two lists: of the source and of the target; true: those that the edit is about
and what they replace; none: false or ()."""


class _OfWord(BaseModel):
    """Something for a word of the target prompt; `occurrence` counts from 1, None means every one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    word: str
    occurrence: Annotated[int, Field(ge=1, strict=True)] | None = None


class WordValue(_OfWord):
    """A factor: 0 takes a word out of the picture, below 0 asks for its opposite."""

    value: Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False, strict=True)]


class WordShare(_OfWord):
    """The share of the steps, from the first on, in which a word is held."""

    value: Share


class WordSpan(_OfWord):
    """The steps in which a word is held."""

    value: Span


WordValues = Annotated[
    tuple[WordValue, ...],
    BeforeValidator(_by_word, json_schema_input_type=dict[str, float] | list[WordValue | tuple[str, float]]),
]
"""Or {word: value}, or (word, value) pairs."""
WordShares = Annotated[
    tuple[WordShare, ...],
    BeforeValidator(_by_word, json_schema_input_type=dict[str, float] | list[WordShare | tuple[str, float]]),
]
WordSpans = Annotated[
    tuple[WordSpan, ...],
    BeforeValidator(_by_word, json_schema_input_type=dict[str, Span] | list[WordSpan | tuple[str, Span]]),
]


def ends(span: float | tuple[float, float]) -> tuple[float, float]:
    """From and to."""
    return span if isinstance(span, tuple) else (0.0, span)


def tokens_of(named: Iterable[_OfWord], alignment: Alignment) -> Tensor:
    """[N] bool: tokens of the target's words that are named; one that it does not have is an error."""
    return alignment.token_mask(word for one in named for word in alignment.find(one.word, one.occurrence))


def with_word_values(values: Tensor, alignment: Alignment, changes: Iterable[tuple[_OfWord, Any]]) -> Tensor:
    """A copy of per-token `values`, [N] or [N, 2], with the named words' tokens set."""
    values = values.clone()
    for named, value in changes:
        words = alignment.find(named.word, named.occurrence)
        values[alignment.token_mask(words)] = values.new_tensor(value)
    return values


def local_blend(context: Context, settings: Any) -> LocalBlend | None:
    """The blend of the target that a method's `local_blend` and `blend_...` ask for."""
    import torch

    from adapedit_engine.plan import LocalBlend

    if not settings.local_blend:
        return None
    of_source, of_target = blend_tokens(context.alignment, settings.local_blend)
    share: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    return LocalBlend(
        token_weights=context.on_target(of_target),
        source_weights=context.on_target(of_source),
        threshold=torch.tensor([1.0, settings.blend_threshold], **share),
        start=torch.tensor([2.0, settings.blend_start], **share),
        grow=torch.tensor([0, settings.blend_grow], dtype=torch.int64, device="cpu"),
    )


def key_tokens(alignment: Alignment) -> Tensor:
    """[N] bool: tokens of the key words; of an edit that only deletes, those of what the words belonged to."""
    return alignment.key_tokens if alignment.key_tokens.any() else alignment.anchor_tokens


def blend_tokens(alignment: Alignment, words: Any) -> Tensor:
    """[2, N]: 1 at the tokens of `words` in the source (row 0) and target prompt; a word in neither is an error.

    Of the words that the edit is about: see `key_tokens`, and `Alignment.source_key_tokens`.
    """
    import torch

    if isinstance(words, bool):
        return torch.stack([alignment.source_key_tokens, key_tokens(alignment)]).to(torch.float32)
    weights = torch.zeros(2, alignment.num_tokens, dtype=torch.float32, device="cpu")
    each: list[tuple[str, tuple[Any, ...]]] = [(text, PROMPTS) for text in words if isinstance(text, str)]
    if not each:
        each = [(text, (prompt,)) for texts, prompt in zip(words, PROMPTS, strict=True) for text in texts]
    for text, prompts in each:
        found = {}
        for prompt in prompts:
            with suppress(AdapEditError):
                found[prompt] = alignment.find(text, prompt=prompt)
        for prompt, its in (found or {prompts[-1]: alignment.find(text, prompt=prompts[-1])}).items():
            weights[PROMPTS.index(prompt), alignment.token_mask(its)] = 1
    return weights
