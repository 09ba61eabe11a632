"""The words of a prompt and the tokens of each, as the text encoder will see them.

A word is a run of letters, digits and marks, with apostrophes and hyphens inside it, and points, commas and
colons inside a number (``dog's``, ``well-known``, ``3.5``); any other run of signs is a word of its own.
Where a tokenizer makes one token of the end of a word and the start of the next (CLIP reads ``'standing'``
as ``'s``, ``tand``, ``ing``, ``'``) the two are one word here.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenizedPrompt", "framed_ids", "settled", "tokenize_words", "word_spans"]

_JOINERS = frozenset("'’-‐")
_NUMBER_JOINERS = frozenset(".,:")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNLIMITED = 1_000_000  # a tokenizer without a limit says 1e30


@dataclass(frozen=True, kw_only=True)
class TokenizedPrompt:
    """A prompt, the ids that the text encoder takes, and where the words are among them.

    input_ids: N ids: start, the tokens of the text, end, padding.
    texts:     the words as written, in order.
    positions: for each word the places of its tokens in ``input_ids``; together 1 to ``end`` - 1, no gap.
    end:       the place of the end token.
    """

    prompt: str
    input_ids: tuple[int, ...]
    texts: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    end: int


def tokenize_words(
    prompt: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, name: str = "prompt"
) -> TokenizedPrompt:
    """Tokenize ``prompt`` and find the tokens of each word.

    Works with any tokenizer of CLIP's kind (start, text, end, padding; white space separates tokens). The
    place of a word is never guessed: a boundary counts only where the tokens of the text before it and those
    of the text after it, made apart, are together the tokens of the whole.

    Args:
        max_length: N, the tokens that the text encoder takes; by default what the tokenizer says.
        name: what errors call the prompt.

    Raises:
        AdapEditError: the prompt is no string or no text (half a surrogate pair), is empty, has more than N tokens
            (it is never cut) or a word that the tokenizer has no token for; or the tokenizer is not of CLIP's kind.
    """
    if not isinstance(prompt, str):
        raise AdapEditError(f"the {name} is of type {type(prompt).__name__}; give a string")
    half = _SURROGATE.search(prompt)
    if half is not None:
        raise AdapEditError(f"the {name} has half a character, {half[0]!r}: write it whole or leave it out")
    spans = word_spans(prompt)
    if not spans:
        raise AdapEditError(f"the {name} is empty; describe the picture in a few words")
    limit = _limit(tokenizer, max_length)
    content = _text_ids(prompt, tokenizer)
    surplus = len(content) + 2 - limit
    if surplus > 0:
        raise AdapEditError(
            f"the {name} has {len(content) + 2} tokens, start and end among them, and the model takes "
            f"{limit}: shorten it by {surplus}"
        )

    texts: list[str] = []
    positions: list[tuple[int, ...]] = []
    begin, first = None, 0  # of the word at hand: its first character, and the number of tokens before it
    ends = _piece_ends(prompt, content, tokenizer)
    for start, stop in spans:
        begin = start if begin is None else begin
        last = ends.get(stop)
        if last is None:  # inside a piece, as the word before a comma
            before = _text_ids(prompt[:stop], tokenizer)
            if before + _text_ids(prompt[stop:], tokenizer) != content:
                continue  # a token reaches over this boundary
            last = len(before)
        texts.append(prompt[begin:stop])
        positions.append(tuple(range(first + 1, last + 1)))
        begin, first = None, last

    _refuse_unknown(texts, positions, content, tokenizer, name)
    input_ids = _padded_ids(prompt, content, tokenizer, limit)
    return TokenizedPrompt(
        prompt=prompt,
        input_ids=tuple(input_ids),
        texts=tuple(texts),
        positions=tuple(positions),
        end=len(content) + 1,
    )


def settled(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same, with nothing left that its next use would change: from then on threads may share it.

    A fast tokenizer keeps how it padded and cut last, at first what its file says, until a call wants another way.
    """
    _text_ids("", tokenizer)
    return tokenizer


def framed_ids(text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> list[int]:
    """The ids that the tokenizer makes of a whole text, start and end among them, padded to ``limit``.

    Padded here and not by the tokenizer, which would remember it, see `settled`. Raises `AdapEditError` where it has
    no token for that.
    """
    ids = _ids(text, tokenizer, add_special_tokens=True)
    missing = limit - len(ids)
    if missing > 0 and tokenizer.pad_token_id is None:
        raise AdapEditError(
            f"{type(tokenizer).__name__} has no padding token; use the CLIPTokenizer of a Stable Diffusion checkpoint"
        )
    padding = [tokenizer.pad_token_id] * missing
    return padding + ids if tokenizer.padding_side == "left" else ids + padding


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, stop) of each word of ``text``, in characters."""
    spans: list[tuple[int, int]] = []
    kinds = [_kind(character) for character in text]
    for place, character in enumerate(text):
        if kinds[place] == "mark":  # an accent or a variation selector belongs to what it stands on
            kinds[place] = kinds[place - 1] if place and kinds[place - 1] != "space" else "sign"
        elif kinds[place] == "sign" and _joins(text, kinds, place, character):
            kinds[place] = "word"
    for place, kind in enumerate(kinds):
        if kind == "space":
            continue
        if spans and spans[-1][1] == place and kinds[place - 1] == kind:
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
    return spans


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "word", "N": "word", "M": "mark"}.get(unicodedata.category(character)[0], "sign")


def _joins(text: str, kinds: list[str], place: int, character: str) -> bool:
    """Whether the sign at ``place`` stands inside a word, as in ``dog's``, or inside a number."""
    if not 0 < place < len(text) - 1 or kinds[place - 1] != "word" or kinds[place + 1] != "word":
        return False
    if character in _NUMBER_JOINERS:
        return text[place - 1].isdigit() and text[place + 1].isdigit()
    return character in _JOINERS


def _piece_ends(prompt: str, content: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """How many tokens there are before the end of each piece between white space, by the place of that end.

    None of them where the pieces' tokens, made apart, are not those of the whole. Most words are pieces: asking once
    for each, and not for all that is before and behind it, halves the calls of the tokenizer.
    """
    ends, made = dict[int, int](), list[int]()
    for piece in re.finditer(r"\S+", prompt):
        made += _text_ids(piece.group(), tokenizer)
        ends[piece.end()] = len(made)
    return ends if made == content else {}


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return _ids(text, tokenizer, add_special_tokens=False)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> list[int]:
    # verbose is off since a length over the limit is an error here, not a warning.
    made = tokenizer(text, add_special_tokens=add_special_tokens, truncation=False, verbose=False)
    return list(made["input_ids"])


def _limit(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    limit = tokenizer.model_max_length if max_length is None else max_length
    if limit >= _UNLIMITED:
        raise AdapEditError(
            "the tokenizer names no largest number of tokens; give max_length, the text encoder's "
            "max_position_embeddings (77 for Stable Diffusion)"
        )
    return int(limit)


def _refuse_unknown(
    texts: list[str],
    positions: list[tuple[int, ...]],
    content: list[int],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> None:
    # CLIP's unknown token is its end token, and its text encoder takes the first of those for the end.
    refused = {tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    for text, places in zip(texts, positions, strict=True):
        if not places:
            raise AdapEditError(f"the tokenizer makes no token of {text!r} in the {name}; leave it out")
        if refused & {content[place - 1] for place in places}:
            raise AdapEditError(f"the model does not know {text!r} in the {name}; use another word")


def _padded_ids(prompt: str, content: list[int], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[int]:
    input_ids = framed_ids(prompt, tokenizer, limit)
    framed = [tokenizer.bos_token_id, *content, tokenizer.eos_token_id]
    padding = [tokenizer.pad_token_id] * (limit - len(framed))
    if input_ids != framed + padding:
        raise AdapEditError(
            f"{type(tokenizer).__name__} does not frame a prompt as start, text, end, padding; "
            "use the CLIPTokenizer of a Stable Diffusion checkpoint"
        )
    return input_ids
