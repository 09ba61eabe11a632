"""FWT, DPS and the edited maps as the methods plan them, against the slow second implementation, on random tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch


from adapedit.prepare import complete, make_context
from adapedit_engine.plan import EditOutcome
from adapedit_engine.rows import RowTables
from adapedit_kernels import edited_attention
from tests.helpers.edits import LONGER, SOURCE, STEPS, TARGET, grey_levels, request
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
        features=random(1, pixels, CHANNELS, seed=seed + 1) + random(1, 1, CHANNELS, seed=seed + 2),
        word_steps=None,
        spatial_map=None,
        steps=STEPS,
        seconds=0.0,
    )


def planned(pipe, target: str, seed: int = 0, **knobs: Any):
    """(alignment, what was seen, the plan, the findings' relation) of AdapEdit with `knobs`."""
    asked = complete(request(SOURCE, target, **knobs), pipe.model)
    context, method = make_context(asked, pipe.model), make_method(asked.method, pipe.model.facts)
    seen = observed(context.map_size[0] * context.map_size[1], seed)
    plan = method.plan(context, seen)
    found = method.findings(context, seen, EditOutcome(**{**vars(seen), "word_steps": plan.word_steps}))
    return context, seen, plan, found


def timing(context, seen, **knobs: Any) -> FlexibleWordTiming:
    words = context.alignment.target_words
    keys = [word.index for word in words if word.is_key]
    return FlexibleWordTiming(
        seen.maps[0].double().tolist(),
        seen.features[0].double().tolist(),
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
    expected = timing(context, seen, **slow)
    for word in context.alignment.target_words:
        for token in word.tokens:
            assert float(plan.word_steps[1, token]) == pytest.approx(
                expected.word_steps[word.index], abs=2e-5
            )
            assert float(found.relation[token]) == pytest.approx(expected.relation[word.index], abs=2e-5)
    wordless = context.alignment.word_of_token < 0
    assert plan.word_steps[1, wordless].tolist() == pytest.approx(
        [expected.default_steps] * int(wordless.sum()), abs=1e-5
    )
    assert plan.self_query is not None
    for step in range(STEPS):
        deep = [layer.level >= 2 for layer in context.specs.self_layers]
        taken = [is_deep and step < expected.default_steps * STEPS for is_deep in deep]
        assert plan.self_query[step, :, 1].tolist() == plan.self_key[step, :, 1].tolist() == taken
    if knobs.get("variant") == "released":
        assert bool((plan.spatial_map[1] == 1).all()) and float(plan.strength[1]) == 1
    else:
        features = seen.features[0].double().tolist()
        slow_map = spatial_map(features, expected.key_embedding, 1.0, centre=slow.get("centre", True))
        assert plan.spatial_map[1].tolist() == pytest.approx(slow_map, abs=2e-5)


@pytest.mark.parametrize("single_pass", [False, True])
def test_a_widened_spatial_map_is_nowhere_less(pipe, single_pass):
    """In both ways of finding it; and the edit acts by it."""
    own, wide = pipe.edit_batch(
        [request(single_pass=single_pass, spatial_grow=cells) for cells in (0, 1)], share_sources=False
    )
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
    """A word of several tokens is one. The single pass and the map of each step widen theirs by as many."""
    _, _, plan, _ = planned(pipe, target, spatial_grow=own, spatial_grow_several=several)
    _, _, wanted, _ = planned(pipe, target, spatial_grow=cells)
    assert torch.equal(plan.spatial_map, wanted.spatial_map)
    knobs = {"spatial_grow": own, "spatial_grow_several": several, "spatial_map": "per-step"}
    assert planned(pipe, target, **knobs)[2].adaptive.spatial_grow == (0, cells)


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
    features, pixels = seen.features[0].double().tolist(), seen.maps.shape[1]
    spatial = [1.0] * pixels
    if not released:
        spatial = spatial_map(features, expected.key_embedding, knobs.get("lambda_spatial", 1.0), centre=True)
    # With the unit matrix for values, attention returns its probabilities.
    query, key = random(4, 1, pixels, TOKENS, seed=5), random(4, 1, TOKENS, TOKENS, seed=6)
    value = torch.eye(TOKENS).expand(4, 1, -1, -1)
    maps = (query @ key.transpose(2, 3) / TOKENS**0.5).softmax(-1)[:, 0].double()
    with pipe.model.runner as runner:
        tables = RowTables.build(plan, runner)
    for step in range(STEPS):
        controls = tables.controls(step)
        out = edited_attention(
            query,
            key,
            value,
            source_row=controls.source_row,
            token_map=controls.token_map,
            own_weight=controls.own_weight,
            spatial_weight=controls.spatial_weight,
            spatial_map=controls.spatial_map,
        )[:, 0]
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


def test_the_first_step_of_the_single_pass_is_that_of_two_where_nothing_has_been_seen(pipe):
    """Words and layout are held, but not the words that the edit is about, whose tau is 0 whatever is seen."""
    asked = complete(request(SOURCE, TARGET, single_pass=True, self_replace_steps=None), pipe.model)
    context = make_context(asked, pipe.model)
    context = replace(context, facts=replace(context.facts, self_divisor=1))
    plan = make_method(asked.method, pipe.model.facts).plan(context, None)
    tables = RowTables.build(plan, pipe.model.runner)
    first = tables.controls(0)
    keys = context.alignment.key_tokens
    free = keys & (plan.own_weight[1] == 0)
    target, source = tables.rows - 1, tables.rows // 2 - 1
    assert free.any() and (first.spatial_weight[target, free] > 0).all()
    assert (first.spatial_weight[target, ~keys] == 0).all()
    rows = first.self_query_row[context.coarse_layers()]
    assert (rows[:, target] == source).all() and torch.equal(first.self_key_row, first.self_query_row)
    assert tables.controls(1).self_query_row is None  # until FWT says for how long
