"""Weights of words as the community writes them, `(word:1.3)`: read out of a prompt, which is left without them.

It stands alone because nothing else knows this way of writing: below it there are words, and factors by word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapedit.methods.words import WordValue
from adapedit.prompts.tokens import word_spans
from adapedit_kernels.errors import AdapEditError

STRONGER, WEAKER = 1.1, 1 / 1.1
"""Of brackets without a number: `(word)` and `[word]`."""
_SIGNS = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)|[^\\()\[\]:]+|.", re.S)


@dataclass(frozen=True, kw_only=True)
class WeightedPrompt:
    """A prompt without its weights. factors: of words that have one, by which of those that read so they are."""

    text: str
    factors: tuple[WordValue, ...]


def read_weights(prompt: str) -> WeightedPrompt:
    r"""`(word:1.3)` times 1.3, `(word)` times 1.1, `[word]` over 1.1; nested, they multiply; `\(` is a bracket.

    Raises `AdapEditError` for brackets that do not close.
    """
    text, spans = "", list[tuple[int, int, float]]()
    opened: list[tuple[str, int]] = []
    for sign in _SIGNS.findall(prompt):
        if sign in "([":
            opened.append((sign, len(text)))
        elif sign in ")]" or (
            sign.startswith(":") and sign.endswith(")") and opened and opened[-1][0] == "("
        ):
            if not opened or (opened[-1][0] == "(") != (sign[-1] == ")"):
                raise _unclosed(prompt, sign)
            bracket, start = opened.pop()
            text = text.rstrip() if len(sign) > 1 else text
            factor = float(sign[1:-1]) if len(sign) > 1 else STRONGER if bracket == "(" else WEAKER
            spans.append((start, len(text), factor))
        else:
            text += sign[1] if len(sign) == 2 and sign[0] == "\\" else sign
    if opened:
        raise _unclosed(prompt, opened[-1][0])
    return WeightedPrompt(text=text, factors=tuple(_factors(text, spans)))


def _factors(text: str, spans: list[tuple[int, int, float]]) -> list[WordValue]:
    found, seen = list[WordValue](), dict[str, int]()
    for start, stop in word_spans(text):
        word = text[start:stop]
        seen[word.casefold()] = seen.get(word.casefold(), 0) + 1
        factor = 1.0
        for first, last, own in spans:
            if first < stop and start < last:
                factor *= own
        if factor != 1:
            found.append(WordValue(word=word, occurrence=seen[word.casefold()], value=round(factor, 6)))
    return found


def _unclosed(prompt: str, sign: str) -> AdapEditError:
    return AdapEditError(
        f"{sign[-1]!r} in {prompt!r:.80} has no counterpart; write \\{sign[-1]} for a bracket that is one"
    )
