"""Words in knobs: the forms in which people name them, and the tokens of local blends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.methods import make_settings
from adapedit.methods.words import blend_tokens
from adapedit.prompts.alignment import align
from tests.helpers.edits import SOURCE, TARGET
from tests.helpers.tokenizers import small_clip_tokenizer

METHODS = ("adapedit", "prompt-to-prompt")
CATS = "a red cat standing on the grass", "a red dog sitting on the grass"


def edited(pipe: AdapEditPipeline, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    result = pipe(source_prompt=SOURCE, target_prompt=TARGET, num_inference_steps=4, seed=2, **options)
    return np.asarray(result.source_image).astype(int), np.asarray(result.target_image).astype(int)


@pytest.mark.parametrize("method", METHODS)
def test_true_means_the_words_that_the_edit_is_about(pipe, method):
    _, by_words = edited(pipe, method=method, local_blend=("standing", "sitting"), blend_threshold=0.9)
    _, by_edit = edited(pipe, method=method, local_blend=True, blend_threshold=0.9)
    _, free = edited(pipe, method=method)
    assert np.array_equal(by_words, by_edit)
    assert np.abs(by_edit - free).max() > 1


@pytest.mark.parametrize("method", METHODS)
def test_where_no_pixel_belongs_to_the_words_all_of_the_source_is_kept(pipe, method):
    source, target = edited(pipe, method=method, local_blend=True, blend_threshold=1.0, blend_start=0.0)
    assert np.array_equal(source, target)


@pytest.mark.parametrize(
    ("prompts", "words", "lost", "gained"),
    [
        ((SOURCE, TARGET), True, ["standing"], ["sitting"]),
        (("a dog on the grass", "a red dog on the grass"), True, ["dog"], ["red"]),
        (("a red dog on the grass", "a dog on the grass"), True, ["red"], ["dog"]),
        ((SOURCE, SOURCE), True, [], []),
        ((SOURCE, TARGET), "dog", ["dog"], ["dog"]),
        (CATS, ["cat", "dog"], ["cat"], ["dog"]),
        (CATS, (("cat", "grass"), ("dog",)), ["cat", "grass"], ["dog"]),
        (CATS, ("cat", ["dog", "grass"]), ["cat"], ["dog", "grass"]),
        (CATS, ("dog", "grass", "cat"), ["cat", "grass"], ["dog", "grass"]),
    ],
)
def test_words_of_a_blend(prompts, words, lost, gained):
    alignment = align(prompts[0], prompts[1], small_clip_tokenizer())
    weights = blend_tokens(alignment, make_settings("adapedit", local_blend=words).local_blend)
    for row, own, expected in ((0, alignment.source_words, lost), (1, alignment.target_words, gained)):
        found = [word.text for word in own if weights[row, list(word.tokens)].all()]
        assert found == expected
        assert int(weights[row].sum()) == sum(len(word.tokens) for word in own if word.text in expected)


@pytest.mark.parametrize(
    ("words", "prompt"), [("bird", "target"), (("bird", "dog"), "target"), ((["dog"], ["dog"]), "source")]
)
def test_a_word_that_no_prompt_has_is_refused(words, prompt):
    alignment = align(*CATS, small_clip_tokenizer())
    with pytest.raises(AdapEditError, match=f"the {prompt} prompt has no word"):
        blend_tokens(alignment, make_settings("adapedit", local_blend=words).local_blend)


def test_the_blend_lets_go_of_what_differs(pipe):
    options = {"method": "adapedit", "two_pass": True, "observed_prompts": "both", "local_blend": True}
    options |= {"blend_threshold": 0.9, "blend_start": 0.0, "blend_grow": 0}
    source, narrow = edited(pipe, **options)
    _, wide = edited(pipe, **options, blend_difference=0.0)
    _, as_before = edited(pipe, **options, blend_difference=100.0)
    assert np.array_equal(narrow, as_before)
    assert (wide != source).sum() > (narrow != source).sum()


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("prompt-to-prompt", {"equalizer": {"red": 2}}),
        ("prompt-to-prompt", {"equalizer": {"red": -2}}),
        ("prompt-to-prompt", {"equalizer": [("red", 2.0)]}),
        ("prompt-to-prompt", {"equalizer": [["red", 2.0]]}),
        ("prompt-to-prompt", {"local_blend": "dog"}),
        ("prompt-to-prompt", {"local_blend": ["dog", "cat"]}),
        ("adapedit", {"local_blend": [["dog"], ["cat"]]}),
        ("prompt-to-prompt", {"cross_replace_steps": {"default_": 0.8, "dog": 0.4}}),
        ("prompt-to-prompt", {"cross_replace_steps": {"default_": 1.0, "dog": (0.0, 0.4)}}),
        ("prompt-to-prompt", {"self_replace_steps": (0.2, 0.6)}),
        ("adapedit", {"self_replace_steps": [0.2, 0.6]}),
    ],
)
def test_forms_that_people_write_are_taken_and_written_down_again(method, knobs):
    settings = make_settings(method, **knobs)
    request = EditRequest.make(source_prompt="a", target_prompt="b", method=settings)
    assert EditRequest.make(**request.model_dump(mode="json")).method == settings


@pytest.mark.parametrize(
    ("method", "knobs", "said"),
    [
        ("adapedit", {"lambda_tau": "0.5"}, "lambda_tau is '0.5': input should be a valid number"),
        ("adapedit", {"lambda_tau": 1e39}, "lambda_tau is 1e[+]39: input should be less than or equal to"),
        ("adapedit", {"lambda_tau": True}, "lambda_tau is True: input should be a valid number"),
        ("adapedit", {"lambda_tau": float("nan")}, "lambda_tau is nan: input should be"),
        ("adapedit", {"spatial_grow": 5}, "spatial_grow is 5: input should be less than or equal to 4"),
        ("adapedit", {"local_blend": 3}, "local_blend is 3: wanted a word, words, true"),
        ("adapedit", {"local_blend": [["dog"], ["cat"], ["bird"]]}, "words of the source and words of"),
        ("adapedit", {"self_replace_steps": (0.6, 0.2)}, "self_replace_steps is .0.6, 0.2.: wanted between"),
        ("adapedit", {"strength": 0.8}, "no knob 'strength'; .*strength belongs to method 'sdedit'"),
        ("prompt-to-prompt", {"self_replace_steps": "0.4"}, "a share of the steps was wanted, or two"),
        ("prompt-to-prompt", {"equalizer": 2}, "equalizer is 2: values by word were wanted, such as"),
        ("prompt-to-prompt", {"equalizer": {"red": "2"}}, "equalizer.0.value is '2': input should be"),
        ("prompt-to-prompt", {"equalizer": {"red": 1e39}}, "equalizer.0.value is 1e[+]39"),
        ("prompt-to-prompt", {"cross_replace_steps": {"dog": 2}}, "wanted between 0 and 1"),
    ],
)
def test_what_is_no_such_value_is_said_in_a_line(method, knobs, said):
    with pytest.raises(AdapEditError, match=said) as error:
        make_settings(method, **knobs)
    assert "\n" not in str(error.value)
