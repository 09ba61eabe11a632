"""Which word of the target prompt stands where a word of the source prompt stood: edit distance over words.

Two words that are the same may be *kept*; two of the same class (nouns, verbs and adjectives are one class)
may *replace* one another; every other word is inserted or deleted. Of all ways with the fewest changes the
one is taken that breaks the kept words into the fewest runs and pairs words of like form: ``standing`` with
``sitting`` and the noun with the noun, so that in ``a cat`` → ``a big fluffy dog`` the dog replaces the cat.
What that leaves open is decided for the earlier word.

The lists of small words are English, as CLIP is. In another language every word is of the class ``content``,
and only the finer choices are lost.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

__all__ = ["is_neutral", "match_words", "same_word", "word_class", "word_forms"]

# Whose class and form are kept: matching asks for each as often as the other prompt is long.
_KNOWN_WORDS = 4096

Pair = tuple[int | None, int | None]
State = tuple[int, int, bool]  # source words and target words behind us; whether the last step kept one

# Costs are whole numbers so that a tie is a tie. A replacement is dearer than one gap and cheaper than two.
_GAP = 16
_REPLACED = 24
_REPLACED_BY_LIKE_FORM = 20
_BREAK = 1

_CLASSES = {
    "article": "a an the",
    "determiner": "this that these those my your his her its our their some any each every both",
    "preposition": (
        "in on at by to of from with without for into onto over under above below behind beside near between "
        "among through across along around against inside outside upon toward towards next"
    ),
    "conjunction": "and or but while as than",
    "number": "one two three four five six seven eight nine ten eleven twelve dozen hundred",
    "auxiliary": "is are was were be been being am has have had do does did",
}
_CLASS_OF = {word: name for name, words in _CLASSES.items() for word in words.split()}
_VERB_ENDINGS = ("ing", "ed")
_SHORTEST_VERB = 5  # king and red are none
_NO_VERBS = frozenset(
    "painting drawing building ceiling clothing evening morning lightning wedding spring".split()
)


def match_words(source: Sequence[str], target: Sequence[str]) -> tuple[Pair, ...]:
    """Pairs (place in ``source``, place in ``target``) in order; None on one side: inserted or deleted.

    Each place of either side is in exactly one pair. Time and memory: the product of the two lengths.
    """
    best: dict[State, tuple[int, State | None]] = {(0, 0, True): (0, None)}
    forms = word_forms(source), word_forms(target)
    for i in range(len(source) + 1):
        for j in range(len(target) + 1):
            for state, change, before in _ways_to(i, j, source, target, forms):
                cost = best[before][0] + change if before in best else None
                if cost is not None and (state not in best or cost < best[state][0]):
                    best[state] = (cost, before)

    # Both ends of the prompts count as kept: a run that starts or stops there is not broken.
    ends = [(len(source), len(target), kept) for kept in (False, True)]
    state = min((end for end in ends if end in best), key=lambda end: best[end][0] + _BREAK * (not end[2]))
    pairs: list[Pair] = []
    while (previous := best[state][1]) is not None:
        i, j = previous[:2]
        pairs.append((i if i < state[0] else None, j if j < state[1] else None))
        state = previous
    return tuple(reversed(pairs))


def _ways_to(
    i: int, j: int, source: Sequence[str], target: Sequence[str], forms: tuple[list[str], list[str]]
) -> Iterator[tuple[State, int, State]]:
    """(state, cost of the step, state before it) for each step that ends at ``i`` and ``j``.

    Of ways that cost the same the first is taken, and a way is read from its end: gaps come before pairs
    here, so that they go to the end of a block.
    """
    for kept in (True, False):
        changed = _GAP + _BREAK * kept
        if j:
            yield (i, j, False), changed, (i, j - 1, kept)
        if i:
            yield (i, j, False), changed, (i - 1, j, kept)
    for kept in (True, False):
        if i and j:
            before = (i - 1, j - 1, kept)
            if same_word(source[i - 1], target[j - 1]):
                yield (i, j, True), _BREAK * (not kept), before
            elif word_class(source[i - 1]) == word_class(target[j - 1]):
                like = forms[0][i - 1] == forms[1][j - 1]
                change = _REPLACED_BY_LIKE_FORM if like else _REPLACED
                yield (i, j, False), change + _BREAK * kept, before


def same_word(source: str, target: str) -> bool:
    """Whether two words are the same, whatever their case, the kind of apostrophe and, of articles, which."""
    return _normal(source) == _normal(target) or word_class(source) == word_class(target) == "article"


@lru_cache(_KNOWN_WORDS)
def word_class(word: str) -> str:
    """``punctuation``, ``number``, a class of small words (``article``, ``preposition`` …) or ``content``."""
    if all(unicodedata.category(character)[0] == "P" or character in "$+<=>^`|~" for character in word):
        return "punctuation"
    return "number" if word.isdigit() else _CLASS_OF.get(_normal(word), "content")


def is_neutral(word: str) -> bool:
    """Whether no pixel shows a word: punctuation, articles, conjunctions and auxiliary verbs."""
    return word_class(word) in {"punctuation", "article", "conjunction", "auxiliary"}


@lru_cache(_KNOWN_WORDS)
def _normal(word: str) -> str:
    lower = unicodedata.normalize("NFC", word).lower().replace("’", "'")
    return lower.strip("'") or lower


def word_forms(words: Sequence[str]) -> list[str]:
    """What each word looks like: ``verb`` by its ending, ``modifier n`` before a noun, ``noun``, or a class.

    n counts the words from there to the noun. A guess, good for choosing between replacements that are
    otherwise as good as each other.
    """
    forms: list[str] = []
    to_noun: int | None = None  # words from here to the noun that follows, where one does
    for word in reversed(words):
        kind = word_class(word)
        if kind == "content":
            normal = _normal(word)
            if len(normal) >= _SHORTEST_VERB and normal.endswith(_VERB_ENDINGS) and normal not in _NO_VERBS:
                kind, to_noun = "verb", None
            else:
                to_noun = 0 if to_noun is None else to_noun + 1
                kind = f"modifier {to_noun}" if to_noun else "noun"
        elif kind != "punctuation":  # the comma in "a big, red dog" ends nothing
            to_noun = None
        forms.append(kind)
    return forms[::-1]
