"""Which words of two prompts belong together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapedit.prompts.matching import is_neutral, match_words, same_word, word_class, word_forms
from adapedit.prompts.tokens import word_spans


def described(source: str, target: str) -> str:
    """``[old→new]`` replaced, ``+new`` inserted, ``-old`` deleted, anything else kept."""
    old_words = [source[start:stop] for start, stop in word_spans(source)]
    new_words = [target[start:stop] for start, stop in word_spans(target)]
    parts = []
    for i, j in match_words(old_words, new_words):
        old, new = old_words[i] if i is not None else "", new_words[j] if j is not None else ""
        if old and new:
            parts.append(new if same_word(old, new) else f"[{old}→{new}]")
        else:
            parts.append(f"+{new}" if new else f"-{old}")
    return " ".join(parts)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        # one thing at a time
        ("a dog standing", "a dog standing", "a dog standing"),
        ("a dog standing", "a dog sitting", "a dog [standing→sitting]"),
        ("a dog", "a small dog", "a +small dog"),
        ("a small dog", "a dog", "a -small dog"),
        ("dog", "cat", "[dog→cat]"),
        # blocks of unequal lengths: like goes with like
        ("a dog standing", "a small dog sitting", "a +small dog [standing→sitting]"),
        ("a cat", "a big fluffy dog", "a +big +fluffy [cat→dog]"),
        ("a cat on the sofa", "a big, fluffy dog on the sofa", "a +big +, +fluffy [cat→dog] on the sofa"),
        ("a red dog", "a small blue dog", "a +small [red→blue] dog"),
        ("a small red dog on grass", "a blue cat on grass", "a -small [red→blue] [dog→cat] on grass"),
        ("a dog standing", "a dog sitting quietly on grass", "a dog [standing→sitting] +quietly +on +grass"),
        ("a dog standing on grass", "a cat on grass", "a [dog→cat] -standing on grass"),
        ("a dog with a hat", "a cat", "a [dog→cat] -with -a -hat"),
        ("two dogs", "three small dogs", "[two→three] +small dogs"),
        ("2 dogs", "two dogs", "[2→two] dogs"),
        # repeated words
        ("a dog and a cat", "a cat and a dog", "a [dog→cat] and a [cat→dog]"),
        ("a dog and a dog", "a dog and a cat", "a dog and a [dog→cat]"),
        ("a dog and a dog", "a dog", "a dog -and -a -dog"),
        ("a dog", "a dog and a dog", "a dog +and +a +dog"),
        ("a red dog and a red bird", "a red bird", "-a -red -dog -and a red bird"),
        ("a cat with a hat", "a hat", "-a -cat -with a hat"),
        ("a glass of milk and a glass of wine", "a glass of beer and a glass of wine",
         "a glass of [milk→beer] and a glass of wine"),
        # order
        ("a standing dog", "a dog sitting", "a -standing dog +sitting"),
        # small words stand for small words only
        ("on the grass", "in deep snow", "[on→in] -the +deep [grass→snow]"),
        ("a bird resting on ice", "a bird flying over ice", "a bird [resting→flying] [on→over] ice"),
        ("two dogs", "small dogs", "-two +small dogs"),
        # case, articles, punctuation, apostrophes, quotes
        ("A Dog Standing.", "a dog SITTING.", "a dog [Standing→SITTING] ."),
        ("a dog", "an elephant", "an [dog→elephant]"),
        ("a red dog, standing!", "a red dog standing", "a red dog -, standing -!"),
        ("a red dog, standing", "a red dog; standing", "a red dog [,→;] standing"),
        ("a dog’s bone", "a dog's bone", "a dog's bone"),
        ("a dog's bone", "a cat's bone", "a [dog's→cat's] bone"),
        ("a 🐶 on grass", "a 🐱 on grass", "a [🐶→🐱] on grass"),
        # sentences of the literature
        ("A photo of a house on a mountain.", "A photo of a house on a mountain at fall.",
         "A photo of a house on a mountain +at +fall ."),
        ("a cat sitting next to a mirror", "a silver cat sculpture sitting next to a mirror",
         "a +silver cat +sculpture sitting next to a mirror"),
        ("photo of a cat riding on a bicycle", "photo of a dog riding on a motorcycle",
         "photo of a [cat→dog] riding on a [bicycle→motorcycle]"),
        ("children drawing of a castle next to a river", "a castle next to a river",
         "-children -drawing -of a castle next to a river"),
        ("soup", "Pea soup", "+Pea soup"),
        ("The quick brown fox jumps over the lazy dog.", "The quick red fox leaps over a sleeping cat.",
         "The quick [brown→red] fox [jumps→leaps] over a [lazy→sleeping] [dog→cat] ."),
        ("a woman wearing a blue dress in a garden", "a woman wearing a long green dress and a hat in a city",
         "a woman wearing a +long [blue→green] dress +and +a +hat in a [garden→city]"),
        ("a man walking a dog in the park", "a woman walking a big dog in the snowy park at night",
         "a [man→woman] walking a +big dog in the +snowy park +at +night"),
        ("a castle on a hill", "a building on a hill", "a [castle→building] on a hill"),
        # another language: content words still pair up
        ("un perro rojo sentado", "un gato rojo saltando", "un [perro→gato] rojo [sentado→saltando]"),
    ],
)  # fmt: skip
def test_words_are_matched(source, target, expected):
    assert described(source, target) == expected


VOCABULARY = "a the red small dog cat standing sitting on in and grass , two".split()
SENTENCES = st.lists(st.sampled_from(VOCABULARY), max_size=8)


@settings(max_examples=200, deadline=None)
@given(SENTENCES, SENTENCES)
def test_every_word_is_in_one_pair_and_in_order(source, target):
    pairs = match_words(source, target)
    assert [i for i, _ in pairs if i is not None] == list(range(len(source)))
    assert [j for _, j in pairs if j is not None] == list(range(len(target)))
    assert (None, None) not in pairs
    for i, j in pairs:
        if i is not None and j is not None and not same_word(source[i], target[j]):
            assert word_class(source[i]) == word_class(target[j])


@settings(max_examples=100, deadline=None)
@given(SENTENCES)
def test_a_prompt_matches_itself_word_for_word(words):
    assert match_words(words, words) == tuple((place, place) for place in range(len(words)))


@settings(max_examples=100, deadline=None)
@given(SENTENCES, st.lists(st.sampled_from(["zebra", "purple"]), min_size=1, max_size=3), st.data())
def test_what_is_put_in_is_inserted_and_what_is_taken_out_deleted(words, extra, data):
    place = data.draw(st.integers(0, len(words)))
    longer = words[:place] + extra + words[place:]
    kept = [(i, i if i < place else i + len(extra)) for i in range(len(words))]
    assert [pair for pair in match_words(words, longer) if None not in pair] == kept
    assert [pair for pair in match_words(longer, words) if None not in pair] == [(j, i) for i, j in kept]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY), max_size=5), st.lists(st.sampled_from(VOCABULARY), max_size=5))
def test_no_way_is_better(source, target):
    # All ways tried one by one, against the costs as the module states them.
    forms = word_forms(source), word_forms(target)

    def step(i, j):
        if same_word(source[i], target[j]):
            return 0
        if word_class(source[i]) != word_class(target[j]):
            return None
        return 20 if forms[0][i] == forms[1][j] else 24

    def total(pairs):
        kept = [None not in pair and step(*pair) == 0 for pair in pairs]
        breaks = sum(one != other for one, other in zip([True, *kept], [*kept, True], strict=True))
        return breaks + sum(16 if None in pair else step(*pair) for pair in pairs)

    def ways(i, j):
        if i == len(source) and j == len(target):
            yield []
        if i < len(source):
            yield from ([(i, None), *rest] for rest in ways(i + 1, j))
        if j < len(target):
            yield from ([(None, j), *rest] for rest in ways(i, j + 1))
        if i < len(source) and j < len(target) and step(i, j) is not None:
            yield from ([(i, j), *rest] for rest in ways(i + 1, j + 1))

    assert total(match_words(source, target)) == min(total(way) for way in ways(0, 0))


def test_small_words_that_no_pixel_shows():
    assert [
        word for word in ("a", "The", ",", "!?", "and", "is", "on", "dog", "two", "🐶") if is_neutral(word)
    ] == [
        "a",
        "The",
        ",",
        "!?",
        "and",
        "is",
    ]


def test_forms_of_words():
    words = "a big , fluffy dog standing on red ground in spring".split()
    assert word_forms(words) == [
        "article",
        "modifier 2",
        "punctuation",
        "modifier 1",
        "noun",
        "verb",
        "preposition",
        "modifier 1",
        "noun",
        "preposition",
        "noun",
    ]
