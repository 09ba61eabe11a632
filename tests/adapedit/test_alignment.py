"""What an edit is about, and which token of the target is which of the source."""

from __future__ import annotations

import pytest
import torch

from adapedit.alignment import align
from adapedit.matching import same_word
from adapedit_kernels.errors import AdapEditError
from tests.helpers.tokenizers import small_clip_tokenizer

# Real sentences: repeated words, words of several tokens, punctuation, capitals, insertions, deletions.
PAIRS = (
    ("a dog standing", "a small dog sitting"),
    ("A photo of a house on a mountain.", "A photo of a house on a mountain at fall."),
    ("a cat sitting next to a mirror", "a silver cat sculpture sitting next to a mirror"),
    ("Photo of a Cat riding on a bicycle", "photo of a dog riding on a motorcycle!"),
    ("a small, red dog and a small blue bird", "a red dog and a big bird, a bird"),
    ("children drawing of a castle next to a river", "a castle next to a river"),
    ("two dogs and an elephant", "a zebra"),
    ("'standing' dog", "standing dog"),
    ("the dog's bone", "a well-known cat's bone, 3.5 kg"),
)


def aligned(source: str, target: str):
    return align(source, target, small_clip_tokenizer())


def kinds(words) -> list[tuple[str, str]]:
    return [(word.text, word.kind) for word in words]


def test_the_words_say_what_became_of_them():
    result = aligned("a red dog standing", "a small dog sitting on grass")
    assert kinds(result.source_words) == [
        ("a", "kept"),
        ("red", "replaced"),
        ("dog", "kept"),
        ("standing", "replaced"),
    ]
    assert kinds(result.target_words) == [
        ("a", "kept"),
        ("small", "replaced"),
        ("dog", "kept"),
        ("sitting", "replaced"),
        ("on", "inserted"),
        ("grass", "inserted"),
    ]
    assert [word.counterpart for word in result.target_words] == [0, 1, 2, 3, None, None]
    assert [word.text for word in result.key_words] == ["small", "sitting", "on", "grass"]
    assert result.deleted_words == ()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_counterparts_are_mutual(source, target):
    result = aligned(source, target)
    for here, there in (
        (result.source_words, result.target_words),
        (result.target_words, result.source_words),
    ):
        for place, word in enumerate(here):
            assert word.index == place
            assert (word.counterpart is None) == (word.kind in {"inserted", "deleted"})
            if word.counterpart is not None:
                other = there[word.counterpart]
                assert (other.counterpart, other.kind) == (place, word.kind)
                assert same_word(word.text, other.text) == (word.kind == "kept")


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_tensors_say_what_the_words_say(source, target):
    result = aligned(source, target)
    tokenizer = small_clip_tokenizer()
    for prompt, ids in ((source, result.source_input_ids), (target, result.target_input_ids)):
        assert ids.tolist() == tokenizer(prompt, padding="max_length", max_length=77)["input_ids"]
        assert ids.dtype == torch.int64
    for words, table in (
        (result.source_words, result.source_word_of_token),
        (result.target_words, result.word_of_token),
    ):
        expected = [-1] * 77
        for word in words:
            for token in word.tokens:
                expected[token] = word.index
        assert table.tolist() == expected
        assert table.dtype == torch.int64
    for token, index in enumerate(result.word_of_token.tolist()):
        word = result.target_words[index] if index >= 0 else None
        assert result.own_weight[token].item() == (word is not None and word.kind == "inserted")
        assert result.key_tokens[token].item() == (word is not None and word.is_key)
        assert result.kept_tokens[token].item() == (word is not None and word.kind == "kept")
    assert result.key_tokens.dtype == result.kept_tokens.dtype == torch.bool


def test_small_words_and_punctuation_are_never_key_words():
    result = aligned("a dog", "the dog, and a bird is on grass.")
    assert [word.text for word in result.key_words] == ["bird", "on", "grass"]
    assert result.target_words[0].kind == "kept"  # one article is as good as another
    assert aligned("a dog standing.", "A dog standing!").key_words == ()


def test_case_is_no_change():
    result = aligned("A Red DOG", "a red dog")
    assert torch.equal(result.token_map, torch.eye(77))
    assert {word.kind for word in result.target_words} == {"kept"}


# Deletions


@pytest.mark.parametrize(
    ("source", "target", "anchor"),
    [
        ("a small red dog", "a red dog", "dog"),
        ("a small, red dog on the grass", "a dog on the grass", "dog"),
        ("a dog sitting on the grass", "a dog on the grass", "dog"),
        ("a dog with a hat on the grass", "a dog on the grass", "dog"),
        ("children drawing of a castle", "a castle", "castle"),
        ("a dog, sitting", "a dog", "dog"),
        ("a dog sitting, grass", "a dog, grass", "dog"),
        ("a dog and a small bird", "a dog and a bird", "bird"),
    ],
)
def test_a_deleted_word_names_what_it_belonged_to(source, target, anchor):
    result = aligned(source, target)
    texts = {result.target_words[w.anchor].text for w in result.deleted_words if w.anchor is not None}
    assert texts == {anchor}
    expected = result.token_mask(result.find(anchor))
    assert torch.equal(result.anchor_tokens, expected)


def test_a_deleted_comma_belonged_to_nothing():
    result = aligned("a dog, sitting", "a dog sitting")
    assert [word.anchor for word in result.deleted_words] == [None]
    assert not result.anchor_tokens.any()


# Variants, selection, errors


def test_released_variant_gives_no_key_word_a_counterpart():
    result = aligned("a dog standing", "a small dog sitting, here")
    released = result.as_variant("released")
    small, sitting, comma, here = (result.find(text)[0] for text in ("small", "sitting", ",", "here"))
    assert torch.equal(result.own_weight > 0, result.token_mask([small, comma, here]))
    assert torch.equal(released.own_weight > 0, result.token_mask([small, sitting, comma, here]))
    assert torch.equal(released.token_map, result.token_map)
    assert result.as_variant("paper") is result
    with pytest.raises(AdapEditError, match="variant is 'code'; use 'paper' or 'released'"):
        result.as_variant("code")


def test_find_tells_repeated_words_apart():
    result = aligned("a cat", "a red dog and a blue Dog")
    first, second = result.find("dog")
    assert (first.tokens, second.tokens) == ((3,), (second.tokens[0],))
    assert first.index < second.index
    assert result.find("DOG", 2) == (second,)
    assert [word.text for word in result.find("cat", prompt="source")] == ["cat"]


@pytest.mark.parametrize(
    ("text", "occurrence", "message"),
    [
        ("bird", None, "the target prompt has no word 'bird'; its words are: a, dog, and, a, dog$"),
        (
            "dog",
            3,
            "has 'dog' 2 times, and occurrence 3 was asked for; count from 1 in: a, dog, and, a, dog$",
        ),
        ("dog", 0, "occurrence 0 was asked for; count from 1"),
        ("", None, "has no word ''"),
    ],
)
def test_find_lists_the_words(text, occurrence, message):
    with pytest.raises(AdapEditError, match=message):
        aligned("a cat", "a dog and a dog").find(text, occurrence)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("", "a dog", "the source prompt is empty"),
        ("a dog", " ", "the target prompt is empty"),
        ("dog " * 80, "a dog", "the source prompt has 82 tokens, .* takes 77: shorten it by 5$"),
        ("a dog", "un café", "the model does not know 'café' in the target prompt"),
    ],
)
def test_errors_name_the_prompt(source, target, message):
    with pytest.raises(AdapEditError, match=message):
        aligned(source, target)
