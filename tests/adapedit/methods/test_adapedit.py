"""FWT, DPS and the edited maps as the methods plan them, against the slow second implementation, on random tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adapedit import AdapEditError, EditRequest
from adapedit.methods import make_settings
from adapedit.methods.adapedit import with_difference
from adapedit_engine.plan import EditOutcome, held_steps
from tests.helpers.edits import LONGER, SOURCE, STEPS, TARGET, grey_levels, request
from tests.helpers.methods import context_of, edited_maps, inputs_at, run
from tests.helpers.slow_reference import FlexibleWordTiming, edited_map, spatial_map
from tests.helpers.tiny_model import TOKENS

SEVERAL_TOKENS = "a red zebra standing on the grassland"
CHANNELS = 9
PAPER = {
    "alpha_tau": 0.03,
    "threshold_mode": "absolute",
    "normalise": "softmax",
    "temperature": 1,
    "centre": False,
}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def observed(pixels: int, seed: int) -> EditOutcome:
    """What the first pass could have seen: maps that sum to 1 over the tokens, features with a common part."""
    return EditOutcome(
        latents=torch.zeros(1),
        maps=(3 * random(1, pixels, TOKENS, seed=seed)).softmax(-1),
        features=random(1, pixels, CHANNELS, seed=seed + 7),
        last_features=random(1, pixels, CHANNELS, seed=seed + 1) + random(1, 1, CHANNELS, seed=seed + 2),
        steps=STEPS,
    )


def planned(pipe, target: str, seed: int = 0, **knobs: Any):
    """(context, what was seen, the plan, the findings) of AdapEdit in two passes with `knobs`."""
    context, method = context_of(pipe, request(SOURCE, target, two_pass=True, **knobs))
    seen = observed(context.map_size[0] * context.map_size[1], seed)
    plan = method.plan(context, seen)
    cross = plan.cross_attention
    pixels = torch.ones(2, context.map_size[0] * context.map_size[1])
    spatial = pixels if cross.spatial_map is None else cross.spatial_map
    found = method.findings(context, seen, replace(seen, word_steps=cross.word_steps, spatial_map=spatial))
    return context, seen, plan, found


def timing(context, seen, **knobs: Any) -> FlexibleWordTiming:
    words = context.alignment.target_words
    keys = [word.index for word in words if word.is_key]
    return FlexibleWordTiming(
        seen.maps[0].double().tolist(),
        seen.last_features[0].double().tolist(),
        [word.tokens for word in words],
        keys,
        **knobs,
    )


@pytest.mark.parametrize(
    ("knobs", "slow"),
    [
        ({}, {}),
        ({"lambda_tau": 0.4}, {"lambda_tau": 0.4}),
        ({"lambda_tau": 3.0}, {"lambda_tau": 3.0}),
        (PAPER, {"alpha": 0.03, "relative": False, "softmax": True, "temperature": 1, "centre": False}),
        ({"mask": False}, {"alpha": 0.0}),
        ({"variant": "released"}, {"alpha": 0.002, "relative": False, "centre": False, "released": True}),
    ],
    ids=("defaults", "less", "clamped", "paper's", "no mask", "released"),
)
@pytest.mark.parametrize("target", [TARGET, LONGER, SEVERAL_TOKENS])
def test_word_steps_and_spatial_map(pipe, target, knobs, slow):
    context, seen, plan, found = planned(pipe, target, seed=len(target), **knobs)
    expected, cross = timing(context, seen, **slow), plan.cross_attention
    for word in context.alignment.target_words:
        for token in word.tokens:
            assert float(cross.word_steps[1, token]) == pytest.approx(
                expected.word_steps[word.index], abs=2e-5
            )
            assert float(found.relation[token]) == pytest.approx(expected.relation[word.index], abs=2e-5)
    wordless = context.alignment.word_of_token < 0
    assert cross.word_steps[1, wordless].tolist() == pytest.approx(
        [expected.default_steps] * int(wordless.sum()), abs=1e-5
    )
    stop = held_steps(expected.default_steps, STEPS)
    deep = [layer.level >= 2 for layer in context.specs.self_layers]
    for part in (plan.self_attention.query, plan.self_attention.key):
        assert part[0].sum() == 0 and part[1].tolist() == [[0, stop if is_deep else 0] for is_deep in deep]
    if knobs.get("variant") == "released":
        assert cross.spatial_map is None and float(cross.strength[1]) == 1
    else:
        features = seen.last_features[0].double().tolist()
        slow_map = spatial_map(features, expected.key_embedding, 1.0, centre=slow.get("centre", True))
        assert cross.spatial_map[1].tolist() == pytest.approx(slow_map, abs=2e-5)


@pytest.mark.parametrize("two_pass", [False, True])
def test_a_widened_spatial_map_is_nowhere_less(pipe, two_pass):
    """In both ways of finding it; and the edit acts by it."""
    own, wide = (pipe.edit_batch([request(two_pass=two_pass, spatial_grow=cells)])[0] for cells in (0, 1))
    assert (wide.spatial_map >= own.spatial_map - 1e-3).all() and (wide.spatial_map > own.spatial_map).any()
    assert grey_levels(wide.target_image, own.target_image) > 0


@pytest.mark.parametrize(
    ("target", "own", "several", "cells"),
    [
        (TARGET, 0, 1, 0),
        (TARGET, 2, 1, 2),
        ("a blue dog sitting on the grass", 0, 1, 1),
        ("a blue dog sitting on the grass", 1, 2, 2),
        ("a blue dog sitting on the grass", 2, 1, 2),
        ("a red zebra standing on the grass", 0, 1, 0),
    ],
)
def test_the_map_of_several_words_is_widened_by_cells_of_its_own(pipe, target, own, several, cells):
    """A word of several tokens is one. The single pass widens its map by as many."""
    knobs = {"spatial_grow": own, "spatial_grow_several": several}
    _, _, plan, _ = planned(pipe, target, **knobs)
    _, _, wanted, _ = planned(pipe, target, spatial_grow=cells)
    assert torch.equal(plan.cross_attention.spatial_map, wanted.cross_attention.spatial_map)
    context, method = context_of(pipe, request(SOURCE, target, **knobs))
    assert method.plan(context, None).adaptive.grow.tolist() == [0, cells]


@pytest.mark.parametrize("target", [TARGET, LONGER])
@pytest.mark.parametrize("knobs", [{}, {"lambda_s": 0.4, "lambda_spatial": 0.7}, {"variant": "released"}])
def test_the_edited_map_at_every_step(pipe, target, knobs):
    context, seen, plan, _ = planned(pipe, target, seed=3, **knobs)
    released = knobs.get("variant") == "released"
    slow = {"alpha": 0.002, "relative": False, "centre": False, "released": True} if released else {}
    expected = timing(context, seen, **slow)
    by_token = [expected.default_steps] * TOKENS
    inserted = [False] * TOKENS
    for word in context.alignment.target_words:
        for token in word.tokens:
            by_token[token] = expected.word_steps[word.index]
            inserted[token] = word.is_key if released else word.kind == "inserted"
    features, pixels = seen.last_features[0].double().tolist(), seen.maps.shape[1]
    spatial = [1.0] * pixels
    if not released:
        spatial = spatial_map(features, expected.key_embedding, knobs.get("lambda_spatial", 1.0), centre=True)
    query, key = random(4, pixels, TOKENS, seed=5), random(4, TOKENS, TOKENS, seed=6)
    maps = (query @ key.transpose(1, 2) / TOKENS**0.5).softmax(-1).double()
    for step in range(STEPS):
        out = edited_maps(inputs_at(pipe, plan, step), query, key)
        slow_map = edited_map(
            maps[1].tolist(),
            maps[3].tolist(),
            context.alignment.token_map.double().tolist(),
            inserted,
            by_token,
            spatial,
            lambda_s=1.0 if released else knobs.get("lambda_s", 0.98),
            step=step,
            steps=STEPS,
        )
        assert float((out[3].double() - torch.tensor(slow_map, dtype=torch.float64)).abs().max()) < 2e-6
        for row in range(3):
            assert float((out[row].double() - maps[row]).abs().max()) < 2e-6


def test_the_first_step_of_the_single_pass_is_that_of_two_where_nothing_has_been_seen(coarse):
    """Words and layout are held, but not the words that the edit is about, whose tau is 0 whatever is seen."""
    context, method = context_of(coarse, request(SOURCE, TARGET))
    plan = method.plan(context, None)
    first = inputs_at(coarse, plan, 0)
    keys = context.alignment.key_tokens
    free = keys & (plan.cross_attention.own_weight[1] == 0)
    assert free.any() and (first["spatial_weight"][0, free] > 0).all()
    assert (first["spatial_weight"][0, ~keys] == 0).all()
    assert (first["self_query_row"][:, 3] == 1).all()
    assert torch.equal(first["self_key_row"], first["self_query_row"])
    later = inputs_at(coarse, plan, 1)  # until FWT says for how long
    assert (later["self_query_row"] == torch.arange(4)).all()


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_two_passes_look_at_the_last_step_s_features(pipe, variant):
    context, method = context_of(pipe, request(two_pass=True, variant=variant))
    (seen,) = run(pipe, [method.observe(context)])
    assert not torch.allclose(seen.features, seen.last_features)
    plan = method.plan(context, seen)
    others = [
        replace(seen, features=torch.zeros_like(seen.features)),
        replace(seen, last_features=seen.features),
    ]
    same, moved = (method.plan(context, one).cross_attention.word_steps for one in others)
    assert torch.equal(same, plan.cross_attention.word_steps)
    assert not torch.equal(moved, plan.cross_attention.word_steps)


def test_places_of_the_blend_come_from_the_pass_before_where_it_sees_both(pipe):
    knobs = {"local_blend": True, "observed_prompts": "both", "blend_threshold": 0.9, "blend_grow": 0}
    context, method = context_of(pipe, request(two_pass=True, **knobs))
    (seen,) = run(pipe, [method.observe(context)])
    blend = method.plan(context, seen).local_blend
    assert blend.known.tolist() == [False, True] and blend.places[1].unique().tolist() == [0, 1]
    draft = method.plan(context, None)
    assert not draft.local_blend.places.any() and draft.local_blend.known.tolist() == [False, True]
    context, method = context_of(pipe, request(**knobs))
    plan = method.plan(context, None)
    assert method.observe(context) is None and plan.local_blend.known is None
    assert plan.adaptive.joined.tolist() == [False, True]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"single_pass": True}, "knob 'single_pass' is gone: one pass is what is done now; leave it out"),
        ({"single_pass": False}, "or write two_pass=True for two"),
        ({"spatial_map": "static"}, "knob 'spatial_map' is gone: leave it out"),
        ({"blend_by": "words"}, "knob 'blend_by' is gone: leave it out"),
        ({"blend_difference": 1.0}, "add two_pass=True, observed_prompts='both', or leave it out"),
        ({"blend_difference": 1.0, "two_pass": True}, "only two passes that look at both prompts read"),
    ],
)
def test_what_is_gone_and_what_nothing_would_read_is_refused_with_the_mend(knobs, said):
    for make in (lambda: make_settings("adapedit", **knobs), lambda: request(**knobs)):
        with pytest.raises(AdapEditError, match=said) as error:
            make()
        assert "\n" not in str(error.value)
    saved = {"source_prompt": "a", "target_prompt": "b", "method": {"name": "adapedit", **knobs}}
    with pytest.raises(AdapEditError, match=said):
        EditRequest.make(**saved)


@pytest.mark.parametrize("knobs", [{}, {"two_pass": True}, {"fwt": False}])
def test_the_steps_of_a_word_are_those_that_were_given(pipe, knobs):
    """Of every place where it stands, or one of them alone; the others keep what was found."""
    target = "a dog and a dog sitting on the grass"
    given = ({"word": "dog", "occurrence": 2, "value": 0.6}, {"word": "sitting", "value": 0.4})
    asked = [
        request("a dog and a dog standing on the grass", target, word_steps=w, **knobs) for w in ((), given)
    ]
    free, held = pipe.edit_batch(asked)
    found = [[word.word_steps for word in result.words] for result in (free, held)]
    for word, before, after in zip(held.words, *found, strict=True):
        assert after == pytest.approx(before, abs=0.1) or word.text in ("dog", "sitting")
    assert found[1][4] == pytest.approx(0.6) and found[1][5] == pytest.approx(0.4)
    assert found[1][1] == pytest.approx(found[0][1], abs=0.1)
    assert grey_levels(free.target_image, held.target_image) > 0
    assert grey_levels(free.source_image, held.source_image) == 0


def test_a_word_that_is_held_throughout_has_the_sources_maps(pipe):
    """All words given the whole trajectory: the target's maps are the source's, whatever FWT would have found."""
    every = dict.fromkeys(TARGET.split(), 1.0)
    knobs = {"self_replace_steps": 0.0, "fwt": False, "cross_replace_steps": 1.0}
    one, other = pipe.edit_batch([request(word_steps=every, self_replace_steps=0.0), request(**knobs)])
    assert grey_levels(one.target_image, other.target_image) == 0


@pytest.mark.parametrize(
    ("target", "knobs", "said"),
    [
        (
            TARGET,
            {"word_steps": {"horse": 0.3}},
            "the target prompt has no word 'horse'; its words are: a, red",
        ),
        (TARGET, {"word_steps": [{"word": "dog", "occurrence": 2, "value": 0.3}]}, "occurrence 2 was asked"),
        (TARGET, {"word_steps": {"dog": 1.5}}, "word_steps.0.value is 1.5"),
        (TARGET, {"word_steps": 0.3}, "values by word were wanted"),
        (
            LONGER,
            {"word_steps": {"small": 0.3}},
            "word_steps names 'small', for which the source prompt has no word",
        ),
        (
            TARGET,
            {"word_steps": {"sitting": 0.3}, "variant": "released"},
            "names 'sitting', for which the source",
        ),
    ],
)
def test_steps_of_words_that_can_not_be(pipe, target, knobs, said):
    with pytest.raises(AdapEditError, match=said) as error:
        pipe.edit_batch([request(SOURCE, target, **knobs)])
    assert "\n" not in str(error.value)


def test_cells_that_differ_belong_to_the_places_that_they_touch():
    mask = torch.zeros(6, 6)
    mask[1, 1] = 1
    latents = torch.zeros(2, 4, 12, 12)  # two cells of the latents to one of the mask
    latents[1, :, 4:8, 4:6] = 2.0  # two cells in a row below, the first touching the place by a corner
    latents[1, :, 10:, 10:] = 2.0  # apart
    latents[1, :, 2:4, 4:6] = 0.5  # touching, and hardly different
    found = with_difference(mask, latents, 1.0)
    assert found.dtype == mask.dtype
    assert found.nonzero().tolist() == [[1, 1], [2, 2], [3, 2]]
    assert torch.equal(with_difference(mask, latents, 3.0), mask)
    assert torch.equal(with_difference(torch.zeros(6, 6), latents, 0.0), torch.zeros(6, 6))
