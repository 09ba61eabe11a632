"""Prompt-to-Prompt's maps at every step, against its authors' formulas written out once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit import AdapEditError
from adapedit.methods import make_settings
from adapedit.methods.prompt_to_prompt import refinement_maps, replacement_map
from tests.helpers.edits import LONGER, SOURCE, STEPS, TARGET, grey_levels, request
from tests.helpers.methods import context_of, edited_maps, inputs_at, plan_of
from tests.helpers.tiny_model import TOKENS

METHOD = "prompt-to-prompt"
SEVERAL = "a red zebra standing on the grass"  # a word of several tokens


def tokens_of(words: Any) -> list[int]:
    return [token for word in words for token in word.tokens]


def common_tokens(source: list[int], target: list[int]) -> dict[int, int]:
    """Places in the target of the longest sequence of tokens in both, and in the source: by recursion from the end.

    Of a token that either prompt has in excess the target's goes first.
    """
    known: dict[tuple[int, int], int] = {}

    def longest(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if (i, j) not in known:
            match = longest(i - 1, j - 1) + 1 if source[i - 1] == target[j - 1] else 0
            known[i, j] = max(match, longest(i, j - 1), longest(i - 1, j))
        return known[i, j]

    found, i, j = {}, len(source), len(target)
    while i and j:
        if longest(i, j) == longest(i, j - 1):
            j -= 1
        elif longest(i, j) == longest(i - 1, j):
            i -= 1
        else:
            i, j = i - 1, j - 1
            found[j] = i
    return found


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (SOURCE, LONGER),
        (LONGER, SOURCE),
        (SOURCE, TARGET),
        (SOURCE, "a dog and a red dog on the grass"),
        ("a dog and a red dog on the grass", "a dog"),
        (SOURCE, SEVERAL),
        ("a cat", "two dogs walking in the park"),
    ],
)
def test_refinement_keeps_new_tokens_maps_the_others_one_to_one_and_drops_what_is_deleted(
    pipe, source, target
):
    context, _ = context_of(pipe, request(source, target))
    alignment = context.alignment
    ids = [alignment.source_input_ids.tolist(), alignment.target_input_ids.tolist()]
    ends = [max(tokens_of(words)) + 2 for words in (alignment.source_words, alignment.target_words)]
    places = common_tokens(ids[0][: ends[0]], ids[1][: ends[1]])
    token_map, own = refinement_maps(alignment)
    for token in range(TOKENS):
        column = torch.zeros(TOKENS)
        place = token if token >= ends[1] else places.get(token)
        if place is not None:
            column[place] = 1
        assert torch.equal(token_map[:, token], column) and float(own[token]) == (place is None)


def test_replacement_gives_a_word_what_it_replaces_and_the_rest_its_own_place(pipe):
    context, _ = context_of(pipe, request(SOURCE, TARGET))
    old, new = (
        tokens_of(word for word in words if word.text in ("standing", "sitting"))
        for words in (context.alignment.source_words, context.alignment.target_words)
    )
    token_map = replacement_map(context.alignment)
    if len(old) == len(new):
        assert torch.equal(token_map, torch.eye(TOKENS))
    else:
        assert (token_map[old][:, new] == 1 / len(new)).all()


def test_replacement_of_words_of_several_tokens_shares_them_and_takes_the_tail_by_the_targets_places(pipe):
    """As the authors' code does: behind the last change the map is that of the target's own place."""
    for source, target in ((SOURCE, SEVERAL), (SEVERAL, SOURCE)):
        context, _ = context_of(pipe, request(source, target))
        words = context.alignment.source_words, context.alignment.target_words
        old, new = (list(part[2].tokens) for part in words)  # dog, zebra
        assert len(old) != len(new)
        expected = torch.zeros(TOKENS, TOKENS)
        expected[: old[0], : old[0]] = torch.eye(old[0])
        for place in old:
            expected[place, new] = 1 / len(new)
        # Places that the source has fewer of are empty.
        for token in range(new[-1] + 1, TOKENS - max(0, len(old) - len(new))):
            expected[token, token] = 1
        assert torch.equal(replacement_map(context.alignment), expected)


def test_re_weighting_is_token_for_token(pipe):
    plan = plan_of(
        pipe, request(SOURCE, LONGER, method=METHOD, edit_type="reweight", equalizer={"small": -2})
    )
    factors = torch.ones(TOKENS)
    context, _ = context_of(pipe, request(SOURCE, LONGER))
    factors[tokens_of(context.alignment.find("small"))] = -2
    assert torch.equal(plan.cross_attention.token_map[1], torch.diag(factors))
    assert not plan.cross_attention.own_weight.any()


@pytest.mark.parametrize(
    ("target", "kind", "same_as"), [(TARGET, "auto", "replace"), (LONGER, "auto", "refine")]
)
def test_the_type_follows_from_the_number_of_words(pipe, target, kind, same_as):
    one, other = (
        plan_of(pipe, request(SOURCE, target, method=METHOD, edit_type=each)).cross_attention
        for each in (kind, same_as)
    )
    assert torch.equal(one.token_map, other.token_map) and torch.equal(one.own_weight, other.own_weight)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"edit_type": "replace"}, "wants prompts of as many words, got 7 and 8; use 'refine'"),
        ({"edit_type": "reweight"}, "wants an equalizer, such as"),
        ({"equalizer": ({"word": "dog", "value": 2, "occurrence": 2},)}, "has 'dog' 1 time"),
        ({"equalizer": {"cat": 2}}, "has no word 'cat'; its words are: a, small, red"),
    ],
)
def test_what_does_not_fit_the_prompts_is_refused(pipe, knobs, said):
    with pytest.raises(AdapEditError, match=said):
        plan_of(pipe, request(SOURCE, LONGER, method=METHOD, **knobs))


TWO = "a red dog and a small dog"


@pytest.mark.parametrize(
    ("source", "target", "knobs", "factors", "spans"),
    [
        (SOURCE, LONGER, {}, {}, {}),
        (SOURCE, TARGET, {}, {}, {}),
        (SOURCE, LONGER, {"equalizer": {"dog": 3}}, {"dog": [3]}, {}),
        # A new word, and ones that are to vanish or to turn into their opposite.
        (SOURCE, LONGER, {"equalizer": {"small": 4}}, {"small": [4]}, {}),
        (SOURCE, LONGER, {"equalizer": [("sitting", 0.5)]}, {"sitting": [0.5]}, {}),
        (SOURCE, LONGER, {"equalizer": {"small": 0}}, {"small": [0]}, {}),
        (SOURCE, LONGER, {"equalizer": {"small": -2, "dog": -1}}, {"small": [-2], "dog": [-1]}, {}),
        (SOURCE, LONGER, {"word_replace_steps": {"dog": 0.2}}, {}, {"dog": [(0, 0.2)]}),
        (SOURCE, TARGET, {"word_replace_steps": {"dog": (0.2, 0.8)}}, {}, {"dog": [(0.2, 0.8)]}),
        (
            "a red dog",
            TWO,
            {
                "equalizer": ({"word": "dog", "value": 2, "occurrence": 2}, {"word": "small", "value": 3}),
                "word_replace_steps": {"dog": 1, "small": 0},
            },
            {"dog": [1, 2], "small": [3]},
            {"dog": [(0, 1), (0, 1)], "small": [(0, 0)]},
        ),
    ],
)
def test_maps_are_those_of_the_authors(pipe, source, target, knobs, factors, spans):
    share = 0.6
    asked = request(source, target, method=METHOD, cross_replace_steps=share, **knobs)
    plan, (context, _) = plan_of(pipe, asked), context_of(pipe, asked)
    alignment = context.alignment
    factor, span = torch.ones(TOKENS), torch.tensor([0.0, share]).repeat(TOKENS, 1)
    for values, into in ((factors, factor), (spans, span)):
        for text, each in values.items():
            for word, value in zip(alignment.find(text), each, strict=True):
                into[list(word.tokens)] = torch.tensor(value, dtype=torch.float32)
    refined, own_weight = refinement_maps(alignment)
    if len(source.split()) == len(target.split()):
        refined, own_weight = replacement_map(alignment), torch.zeros(TOKENS)
    pixels = context.map_size[0] * context.map_size[1]
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(4, rows, TOKENS, generator=generator) for rows in (pixels, TOKENS))
    given = (query @ key.transpose(1, 2) / TOKENS**0.5).softmax(-1)
    own = given[3]
    replaced = (given[1] @ refined * (1 - own_weight) + own * own_weight) * factor
    for step in range(STEPS):
        held = ((span * STEPS + 1e-4).floor() <= step).float()
        expected = torch.where((held[:, 0] == 1) & (held[:, 1] == 0), replaced, own)
        edited = edited_maps(inputs_at(pipe, plan, step), query, key)[3]
        assert float((edited - expected).abs().max()) < 3e-6


def test_held_steps_are_rounded_down(coarse):
    """0.33 of 10 steps are 3."""
    plan = plan_of(
        coarse,
        request(method=METHOD, steps=10, cross_replace_steps=0.33, self_replace_steps=0.33),
    )
    for step, held in ((2, True), (3, False)):
        inputs = inputs_at(coarse, plan, step)
        assert bool((inputs["spatial_weight"][0] == 0).all()) == held
        assert (inputs["self_query_row"][:, 3] == 1).all() if held else True
        assert held or "self_query_row" not in inputs or (inputs["self_query_row"][:, 3] == 3).all()


def test_self_attention_is_the_source_s_from_and_to(coarse):
    plan = plan_of(coarse, request(method=METHOD, self_replace_steps=(0.2, 0.6)))
    assert plan.self_attention.query[1].unique(dim=0).tolist() == [[1, 3]]
    assert not plan.self_attention.key[0].any()


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"cross_replace_steps": {"default_": 0.8, "dog": 0.4}}, {"word_replace_steps": {"dog": 0.4}}),
        (
            {"cross_replace_steps": {"default_": 1.0, "dog": (0.0, 0.4)}},
            {"cross_replace_steps": 1.0, "word_replace_steps": {"dog": (0.0, 0.4)}},
        ),
        (
            {"cross_replace_steps": {"dog": 0.4}},
            {"cross_replace_steps": 1.0, "word_replace_steps": [("dog", 0.4)]},
        ),
    ],
)
def test_shares_by_word_as_the_authors_write_them(given, same):
    one, other = make_settings(METHOD, **given), make_settings(METHOD, **same)
    assert one == other and type(one).model_validate(one.model_dump(mode="json")) == one


def test_shares_by_word_in_two_knobs_are_refused():
    with pytest.raises(AdapEditError, match="names words, and so does word_replace_steps"):
        make_settings(METHOD, cross_replace_steps={"dog": 0.4}, word_replace_steps={"dog": 0.2})


@pytest.mark.parametrize("word", ["small", "sitting", "dog"])
def test_weights_are_seen_in_the_picture(pipe, word):
    plain, weighted = (
        pipe.edit_batch([request(SOURCE, LONGER, method=METHOD, equalizer=weights)])[0]
        for weights in ((), {word: 5})
    )
    assert grey_levels(plain.target_image, weighted.target_image) > 1
    assert grey_levels(plain.source_image, weighted.source_image) == 0
