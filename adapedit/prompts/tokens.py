"""The words of a prompt and the tokens of each, as the text encoder will see them.

A word is a run of letters, digits and marks, with apostrophes and hyphens inside it, and points, commas and
colons inside a number (``dog's``, ``well-known``, ``3.5``); any other run of signs is a word of its own. In
scripts that set no space between words each letter is one. A token that was added to the tokenizer, as textual
inversion does, is a word whatever stands beside it. Where a token reaches from one word into the next (CLIP
reads ``'standing'`` as ``'s``, ``tanding``, ``'``) the two are one word here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TokenizedPrompt",
    "framed_ids",
    "prompt_ids",
    "settled",
    "tokenize_words",
    "word_spans",
]

Span = tuple[int, int]
"""Start and stop, in characters of the prompt."""

_JOINERS = frozenset("'’-‐")
_NUMBER_JOINERS = frozenset(".,:")
_UNSPACED = frozenset({"CJK", "HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR"})
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_CHUNKS = 6
"""Of 77 tokens: kernels take up to 512."""
_UNLIMITED = 1_000_000  # a tokenizer without a limit says 1e30
_MEND = "use the CLIPTokenizer of a Stable Diffusion checkpoint"


@dataclass(frozen=True, kw_only=True)
class TokenizedPrompt:
    """The ids of a prompt that the text encoder takes, and where its words are among them.

    input_ids: N ids of each chunk: start, the tokens of its words, end, padding.
    texts:     the words as written, in order.
    positions: for each word the places of its tokens in ``input_ids``, all of them in one chunk.
    ends:      of each chunk the place of its end token.
    """

    input_ids: tuple[int, ...]
    texts: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]


def tokenize_words(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    chunks: int = 1,
    name: str = "prompt",
) -> TokenizedPrompt:
    """Tokenize ``prompt`` and find the tokens of each word, by the tokenizer's own offsets.

    A placeholder of several vectors (``<toy>`` where ``<toy>_1`` was added, too) becomes all of their tokens, as in
    diffusers, and is one word. tokenizer, max_length, chunks: see `align`; name: what errors call the prompt.

    Raises `AdapEditError` where the prompt is no string or no text (half a surrogate pair), is empty, has more tokens
    than the chunks have room for (it is never cut) or a word without token, and for a tokenizer not of CLIP's kind.
    """
    limit, content, texts, words = _cut(prompt, tokenizer, max_length, name)
    filled = _filled(words, limit - 2)
    if len(filled) > chunks:
        wanted = len(filled) if len(filled) <= MAX_CHUNKS else None
        raise _too_long(name, len(content), limit, chunks, wanted)
    ids: list[int] = []
    positions: list[tuple[int, ...]] = []
    ends: list[int] = []
    for chunk in range(chunks):
        own = words[filled[chunk]] if chunk < len(filled) else []
        start = len(ids) + 1
        for word in own:
            positions.append(tuple(range(start, start + len(word))))
            start += len(word)
        ends.append(start)
        ids += [tokenizer.bos_token_id, *(content[place] for word in own for place in word)]
        ids += [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * ((chunk + 1) * limit - start - 1)]
    return TokenizedPrompt(input_ids=tuple(ids), texts=texts, positions=tuple(positions), ends=tuple(ends))


def _cut(
    prompt: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None, name: str
) -> tuple[int, list[int], tuple[str, ...], list[range]]:
    """N, the tokens of the text, its words, and which of the tokens are each word's."""
    if not isinstance(prompt, str):
        raise AdapEditError(f"the {name} is of type {type(prompt).__name__}; give a string")
    half = _SURROGATE.search(prompt)
    if half is not None:
        raise AdapEditError(f"the {name} has half a character, {half[0]!r}: write it whole or leave it out")
    if not word_spans(prompt):
        raise AdapEditError(f"the {name} is empty; describe the picture in a few words")
    limit = _limit(tokenizer, max_length)
    content, spans = _content(prompt, tokenizer)
    if len(content) > MAX_CHUNKS * (limit - 2):
        raise _too_long(name, len(content), limit)
    refused = {tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    added = set(tokenizer.get_added_vocab().values()) - refused
    whole = sorted({span for id, span in zip(content, spans, strict=True) if id in added})
    texts, positions = _places(prompt, spans, word_spans(prompt, whole))
    for text, places in zip(texts, positions, strict=True):
        if not places:
            raise AdapEditError(f"the tokenizer makes no token of {text!r} in the {name}; leave it out")
        # CLIP's unknown token is its end token, and its text encoder takes the first of those for the end.
        if refused & {content[place] for place in places}:
            raise AdapEditError(f"the model does not know {text!r} in the {name}; use another word")
        if len(places) > limit - 2:
            raise _too_long(name, len(content), limit)
    return limit, content, texts, positions


def _filled(words: Sequence[range], room: int) -> list[slice]:
    """The words of each chunk: as many as it has room for, none of them divided. words: tokens of each."""
    starts = [0]
    for place, word in enumerate(words):
        if word.stop - words[starts[-1]].start > room:
            starts.append(place)
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(words)], strict=True)]


def _too_long(
    name: str, tokens: int, limit: int, chunks: int = 1, wanted: int | None = None
) -> AdapEditError:
    """wanted: chunks that it takes, where that many may be asked for."""
    many = "" if chunks == 1 else f"{chunks} times "
    more = "" if wanted is None else f", or give max_embeddings_multiples={wanted}"
    return AdapEditError(
        f"the {name} has {tokens + 2} tokens, start and end among them, and the model takes {many}{limit}: "
        f"shorten it by {max(1, tokens - chunks * (limit - 2))}{more}"
    )


def prompt_ids(
    prompt: str,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    *,
    max_length: int,
    chunks: int = 1,
    name: str = "prompt",
) -> list[list[int]]:
    """The N ids of each chunk of a prompt by each tokenizer of a model, padded as each pads.

    Raises `AdapEditError` as `tokenize_words` does, and where they cut words otherwise: what text encoders make of a
    place is joined, so a place has to be one word's.
    """
    found = [
        tokenize_words(prompt, one, max_length=max_length, chunks=chunks, name=name) for one in tokenizers
    ]
    for other in found[1:]:
        words = [list(zip(cut.texts, cut.positions, strict=True)) for cut in (found[0], other)]
        if words[0] != words[1]:
            first = next((word for word in words[0] if word not in words[1]), words[0][-1])[0]
            raise AdapEditError(
                f"the model's tokenizers cut {first!r} in the {name} otherwise; write it otherwise, too"
            )
    return [list(cut.input_ids) for cut in found]


def _places(prompt: str, tokens: list[Span], words: list[Span]) -> tuple[tuple[str, ...], list[range]]:
    """The texts of the words and which tokens are theirs; words that a token reaches over are one."""
    crossed = {place for start, stop in tokens for place in range(start + 1, stop)}
    texts: list[str] = []
    positions: list[range] = []
    # Of the word at hand: its first character, and the number of tokens before it.
    begin, first = words[0][0], 0
    for place, (_, stop) in enumerate(words, start=1):
        if place < len(words) and stop in crossed:
            continue
        last = sum(start < stop for start, _ in tokens) if place < len(words) else len(tokens)
        texts.append(prompt[begin:stop])
        positions.append(range(first, last))
        begin, first = words[place][0] if place < len(words) else stop, last
    return tuple(texts), positions


def settled(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same, with nothing left that its next use would change: from then on threads may share it.

    A fast tokenizer keeps how it padded and cut last, at first what its file says, until a call wants another way.
    """
    _encoded("", tokenizer)
    return tokenizer


def framed_ids(text: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> list[int]:
    """The ids that the tokenizer makes of a whole text, start and end among them, padded to ``limit``.

    Padded here and not by the tokenizer, which would remember it, see `settled`. Raises `AdapEditError` where it has
    no token for that.
    """
    ids = _encoded(text, tokenizer)[0]
    missing = limit - len(ids)
    if missing > 0 and tokenizer.pad_token_id is None:
        raise AdapEditError(f"{type(tokenizer).__name__} has no padding token; {_MEND}")
    padding = [tokenizer.pad_token_id] * missing
    return padding + ids if tokenizer.padding_side == "left" else ids + padding


def word_spans(text: str, whole: Iterable[Span] = ()) -> list[Span]:
    """Each word of ``text``, in order. whole: what is a word whatever it is made of, in order."""
    spans: list[Span] = []
    begin = 0
    for start, stop in (*whole, (len(text), len(text))):
        spans += [(begin + here, begin + there) for here, there in _runs(text[begin:start])]
        spans += [(start, stop)] * (start < stop)
        begin = stop
    return spans


def _runs(text: str) -> list[Span]:
    spans: list[Span] = []
    kinds = [_kind(character) for character in text]
    for place, character in enumerate(text):
        if kinds[place] == "mark":  # an accent or a variation selector belongs to what it stands on
            kinds[place] = kinds[place - 1] if place and kinds[place - 1] != "space" else "sign"
        elif kinds[place] == "sign" and _joins(text, kinds, place, character):
            kinds[place] = "word"
    for place, kind in enumerate(kinds):
        if kind == "space":
            continue
        alone = kind == "letter" and _kind(text[place]) != "mark"
        if spans and spans[-1][1] == place and kinds[place - 1] == kind and not alone:
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
    return spans


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    kind = {"L": "word", "N": "word", "M": "mark"}.get(unicodedata.category(character)[0], "sign")
    if kind == "word" and unicodedata.name(character, "").partition(" ")[0] in _UNSPACED:
        return "letter"
    return kind


def _joins(text: str, kinds: list[str], place: int, character: str) -> bool:
    """Whether the sign at ``place`` stands inside a word, as in ``dog's``, or inside a number."""
    if not 0 < place < len(text) - 1 or kinds[place - 1] != "word" or kinds[place + 1] != "word":
        return False
    if character in _NUMBER_JOINERS:
        return text[place - 1].isdigit() and text[place + 1].isdigit()
    return character in _JOINERS


def _encoded(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[Span]]:
    if not tokenizer.is_fast:
        raise AdapEditError(f"{type(tokenizer).__name__} does not tell the places of its tokens; {_MEND}")
    # verbose is off since a length over the limit is an error here, not a warning.
    made = tokenizer(text, truncation=False, verbose=False, return_offsets_mapping=True)
    return list(made["input_ids"]), [(start, stop) for start, stop in made["offset_mapping"]]


def _content(prompt: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[Span]]:
    """The tokens of the text without its frame, and what each stands for; placeholders with all their tokens."""
    ids, spans = _encoded(prompt, tokenizer)
    if (
        ids[:1] != [tokenizer.bos_token_id]
        or ids[-1:] != [tokenizer.eos_token_id]
        or tokenizer.padding_side != "right"
        or tokenizer.pad_token_id is None
    ):
        raise AdapEditError(
            f"{type(tokenizer).__name__} does not frame a prompt as start, text, end, padding; {_MEND}"
        )
    added = tokenizer.get_added_vocab()
    names = {id: token for token, id in added.items()}
    content: list[int] = []
    places: list[Span] = []
    for id, span in zip(ids[1:-1], spans[1:-1], strict=True):
        content.append(id)
        more = 1
        while id in names and f"{names[id]}_{more}" in added:
            content.append(added[f"{names[id]}_{more}"])
            more += 1
        places += [span] * more
    return content, places


def _limit(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    limit = tokenizer.model_max_length if max_length is None else max_length
    if limit >= _UNLIMITED:
        raise AdapEditError(
            "the tokenizer names no largest number of tokens; give max_length, the text encoder's "
            "max_position_embeddings (77 for Stable Diffusion)"
        )
    return int(limit)
