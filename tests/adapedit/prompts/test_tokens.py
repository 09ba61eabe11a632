"""Words of a prompt and their tokens."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapedit.prompts.tokens import framed_ids, settled, tokenize_words, word_spans
from adapedit_kernels.errors import AdapEditError
from tests.helpers.tokenizers import small_clip_tokenizer

PROMPTS = (
    "a red dog standing on the grass",
    "A Red DOG, standing on the grass!",
    "the dog's well-known hat isn't 3.5 metres wide",
    "  two\tdogs\nand   a cat  ",
    "a dog and a dog and a dog",
    'a sign that says "no dogs", $5.00 (really?!)',
    "oil painting,trending,4k,--ar 16:9",
    "zebra",
    "rock'n'roll & blues; o'brien's",
)


def texts(prompt: str) -> list[str]:
    return [prompt[start:stop] for start, stop in word_spans(prompt)]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red dog", ["a", "red", "dog"]),
        ("A dog, standing.", ["A", "dog", ",", "standing", "."]),
        ("the dog's hat", ["the", "dog's", "hat"]),
        ("the dogs' hats", ["the", "dogs", "'", "hats"]),
        ("a well-known 19th-century house", ["a", "well-known", "19th-century", "house"]),
        ("3.5 kg, 1,000 dogs at 16:9.", ["3.5", "kg", ",", "1,000", "dogs", "at", "16:9", "."]),
        ("photo,photo", ["photo", ",", "photo"]),
        ("e.g. end.Next", ["e", ".", "g", ".", "end", ".", "Next"]),
        ("a -dog- --v 5", ["a", "-", "dog", "-", "--", "v", "5"]),
        ("wow!!! (really?!)", ["wow", "!!!", "(", "really", "?!)"]),
        ("a 🐶 and a ❤️", ["a", "🐶", "and", "a", "❤️"]),
        ("cafe\u0301 naïve", ["cafe\u0301", "naïve"]),
        ("\u0301 dog", ["\u0301", "dog"]),
        ("一只猫, 10只", ["一", "只", "猫", ",", "10", "只"]),
        ("これはペンです", ["こ", "れ", "は", "ペン", "で", "す"]),
        ("แมวดำ", list("แมวดำ")),
        ("  \t\n ", []),
        ("", []),
    ],
)
def test_words_are_split(prompt, words):
    assert texts(prompt) == words


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_spans_cover_all_but_the_space(prompt):
    spans = word_spans(prompt)
    assert all(start < stop for start, stop in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    inside = {place for start, stop in spans for place in range(start, stop)}
    assert inside == {place for place, character in enumerate(prompt) if not character.isspace()}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_of_words_are_those_that_the_tokenizer_says(prompt):
    # The tokenizer's own offsets, which the function does not use, are the second opinion.
    tokenizer = small_clip_tokenizer()
    encoded = tokenizer(prompt, padding="max_length", max_length=77, return_offsets_mapping=True)
    result = tokenize_words(prompt, tokenizer)
    assert list(result.input_ids) == encoded["input_ids"]
    assert [place for places in result.positions for place in places] == list(range(1, result.ends[0]))
    assert result.input_ids[result.ends[0]] == tokenizer.eos_token_id
    begin = 0
    for text, places in zip(result.texts, result.positions, strict=True):
        begin = prompt.index(text, begin)
        offsets = [encoded["offset_mapping"][place] for place in places]
        assert (offsets[0][0], offsets[-1][1]) == (begin, begin + len(text))
        begin += len(text)


def test_words_may_be_several_tokens():
    result = tokenize_words("a zebra standing", small_clip_tokenizer())
    assert result.texts == ("a", "zebra", "standing")
    assert [len(places) for places in result.positions] == [1, 5, 1]


def test_words_that_share_a_token_are_one_word():
    # CLIP's rule for "it's" reads the quote of 'standing' as the start of 's.
    tokenizer = small_clip_tokenizer(more_merges=(("'", "s</w>"),))
    result = tokenize_words("a dog 'standing' here", tokenizer)
    assert result.texts == ("a", "dog", "'standing", "'", "here")


def with_added(*tokens: str):
    tokenizer = copy.deepcopy(small_clip_tokenizer())
    tokenizer.add_tokens(list(tokens))
    return tokenizer


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a <cat-toy>, red", ["a", "<cat-toy>", ",", "red"]),
        ("(<cat-toy>)", ["(", "<cat-toy>", ")"]),
        ("a<cat-toy>red", ["a", "<cat-toy>", "red"]),
        ("A <Cat-Toy>!", ["A", "<Cat-Toy>", "!"]),
        ("<cat-toy><cat-toy>", ["<cat-toy>", "<cat-toy>"]),
        ("sks dog", ["sks", "dog"]),
    ],
)
def test_a_placeholder_is_a_word_whatever_stands_beside_it(prompt, words):
    tokenizer = with_added("<cat-toy>", "sks")
    result = tokenize_words(prompt, tokenizer)
    assert list(result.texts) == words
    assert list(result.input_ids) == tokenizer(prompt, padding="max_length", max_length=77)["input_ids"]
    placeholders = [places for text, places in zip(words, result.positions, strict=True) if "<" in text]
    assert all(len(places) == 1 for places in placeholders)


def test_a_placeholder_of_several_vectors_is_one_word_of_several_tokens():
    tokenizer = with_added("<toy>", "<toy>_1", "<toy>_2", "<hat>")
    result = tokenize_words("a <toy>, <hat>", tokenizer)
    assert result.texts == ("a", "<toy>", ",", "<hat>")
    assert result.positions == ((1,), (2, 3, 4), (5,), (6,))
    # As diffusers writes it out: the prompt that its loader makes of it.
    written = tokenizer("a <toy> <toy>_1 <toy>_2, <hat>", padding="max_length", max_length=77)
    assert list(result.input_ids) == written["input_ids"]
    with pytest.raises(AdapEditError, match="has 8 tokens, .* takes 7: shorten it by 1, or"):
        tokenize_words("a <toy>, <hat>", tokenizer, max_length=7)


@pytest.mark.parametrize(
    "prompt", ["a 🐶🐱 on grass", "一只猫在草地上", "cafe\u0301, x\u0301!", "İstanbul’s ǅ ﬁ"]
)
def test_letters_of_several_bytes_have_all_their_tokens(prompt):
    tokenizer = small_clip_tokenizer(all_bytes=True)
    result = tokenize_words(prompt, tokenizer)
    assert list(result.input_ids) == tokenizer(prompt, padding="max_length", max_length=77)["input_ids"]
    assert [place for places in result.positions for place in places] == list(range(1, result.ends[0]))
    assert list(result.texts) == texts(prompt)


def test_padding_may_be_a_token_of_its_own():
    # Stable Diffusion 2 pads with "!", Stable Diffusion 1 with the end token.
    tokenizer = small_clip_tokenizer(max_length=8, pad_token="<pad>")
    result = tokenize_words("a dog", tokenizer)
    assert result.input_ids[result.ends[0] :] == (tokenizer.eos_token_id, *[tokenizer.pad_token_id] * 4)


def test_the_longest_prompt_is_taken_and_one_token_more_is_refused():
    tokenizer = small_clip_tokenizer()
    result = tokenize_words("dog " * 75, tokenizer)
    assert (len(result.texts), result.ends[0], len(result.input_ids)) == (75, 76, 77)
    message = r"the target prompt has 78 tokens, start .* takes 77: shorten it by 1, or give .*=2$"
    with pytest.raises(AdapEditError, match=message):
        tokenize_words("dog " * 76, tokenizer, name="target prompt")
    with pytest.raises(AdapEditError, match=r"has 5 tokens, .* takes 4: shorten it by 1, or"):
        tokenize_words("a red dog", tokenizer, max_length=4)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty; describe"),
        (" \n ", "the prompt is empty; describe"),
        (None, "the prompt is of type NoneType; give a string"),
        (["a dog"], "the prompt is of type list; give a string"),
        ("a \ud83d dog", r"the prompt has half a character, '\ud83d': write it whole or leave it out"),
        ("a café", "the model does not know 'café' in the prompt; use another word"),
        ("a <|endoftext|> dog", "the model does not know '<|endoftext|>' in the prompt"),
    ],
)
def test_bad_prompts_are_refused(prompt, message):
    with pytest.raises(AdapEditError) as caught:
        tokenize_words(prompt, small_clip_tokenizer())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class OddTokenizer:
    """The small tokenizer with one habit changed; `ids` is a change of the tokens and their places."""

    def __init__(self, **habits):
        self._inner = small_clip_tokenizer()
        self._habits = habits

    def __getattr__(self, name):
        return self._habits.get(name, getattr(self._inner, name))

    def __call__(self, text, **options):
        made = self._inner(text, **options)
        pairs = self._habits.get("ids", list)(zip(made["input_ids"], made["offset_mapping"], strict=True))
        return dict(zip(("input_ids", "offset_mapping"), zip(*pairs, strict=True), strict=True))


def test_a_tokenizer_without_a_limit_needs_one():
    tokenizer = OddTokenizer(model_max_length=int(1e30))
    with pytest.raises(AdapEditError, match="give max_length"):
        tokenize_words("a dog", tokenizer)
    assert len(tokenize_words("a dog", tokenizer, max_length=16).input_ids) == 16


def test_a_tokenizer_with_another_frame_is_refused():
    for habit in (
        {"ids": lambda ids: list(ids)[:-1]},
        {"ids": lambda ids: list(ids)[1:]},
        {"padding_side": "left"},
        {"pad_token_id": None},
    ):
        with pytest.raises(
            AdapEditError, match="OddTokenizer does not frame a prompt as start, text, end, padding"
        ):
            tokenize_words("a dog", OddTokenizer(**habit))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "<pad>"])
def test_padding_is_what_the_tokenizer_pads_with(side, pad_token):
    tokenizer = copy.deepcopy(small_clip_tokenizer(pad_token=pad_token))
    tokenizer.padding_side = side
    for text in ("", "a red zebra"):
        padded = tokenizer(text, padding="max_length", max_length=77)["input_ids"]
        assert framed_ids(text, tokenizer, 77) == padded and len(padded) == 77


def test_a_tokenizer_that_tells_no_places_is_refused():
    with pytest.raises(AdapEditError, match="OddTokenizer does not tell the places of its tokens; use"):
        tokenize_words("a dog", OddTokenizer(is_fast=False))


def test_a_tokenizer_without_padding_is_refused():
    with pytest.raises(AdapEditError, match="OddTokenizer has no padding token; use"):
        framed_ids("", OddTokenizer(pad_token_id=None), 77)


def test_nothing_of_a_tokenizer_changes_once_it_is_settled(monkeypatch):
    """Threads share it: neither its padding nor how it cuts may be set while another one uses it."""
    tokenizer = copy.deepcopy(small_clip_tokenizer())
    tokenizer("a dog", padding="max_length", max_length=20, truncation=True)
    assert settled(tokenizer) is tokenizer
    backend = WatchedBackend(tokenizer.backend_tokenizer)
    monkeypatch.setattr(tokenizer, "_tokenizer", backend)
    tokenize_words("a red dog, standing", tokenizer)
    framed_ids("", tokenizer, 77)
    assert backend.calls and not [name for name in backend.calls if name.startswith(("enable_", "no_"))]


class WatchedBackend:
    """A fast tokenizer's own inside, and what is called there."""

    def __init__(self, inner):
        self._inner, self.calls = inner, []

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if callable(found):
            self.calls.append(name)
        return found


def test_a_word_without_tokens_is_refused():
    dog = small_clip_tokenizer().vocab["dog</w>"]
    tokenizer = OddTokenizer(ids=lambda ids: [pair for pair in ids if pair[0] != dog])
    with pytest.raises(AdapEditError, match="makes no token of 'dog' in the prompt; leave it out"):
        tokenize_words("a dog here", tokenizer)
