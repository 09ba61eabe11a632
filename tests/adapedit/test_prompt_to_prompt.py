"""Prompt-to-Prompt's maps at every step, against its authors' formulas written out once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit import AdapEditError

from adapedit.prepare import complete, make_context
from adapedit_engine.rows import RowTables
from adapedit_kernels import edited_attention
from tests.helpers.edits import LONGER, SOURCE, STEPS, grey_levels, request
from tests.helpers.tiny_model import TOKENS

TWO = "a red dog and a small dog"


def maps_at_every_step(pipe: Any, source: str, target: str, **knobs: Any):
    """(alignment, given maps [4, P, N], what the target is given [T, P, N]) of a plan on random queries and keys."""
    asked = complete(request(source, target, method="prompt-to-prompt", **knobs), pipe.model)
    context = make_context(asked, pipe.model)
    plan = make_method(asked.method, pipe.model.facts).plan(context, None)
    generator = torch.Generator().manual_seed(1)
    pixels = context.map_size[0] * context.map_size[1]
    query = torch.randn(4, 1, pixels, TOKENS, generator=generator)
    key = torch.randn(4, 1, TOKENS, TOKENS, generator=generator)
    # With the unit matrix for values, attention returns its probabilities.
    value = torch.eye(TOKENS).expand(4, 1, -1, -1)
    given = (query @ key.transpose(2, 3) / TOKENS**0.5).softmax(-1)[:, 0]
    with pipe.model.runner as runner:
        tables = RowTables.build(plan, runner)
    steps = []
    for step in range(STEPS):
        controls = tables.controls(step).as_dict()
        edit = {name: controls[name] for name in ("source_row", "token_map", "own_weight")}
        edit |= {name: controls[name] for name in ("spatial_weight", "spatial_map")}
        steps.append(edited_attention(query, key, value, **edit)[3, 0])
    return context.alignment, given, torch.stack(steps)


@pytest.mark.parametrize(
    ("source", "target", "words", "factors", "shares"),
    [
        (SOURCE, LONGER, {}, {}, {}),
        (SOURCE, LONGER, {"equalizer": ({"word": "dog", "value": 3},)}, {"dog": [3]}, {}),
        # An inserted word, a replacing one, and one that is to vanish.
        (SOURCE, LONGER, {"equalizer": ({"word": "small", "value": 4},)}, {"small": [4]}, {}),
        (SOURCE, LONGER, {"equalizer": ({"word": "sitting", "value": 0.5},)}, {"sitting": [0.5]}, {}),
        (SOURCE, LONGER, {"equalizer": ({"word": "small", "value": 0},)}, {"small": [0]}, {}),
        (SOURCE, LONGER, {"word_replace_steps": ({"word": "dog", "value": 0.2},)}, {}, {"dog": [0.2]}),
        (
            "a red dog",
            TWO,
            {
                "equalizer": ({"word": "dog", "value": 2, "occurrence": 2}, {"word": "small", "value": 3}),
                "word_replace_steps": ({"word": "dog", "value": 1}, {"word": "small", "value": 0}),
            },
            {"dog": [1, 2], "small": [3]},
            {"dog": [1, 1], "small": [0]},
        ),
    ],
)
def test_maps_are_those_of_the_authors(pipe, source, target, words, factors, shares):
    share = 0.6
    alignment, given, edited = maps_at_every_step(pipe, source, target, cross_replace_steps=share, **words)
    factor, until = torch.ones(TOKENS), torch.full((TOKENS,), share)
    for values, into in ((factors, factor), (shares, until)):
        for text, each in values.items():
            for word, value in zip(alignment.find(text), each, strict=True):
                into[list(word.tokens)] = value
    inserted = torch.zeros(TOKENS, dtype=torch.bool)
    for word in alignment.target_words:
        inserted[list(word.tokens)] = word.kind == "inserted"
    own = given[3]
    replaced = torch.where(inserted, own, given[1] @ alignment.token_map) * factor
    for step in range(STEPS):
        held = (step < until * STEPS - 1e-4).float()
        expected = held * replaced + (1 - held) * own
        assert float((edited[step] - expected).abs().max()) < 2e-6


@pytest.mark.parametrize("word", ["small", "sitting", "dog"])
def test_weights_are_seen_in_the_picture(pipe, word):
    plain, weighted = (
        pipe.edit_batch([request(SOURCE, LONGER, method="prompt-to-prompt", equalizer=weights)])[0]
        for weights in ((), ({"word": word, "value": 5},))
    )
    assert grey_levels(plain.target_image, weighted.target_image) > 1
    assert grey_levels(plain.source_image, weighted.source_image) == 0


def test_an_occurrence_that_is_not_there_is_refused(pipe):
    asked = request(
        SOURCE,
        LONGER,
        method="prompt-to-prompt",
        equalizer=({"word": "dog", "value": 2, "occurrence": 2},),
    )
    with pytest.raises(AdapEditError, match="has 'dog' 1 time"):
        pipe.edit_batch([asked])
