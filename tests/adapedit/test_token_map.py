"""The token map: where the source's attention goes on the target's tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapedit.alignment import align
from tests.helpers.tokenizers import small_clip_tokenizer

WORDS = ["a", "red", "zebra", "elephant", "dog", "standing", "sitting", "on", "and", ",", "Dog"]
PROMPTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


def aligned(source: str, target: str, max_length: int = 77):
    return align(source, target, small_clip_tokenizer(), max_length=max_length)


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
