"""Negative prompts: each picture's own, as in diffusers, and refused where nothing would come of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.cli.main import USER_ERROR, run
from adapedit.edit import complete, make_context
from adapedit.sharing import Caches, source_key
from tests.helpers.diffusers import by_diffusers
from tests.helpers.edits import SOURCE, TARGET, grey_levels

NEGATIVE, OTHER = "a cat on the grass", "two dogs"
STEPS = 3


def edited(pipe: AdapEditPipeline, **options: Any) -> Any:
    return pipe(SOURCE, TARGET, num_inference_steps=STEPS, **options)


@pytest.mark.parametrize("method", ["plain", "adapedit", "prompt-to-prompt", "masactrl", "sdedit"])
def test_the_source_is_what_diffusers_makes_under_the_same_negative_prompt(pipe, method):
    result = edited(pipe, method=method, negative_prompt=NEGATIVE)
    theirs = by_diffusers(pipe, SOURCE, STEPS, negative_prompt=NEGATIVE)
    assert grey_levels(result.source_image, theirs) <= 1
    assert grey_levels(theirs, by_diffusers(pipe, SOURCE, STEPS)) > 1


def test_each_picture_has_its_own(pipe):
    result = edited(pipe, method="plain", source_negative_prompt=NEGATIVE, target_negative_prompt=OTHER)
    for picture, prompt, negative in (
        (result.source_image, SOURCE, NEGATIVE),
        (result.target_image, TARGET, OTHER),
    ):
        assert grey_levels(picture, by_diffusers(pipe, prompt, STEPS, negative_prompt=negative)) <= 1


def test_one_for_both_gives_way_to_one_of_its_own_even_to_an_empty_one(pipe):
    mixed = edited(pipe, method="plain", negative_prompt=NEGATIVE, source_negative_prompt="")
    assert grey_levels(mixed.source_image, by_diffusers(pipe, SOURCE, STEPS)) <= 1
    assert grey_levels(mixed.target_image, by_diffusers(pipe, TARGET, STEPS, negative_prompt=NEGATIVE)) <= 1
    assert mixed.request.target_negative_prompt == NEGATIVE and mixed.request.source_negative_prompt == ""


def test_what_stands_against_the_same_prompt_may_differ(pipe):
    """Equal prompts are one text in the cache, and still two tracks."""
    result = pipe(SOURCE, SOURCE, method="plain", num_inference_steps=STEPS, target_negative_prompt=NEGATIVE)
    assert grey_levels(result.source_image, result.target_image) > 1


def test_a_source_is_shared_by_edits_whose_targets_alone_have_one(pipe):
    keys = []
    for more in ({}, {"target_negative_prompt": NEGATIVE}, {"source_negative_prompt": NEGATIVE}):
        asked = EditRequest.make(source_prompt=SOURCE, target_prompt=TARGET, num_inference_steps=2, **more)
        asked = complete(asked, pipe.model)
        context = make_context(asked, pipe.model, Caches.of(pipe.model.runner))
        keys.append(source_key(asked.method.plan(context, None)))
    assert keys[0] == keys[1] != keys[2]


def test_null_text_begins_with_the_negative_prompt(pipe):
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    options = {"image": picture, "inversion": {"name": "null-text", "inner_steps": 1, "cache": "off"}}
    with_it, without = (edited(pipe, **options, negative_prompt=text) for text in (NEGATIVE, None))
    assert grey_levels(with_it.source_image, without.source_image) > 0
    with pytest.raises(AdapEditError, match="searches one negative prompt for both pictures; give both"):
        edited(pipe, **options, target_negative_prompt=NEGATIVE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"negative_prompt": NEGATIVE, "guidance_scale": 1},
            "negative_prompt acts by guidance, and its scale is 1",
        ),
        ({"target_negative_prompt": "ugly", "guidance_scale": 0}, "or leave target_negative_prompt out"),
        ({"negative_prompt": "a dog " * 12}, "the negative prompt has 26 tokens"),
        ({"negative_prompt": 3}, "negative_prompt is 3: a text was wanted"),
        ({"negative_prompt_embeds": 3}, "negative_prompt_embeds is not supported, use negative_prompt"),
    ],
)
def test_what_can_not_act_is_refused_in_one_line(pipe, options, said):
    with pytest.raises(AdapEditError, match=said) as error:
        edited(pipe, **options)
    assert "\n" not in str(error.value)


def test_a_word_that_a_closed_vocabulary_lacks_is_refused(capsys):
    assert run(["edit", "a red dog", "a blue dog", "--negative", "blurry"]) == USER_ERROR
    assert (
        "the negative prompt has 'blurry', a word that model 'builtin' does not know"
        in capsys.readouterr().err
    )
