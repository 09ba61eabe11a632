"""Alignment of a source prompt with a target prompt: what each word is to the edit, and which token is which.

Alignment is by word, then by token inside a word. *Key words* are the words of the target prompt that the
source prompt does not have at that place, but for the small words that no pixel shows: articles, punctuation,
conjunctions and auxiliary verbs.

The token map ``A`` says how the source's attention is put on the target's tokens, ``R = M^c A``. Each of its rows
sums to 1, so each pixel of ``R`` is a distribution over tokens, as the softmax was that it comes from:

* a word with as many tokens as its counterpart: one to one;
* with another number of them: each source token's attention is shared evenly, as in Prompt-to-Prompt;
* a deleted word's attention goes to the start token, where a softmax puts attention that has nowhere to go
  (a causal text encoder makes the same of that token in every prompt);
* end and padding: place by place from the end token on. Where the target has more padding the source's last
  is shared among the rest; where it has less, what is left over is added to the target's last.

Long prompts are several chunks, each framed as a prompt of its own: a word may stand in another chunk than its
counterpart; start, end and padding are those of the same chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from adapedit.prompts.matching import Pair, is_neutral, match_words, same_word, word_class, word_forms
from adapedit.prompts.tokens import TokenizedPrompt, tokenize_words
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Alignment", "Variant", "Word", "align", "prompt_warnings"]

_WEIGHT = re.compile(
    r"\(([^():]*[^():\d\s])\s*:\s*(?P<number>\d*\.?\d+)\)"  # (cat:1.3)
    r"|\(\(([^()]+)\)\)"  # ((cat))
    r"|([\w-]*\w)(?:\+\++|---*)(?![\w+-])|\(([^()]+)\)(?:\+\+*|---*)(?![\w+-])"  # cat++, (a cat)+, cat--
)
"""How other programs write a word's weight."""

Kind = Literal["kept", "replaced", "inserted", "deleted"]
Variant = Literal["paper", "released"]


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of one of the two prompts.

    text:        as written.
    index:       its place among the words of its prompt.
    tokens:      the places of its tokens among the N of the text encoder, in order.
    kind:        ``kept``, ``replaced`` (of a target word: it replaces another), ``inserted`` or ``deleted``.
    counterpart: index of the word of the other prompt that it is aligned with; None if inserted or deleted.
    is_key:      target words: whether the edit is about this word.
    anchor:      deleted words: index of the target word that it belonged to, where one is left; inserted words: index
                 of the source word that it belongs to, where there is one.
    """

    text: str
    index: int
    tokens: tuple[int, ...]
    kind: Kind
    counterpart: int | None = None
    is_key: bool = False
    anchor: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """What an editing method knows of two prompts. All tensors are on the CPU; N is the number of tokens.

    source_input_ids, target_input_ids: [N] int64, what the text encoder takes: start, text, end, padding.
    token_map:      [N, N] float32, ``A``: the weight of source token i in target token j. Rows sum to 1.
    own_weight:     [N] float32, ``u``: 1 where a target token has no counterpart, else 0.
    key_tokens:     [N] bool, target tokens of key words. None is set where words were only deleted.
    word_of_token:  [N] int64, index of a target token's word; -1 for start, end and padding.
    """

    source_prompt: str
    target_prompt: str
    source_words: tuple[Word, ...]
    target_words: tuple[Word, ...]
    source_input_ids: Tensor
    target_input_ids: Tensor
    token_map: Tensor
    own_weight: Tensor
    key_tokens: Tensor
    word_of_token: Tensor

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.own_weight)

    @property
    def key_words(self) -> tuple[Word, ...]:
        """Key words of the target prompt."""
        return tuple(word for word in self.target_words if word.is_key)

    @property
    def deleted_words(self) -> tuple[Word, ...]:
        """Words of the source prompt that the target prompt does not have."""
        return tuple(word for word in self.source_words if word.kind == "deleted")

    @property
    def anchor_tokens(self) -> Tensor:
        """[N] bool, target tokens of the words that deleted words belonged to.

        An edit that only deletes has no key word; these are what is left of the thing that it is about.
        """
        anchors = {word.anchor for word in self.deleted_words if word.anchor is not None}
        return self.token_mask(self.target_words[index] for index in anchors)

    @property
    def source_key_tokens(self) -> Tensor:
        """[N] bool, *source* tokens of words replaced or deleted, and of those that inserted words belong to."""
        lost = [word for word in self.source_words if word.kind != "kept" and not is_neutral(word.text)]
        anchors = {word.anchor for word in self.key_words if word.anchor is not None}
        return self.token_mask([*lost, *(self.source_words[index] for index in anchors)])

    def token_mask(self, words: Iterable[Word]) -> Tensor:
        """[N] bool, True at the tokens of ``words`` (all of one prompt)."""
        mask = torch.zeros(self.num_tokens, dtype=torch.bool, device="cpu")
        for word in words:
            mask[list(word.tokens)] = True
        return mask

    def find(
        self, text: str, occurrence: int | None = None, *, prompt: Literal["source", "target"] = "target"
    ) -> tuple[Word, ...]:
        """The words of a prompt that read ``text``, whatever their case: all of them, or the n-th (from 1).

        Raises `AdapEditError`, which lists the words, where the prompt has no such word or not so many.
        """
        words = self.target_words if prompt == "target" else self.source_words
        found = tuple(word for word in words if word.text.casefold() == text.strip().casefold())
        if not found:
            raise AdapEditError(
                f"the {prompt} prompt has no word {text!r}; its words are: {', '.join(w.text for w in words)}"
            )
        if occurrence is None:
            return found
        if not 1 <= occurrence <= len(found):
            raise AdapEditError(
                f"the {prompt} prompt has {text!r} {len(found)} times, and occurrence {occurrence} was asked "
                f"for; count from 1 in: {', '.join(w.text for w in words)}"
            )
        return (found[occurrence - 1],)

    def as_variant(self, variant: Variant) -> Alignment:
        """``paper``: as aligned. ``released``: no key word has a counterpart, as in the authors' code.

        There ``own_weight`` is 1 for every key token; the token map stays, for it no longer counts there.
        """
        if variant == "paper":
            return self
        return replace(self, own_weight=torch.maximum(self.own_weight, self.key_tokens.to(torch.float32)))


def align(
    source_prompt: str,
    target_prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    chunks: int = 1,
) -> Alignment:
    """Align two prompts.

    tokenizer:  a fast one of CLIP's kind.
    max_length: the tokens that the text encoder takes (77 for Stable Diffusion); None: what the tokenizer says.
    chunks:     so many times the text encoder's tokens are N; a word is never divided between two.

    Raises `AdapEditError` where a prompt is empty, has more tokens (none is ever cut) or a word without token.
    """
    source, target = (
        tokenize_words(prompt, tokenizer, max_length=max_length, chunks=chunks, name=name)
        for prompt, name in ((source_prompt, "source prompt"), (target_prompt, "target prompt"))
    )
    pairs = match_words(source.texts, target.texts)
    source_words = _words(source, target, pairs, "deleted")
    target_words = _words(target, source, [(new, old) for old, new in pairs], "inserted")

    tokens = len(target.input_ids)
    own_weight = torch.zeros(tokens, dtype=torch.float32, device="cpu")
    key_tokens = torch.zeros(tokens, dtype=torch.bool, device="cpu")
    word_of_token = torch.full((tokens,), -1, dtype=torch.int64, device="cpu")
    for word in target_words:
        places = list(word.tokens)
        own_weight[places] = float(word.kind == "inserted")
        key_tokens[places] = word.is_key
        word_of_token[places] = word.index
    return Alignment(
        source_prompt=source_prompt,
        target_prompt=target_prompt,
        source_words=source_words,
        target_words=target_words,
        source_input_ids=torch.tensor(source.input_ids, dtype=torch.int64, device="cpu"),
        target_input_ids=torch.tensor(target.input_ids, dtype=torch.int64, device="cpu"),
        token_map=_token_map(source, target, pairs),
        own_weight=own_weight,
        key_tokens=key_tokens,
        word_of_token=word_of_token,
    )


def _words(
    prompt: TokenizedPrompt, other: TokenizedPrompt, pairs: Sequence[Pair], unpaired: Kind
) -> tuple[Word, ...]:
    """The words of ``prompt``. pairs: places in it and in ``other``; unpaired: what a word without counterpart is."""
    words = []
    for step, (here, there) in enumerate(pairs):
        if here is None:
            continue
        text = prompt.texts[here]
        shown = not is_neutral(text)
        kind = unpaired
        if there is not None:
            kind = "kept" if same_word(text, other.texts[there]) else "replaced"
        words.append(
            Word(
                text=text,
                index=here,
                tokens=prompt.positions[here],
                kind=kind,
                counterpart=there,
                is_key=unpaired == "inserted" and kind != "kept" and shown,
                anchor=_anchor(step, prompt, pairs) if there is None and shown else None,
            )
        )
    return tuple(words)


def _anchor(step: int, prompt: TokenizedPrompt, pairs: Sequence[Pair]) -> int | None:
    """The word of the other prompt that the word of ``pairs[step]`` belongs to, which has no counterpart there.

    pairs: places in ``prompt`` and in the other one. It is the noun that the word stands before, as in ``a small red
    dog``; where a small word comes next, as in ``a dog with a hat on the grass``, the last noun, verb or adjective
    before; and failing that the first after.
    """
    forms = word_forms(prompt.texts)
    left, right = (
        [(here, there) for here, there in part if here is not None and there is not None]
        for part in (pairs[:step], pairs[step + 1 :])
    )
    while right and forms[right[0][0]].startswith("modifier"):
        right.pop(0)
    candidates = right[:1] + left[::-1] + right[1:]
    return next((there for here, there in candidates if word_class(prompt.texts[here]) == "content"), None)


def _token_map(source: TokenizedPrompt, target: TokenizedPrompt, pairs: Sequence[Pair]) -> Tensor:
    """[N, N] float32: weight of source token i in target token j. Columns of inserted words are 0."""
    tokens = len(source.input_ids)
    result = torch.zeros(tokens, tokens, dtype=torch.float32, device="cpu")
    chunk = tokens // len(source.ends)
    for old, new in pairs:
        if old is not None:
            own = source.positions[old]
            _connect(result, own, (own[0] // chunk * chunk,) if new is None else target.positions[new])
    for start, old_end, new_end in zip(range(0, tokens, chunk), source.ends, target.ends, strict=True):
        result[start, start] = 1.0
        old_tail, new_tail = range(old_end, start + chunk), range(new_end, start + chunk)
        # The last place of the shorter one takes what is left of the other.
        common = min(len(old_tail), len(new_tail)) - 1
        _connect(result, old_tail[:common], new_tail[:common])
        _connect(result, old_tail[common:], new_tail[common:])
    return result


def _connect(result: Tensor, old: Sequence[int], new: Sequence[int]) -> None:
    if len(old) == len(new):
        result[list(old), list(new)] = 1.0
    else:
        for place in old:
            result[place, list(new)] = 1.0 / len(new)


def prompt_warnings(alignment: Alignment, *, changes_more: bool = False) -> tuple[str, ...]:
    """What looks like a slip in two prompts, a line each. changes_more: the method changes more than words say."""
    found = []
    if not changes_more and not (alignment.source_key_tokens | alignment.key_tokens).any():
        found.append("the two prompts say the same: there is nothing to change; give another target_prompt")
    for name in ("source", "target"):
        weight = _WEIGHT.search(getattr(alignment, f"{name}_prompt"))
        if weight is not None:
            word = next(part for part in weight.groups() if part)
            found.append(
                f"{weight[0]!r} in the {name} prompt is read as words, not as a weight: write {word!r}, and give "
                f'method="prompt-to-prompt" with equalizer={{{word!r}: {weight["number"] or 1.2}}}'
            )
            break
    return tuple(found)
