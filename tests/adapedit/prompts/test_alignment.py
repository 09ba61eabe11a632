"""What an edit is about, and which token of the target is which of the source."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapedit.prompts.alignment import align, prompt_warnings
from adapedit.prompts.matching import same_word, word_class
from adapedit_kernels.errors import AdapEditError
from tests.helpers.tokenizers import small_clip_tokenizer

CASES = Path(__file__).parents[2] / "data" / "prompts.jsonl"
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


def aligned(source: str, target: str, max_length: int = 77):
    return align(source, target, small_clip_tokenizer(), max_length=max_length)


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
    expected = [-1] * 77
    for word in result.target_words:
        for token in word.tokens:
            expected[token] = word.index
    assert result.word_of_token.tolist() == expected
    assert result.word_of_token.dtype == torch.int64
    for token, index in enumerate(result.word_of_token.tolist()):
        word = result.target_words[index] if index >= 0 else None
        assert result.own_weight[token].item() == (word is not None and word.kind == "inserted")
        assert result.key_tokens[token].item() == (word is not None and word.is_key)
    assert result.key_tokens.dtype == torch.bool


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


def test_find_tells_repeated_words_apart():
    result = aligned("a cat", "a red dog and a blue Dog")
    first, second = result.find("dog")
    assert (first.tokens, second.tokens) == ((3,), (second.tokens[0],))
    assert first.index < second.index
    assert result.find("DOG", 2) == (second,)
    third = aligned("a dog", "a dog, a cat and a bird").find("a", 3)
    assert [word.index for word in third] == [6]
    for data in (result, first):
        with pytest.raises(AttributeError):
            data.anchor = data.own_weight = None
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
        (
            "dog " * 80,
            "a dog",
            "the source prompt has 82 tokens, .* takes 77: shorten it by 5, or give max_embeddings_multiples=2$",
        ),
        ("a dog", "un café", "the model does not know 'café' in the target prompt"),
    ],
)
def test_errors_name_the_prompt(source, target, message):
    with pytest.raises(AdapEditError, match=message):
        aligned(source, target)


# The token map: where the source's attention goes on the target's tokens

WORDS = ["a", "red", "zebra", "elephant", "dog", "standing", "sitting", "on", "and", ",", "Dog"]
PROMPTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(PROMPTS, PROMPTS)
def test_remapped_attention_is_a_distribution(source, target):
    result = aligned(source, target)
    assert result.token_map.dtype == torch.float32
    assert (result.token_map >= 0).all()
    torch.testing.assert_close(result.token_map.sum(dim=1), torch.ones(77))
    has_counterpart = result.token_map.sum(dim=0) > 0
    assert torch.equal(has_counterpart, result.own_weight == 0)


@settings(max_examples=50, deadline=None)
@given(PROMPTS)
def test_identical_prompts_give_the_identity(prompt):
    result = aligned(prompt, prompt)
    assert torch.equal(result.token_map, torch.eye(77))
    assert not result.own_weight.any()
    assert not result.key_tokens.any()
    assert not result.anchor_tokens.any()


@settings(max_examples=50, deadline=None)
@given(PROMPTS, PROMPTS)
def test_a_kept_word_of_as_many_tokens_keeps_its_attention(source, target):
    result = aligned(source, target)
    attention = torch.rand(3, 77)
    remapped = attention @ result.token_map
    for word in result.target_words:
        if word.kind == "kept":
            old = result.source_words[word.counterpart]
            torch.testing.assert_close(remapped[:, list(word.tokens)], attention[:, list(old.tokens)])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a dog standing on the grass", "a dog sitting on the grass"),
        ("a zebra on the grass", "a dog on the grass"),
        ("a dog and a dog", "a dog and an elephant"),
        ("a red elephant and a zebra", "a blue zebra and a dog"),
    ],
)
def test_replacements_are_those_of_prompt_to_prompt(source, target):
    # Its replacement mapper for prompts of as many words, written down plainly: token by token where a word
    # has as many as its counterpart, else evenly; after the last word place by place.
    tokenizer = small_clip_tokenizer()
    expected = torch.zeros(77, 77)
    expected[0, 0] = 1
    i = j = 1
    for old, new in zip(source.split(), target.split(), strict=True):
        m = len(tokenizer(old, add_special_tokens=False)["input_ids"])
        n = len(tokenizer(new, add_special_tokens=False)["input_ids"])
        if m == n:
            expected[i : i + m, j : j + n] = torch.eye(m)
        else:
            expected[i : i + m, j : j + n] = 1 / n
        i, j = i + m, j + n
    last = 77 - max(i, j) - 1
    for place in range(last):
        expected[i + place, j + place] = 1
    result = aligned(source, target)
    rest = result.token_map.clone()
    rest[i + last :, j + last :] = 0
    torch.testing.assert_close(rest, expected)
    # What is over at the end of the longer padding is not lost.
    assert result.token_map[i + last :, j + last :].sum().item() == pytest.approx(77 - i - last)


def test_a_word_of_several_tokens_shares_its_attention_evenly():
    result = aligned("a zebra", "a elephant")
    old, new = result.source_words[1].tokens, result.target_words[1].tokens
    assert (len(old), len(new)) == (5, 7)
    block = result.token_map[list(old)][:, list(new)]
    torch.testing.assert_close(block, torch.full((5, 7), 1 / 7))


def test_longer_padding_is_shared_and_shorter_padding_takes_the_rest():
    shorter = aligned("a red dog", "a dog", max_length=8)  # padding: 3 tokens, then 4
    assert shorter.token_map[4:, 3:].tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0.5, 0.5],
    ]
    longer = aligned("a dog", "a red dog", max_length=8)
    assert longer.token_map[3:, 4:].tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
    ]


def test_a_prompt_without_padding_uses_its_end_token():
    full = "dog " * 6
    result = aligned("a dog", full, max_length=8)
    assert result.token_map[3:, 7].tolist() == [1, 1, 1, 1, 1]
    result = aligned(full, "a dog", max_length=8)
    torch.testing.assert_close(result.token_map[7, 3:], torch.full((5,), 0.2))


def test_a_deleted_words_attention_goes_to_the_start_token():
    result = aligned("a small red dog", "a red dog")
    assert result.key_words == ()
    assert result.token_map[2].nonzero().tolist() == [[0]]
    assert result.token_map[2, 0] == 1
    assert result.token_map[:, 0].sum() == 2


# Pairs of prompts with their right answers


def numbered(words) -> list[str]:
    """Texts of words; the second one of a text is `text (second)`."""
    seen: list[str] = []
    names = []
    for word in words:
        count = seen.count(word.text)
        seen.append(word.text)
        names.append(word.text if not count else f"{word.text} ({('second', 'third', 'fourth')[count - 1]})")
    return names


@pytest.mark.parametrize(
    "case", [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()], ids=str
)
def test_pairs_are_aligned_as_people_would(case):
    tokenizer = small_clip_tokenizer(all_bytes=True)
    found = align(case["source"], case["target"], tokenizer, max_length=200)
    old, new = numbered(found.source_words), numbered(found.target_words)

    def shown(text: str) -> bool:
        return word_class(text) != "punctuation"

    replaced = [
        [old[word.counterpart], new[word.index]]
        for word in found.target_words
        if word.kind == "replaced" and shown(word.text)
    ]
    inserted = [new[w.index] for w in found.target_words if w.kind == "inserted" and shown(w.text)]
    deleted = [old[w.index] for w in found.source_words if w.kind == "deleted" and shown(w.text)]

    def same(one: list[str], other: list[str]) -> bool:
        """A place that a case does not name may be any; `last` is the last."""
        last = {"no (last)": "no (fourth)"}
        return len(one) == len(other) and all(
            b in (a, a.partition(" (")[0]) for a, b in zip(one, (last.get(b, b) for b in other), strict=True)
        )

    assert same([text for pair in replaced for text in pair], [t for pair in case["replaced"] for t in pair])
    assert same(inserted, case["inserted"]) and same(deleted, case["deleted"])
    neutral = {"a", "the", "an", "and"}
    wanted = [t for t in [*(pair[1] for pair in case["replaced"]), *case["inserted"]] if t not in neutral]
    assert {word.text for word in found.key_words} == {text.partition(" (")[0] for text in wanted}


# What looks like a slip


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("a red dog", "a red dog", "there is nothing to change"),
        ("a red dog", "A red dog!", "there is nothing to change"),
        (
            "a cat",
            "a (dog:1.3)",
            "'(dog:1.3)' in the target prompt is read as words, not as a weight: write 'dog'",
        ),
        ("a cat", "a (big dog:1.3), red", "equalizer={'big dog': 1.3}"),
        ("a cat++", "a dog", "'cat++' in the source prompt is read as words"),
        ("a cat", "a dog--", "'dog--' in the target prompt"),
        ("a cat", "a ((dog)) here", "write 'dog'"),
        ("a cat", "a (red dog)+ here", "write 'red dog'"),
        ("a (cat:1.2)", "a (dog:1.3)", "'(cat:1.2)' in the source prompt"),
    ],
)
def test_slips_are_said_once(source, target, said):
    (found,) = prompt_warnings(aligned(source, target))
    assert said in found and "\n" not in found


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a dog", "a cat"),
        ("a red dog", "a dog"),
        ("a dog", "a dog (with a hat)"),
        ("a clock at 10:30", "a clock at 7:05 (10:30)"),
        ("a well-known cat - red", "a well-known dog - red, --ar 16:9"),
        ("1 + 1", "1 + 2"),
    ],
)
def test_what_is_no_slip(source, target):
    assert prompt_warnings(aligned(source, target)) == ()


def test_equal_prompts_are_no_slip_where_more_than_words_changes():
    assert prompt_warnings(aligned("a red dog", "a red dog"), changes_more=True) == ()


# Whatever people write

ANYTHING = st.lists(
    st.text(max_size=8)
    | st.sampled_from(
        [*WORDS, "<toy>", "<TOY>", "<hat>,", "(cat:1.3)", "e\u0301", "İ", "ǅ", "🐶\ufe0f", "一只", "ำ"]
    )
    | st.sampled_from(
        ["<|endoftext|>", "<|startoftext|>", "<toy>_1", "\x00", "\u2028", "\x1c", "'s", "--", "\ud83d"]
    )
    | st.characters(),
    max_size=12,
).flatmap(lambda parts: st.sampled_from([" ", "", "\n"]).map(lambda space: space.join(parts)))


@lru_cache
def any_tokenizer():
    tokenizer = copy.deepcopy(small_clip_tokenizer(all_bytes=True))
    tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<hat>"])
    return tokenizer


def aligns_or_refuses(source: str, target: str) -> None:
    try:
        found = align(source, target, any_tokenizer(), max_length=120)
    except AdapEditError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return
    torch.testing.assert_close(found.token_map.sum(dim=1), torch.ones(120))
    assert all(len(message.splitlines()) == 1 for message in prompt_warnings(found))
    for prompt, words in ((source, found.source_words), (target, found.target_words)):
        places = [place for word in words for place in word.tokens]
        assert places == list(range(1, len(places) + 1))
        begin = 0
        for word in words:
            begin = prompt.index(word.text, begin) + len(word.text)
            assert "<toy>" not in word.text or word.text in ("<toy>", "<toy>_1")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ANYTHING, ANYTHING)
def test_any_two_texts_are_aligned_or_refused(source, target):
    aligns_or_refuses(source, target)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, derandomize=True)
@given(ANYTHING, ANYTHING)
def test_many_more_texts_are_aligned_or_refused(source, target):
    aligns_or_refuses(source, target)


def test_a_deleted_word_goes_to_the_start_of_its_own_chunk():
    tokenizer = small_clip_tokenizer(max_length=10)
    found = align("a dog on the grass and a red cat", "a dog on the grass and a cat", tokenizer, chunks=3)
    red = found.source_words[7]
    assert red.kind == "deleted" and red.tokens[0] // 10 == 1
    assert found.token_map[red.tokens[0]].nonzero().flatten().tolist() == [10]
