"""What an edit must show, whatever the model: limits, independence of the batch, refusals before any work."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from adapedit import AdapEditError, AdapEditPipeline, EditWarning
from tests.helpers.edits import LONGER, SOURCE, STEPS, TARGET, grey_levels, request

METHODS = (
    {"method": "adapedit"},
    {"method": "adapedit", "two_pass": True},
    {"method": "prompt-to-prompt"},
)


def edit(pipe: AdapEditPipeline, *prompts, **knobs):
    return pipe.edit_batch([request(*prompts, **knobs)])[0]


@pytest.mark.parametrize("knobs", METHODS)
def test_the_source_is_the_plain_generation_bit_for_bit(pipe, knobs):
    edited, plain = edit(pipe, **knobs), edit(pipe, method="plain")
    assert grey_levels(edited.source_image, plain.source_image) == 0
    assert grey_levels(edited.target_image, plain.target_image) > 1


def test_an_edit_among_unrelated_edits_equals_the_edit_alone(pipe):
    requests = [
        request(),
        request(SOURCE, LONGER, method="prompt-to-prompt", seed=1, local_blend=("dog",)),
        request("a cat", "two dogs walking in the park", seed=2, steps=STEPS + 2),
        request(LONGER, TARGET, seed=3, variant="released", steps=2),
        request("a dog", "a cat", method="plain"),
    ]
    for max_rows in (32, 8, 4):
        for asked, got in zip(requests, pipe.edit_batch(requests, max_rows=max_rows), strict=True):
            alone = pipe.edit_batch([asked])[0]
            assert grey_levels(got.source_image, alone.source_image) <= 1
            assert grey_levels(got.target_image, alone.target_image) <= 1
            assert got.request == alone.request


@pytest.mark.parametrize("knobs", METHODS)
def test_identical_prompts_give_identical_pictures(pipe, knobs):
    same = edit(pipe, SOURCE, SOURCE, **knobs)
    assert grey_levels(same.source_image, same.target_image) == 0
    assert len(same.warnings) == 1 and "there is nothing to change" in same.warnings[0]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("target", [TARGET, "a red cat standing on the grass"])
def test_everywhere_full_strength_one_tau_is_prompt_to_prompt(pipe, share, target):
    """Of words that are replaced; words that are inserted or deleted each of them aligns in its own way."""
    common = {"cross_replace_steps": share, "self_replace_steps": 0.5}
    ours = edit(pipe, SOURCE, target, fwt=False, dps=False, lambda_s=1, **common)
    theirs = edit(pipe, SOURCE, target, method="prompt-to-prompt", **common)
    # By other values of the same sum, where S is 1 for one of them and left out for the other.
    assert grey_levels(ours.target_image, theirs.target_image) <= 1
    assert [word.word_steps for word in ours.words] == pytest.approx([share] * len(ours.words))


def test_tau_of_one_is_the_sources_maps_throughout(pipe):
    held = edit(pipe, fwt=False, cross_replace_steps=1, self_replace_steps=0)
    # What is never freed is the same as what is freed with no strength: the source's maps at every step.
    powerless = edit(pipe, fwt=False, cross_replace_steps=0, self_replace_steps=0, lambda_s=0)
    free = edit(pipe, fwt=False, cross_replace_steps=0, self_replace_steps=0)
    assert grey_levels(held.target_image, powerless.target_image) == 0
    assert grey_levels(held.target_image, free.target_image) > 1


def test_passes_and_variants_are_different_edits(pipe):
    pictures = [
        edit(pipe, SOURCE, LONGER, **knobs).target_image.tobytes()
        for knobs in (
            {},
            {"two_pass": True},
            {"variant": "released"},
            {"fwt": False},
            {"dps": False},
            {"mask": False},
        )
    ]
    assert len(set(pictures)) == len(pictures)


def test_what_is_found_is_reported(pipe):
    result = edit(pipe, SOURCE, LONGER)
    by_text = {word.text: word for word in result.words}
    assert by_text["small"].kind == "inserted" and by_text["sitting"].replaces == "standing"
    for word in result.words:
        assert word.relation is not None and -1 <= word.relation <= 1
        assert word.word_steps == 0 if word.is_key else 0 < word.word_steps <= 1
    assert result.spatial_map is not None and 0 <= result.spatial_map.min() <= result.spatial_map.max() <= 1
    assert result.source_maps.sum(2) == pytest.approx(1, abs=1e-4)
    assert list(result.timings) == ["edit", "decode", "total"]


def test_less_lambda_tau_frees_words_earlier(pipe):
    steps = [
        [word.word_steps for word in edit(pipe, two_pass=True, lambda_tau=value).words if not word.is_key]
        for value in (1, 0.5)
    ]
    assert steps[1] == pytest.approx([value / 2 for value in steps[0]], abs=1e-5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"normalise": "softmax", "temperature": 100, "centre": False}, "FWT has collapsed: all kept words"),
        ({"lambda_spatial": 0.01}, "DPS has collapsed.*lower alpha_tau"),
    ],
)
def test_a_collapse_is_warned_of_with_its_mend(pipe, knobs, message):
    with pytest.warns(EditWarning, match=message):
        result = edit(pipe, **knobs)
    assert any("collapsed" in warning for warning in result.warnings)


def test_the_call_is_the_batch_of_one(pipe):
    called = pipe(SOURCE, TARGET, num_inference_steps=STEPS, seed=4, lambda_tau=0.5)
    batched = pipe.edit_batch([request(seed=4, lambda_tau=0.5)])[0]
    assert called.request == batched.request
    assert grey_levels(called.target_image, batched.target_image) == 0


def test_a_generator_is_drawn_from_as_in_diffusers_and_its_seed_is_named(pipe):
    generator = torch.Generator().manual_seed(7)
    first = pipe(SOURCE, TARGET, num_inference_steps=2, generator=generator)
    again = pipe(SOURCE, TARGET, num_inference_steps=2, seed=7)
    assert first.request == again.request
    assert grey_levels(first.target_image, again.target_image) == 0
    with pytest.warns(EditWarning, match="was used before"):
        other = pipe(SOURCE, TARGET, num_inference_steps=2, generator=generator)
    assert grey_levels(first.target_image, other.target_image) > 0
    with pytest.raises(AdapEditError, match="both seed and generator"):
        pipe(SOURCE, TARGET, seed=1, generator=torch.Generator())


def test_other_sizes(pipe):
    result = pipe(SOURCE, TARGET, num_inference_steps=2, height=16, width=32)
    assert result.target_image.size == (32, 16) and result.target_maps.shape[:2] == (4, 8)


@pytest.mark.parametrize("max_rows", [32, 8])
def test_progress_counts_every_call_to_a_total_that_stays(pipe, max_rows):
    seen: list[tuple[int, int]] = []
    requests = [
        request(),
        request(seed=1, steps=3),
        request(method="plain"),
        request(seed=2),
    ]
    pipe.edit_batch(requests, max_rows=max_rows, callback=lambda done, total: seen.append((done, total)))
    done = [count for count, _ in seen]
    assert done == sorted(set(done)) and done[-1] == 2 * STEPS + 3
    assert {total for _, total in seen} == {2 * STEPS + 3}


class Cancelled(Exception):
    pass


def test_raising_in_the_callback_cancels_and_leaves_the_model_as_it_was(pipe):
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Cancelled

    unet = pipe.model.runner.controlled.unet
    before, expected = dict(unet.attn_processors), edit(pipe)
    with pytest.raises(Cancelled):
        pipe.edit_batch([request()], callback=stop)
    assert all(now is before[name] for name, now in unet.attn_processors.items())
    assert grey_levels(edit(pipe).target_image, expected.target_image) == 0


@pytest.fixture
def untouched(pipe, monkeypatch):
    """Fails the test if the UNet is run."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("the UNet was run")

    monkeypatch.setattr(type(pipe.model.runner), "infer", refuse)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source_prompt": ""}, "source_prompt is '': it is empty; describe"),
        ({"target_prompt": " \n"}, "target_prompt is .*: it is empty; describe"),
        ({"target_prompt": "a dog " * 12}, "the target prompt has 26 tokens.*takes 20: shorten it by 6"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0: .*greater than or equal to 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": 100_000}, "num_inference_steps is 100000.*less than or equal to 1000"),
        ({"height": 17}, "height is 17, wanted a multiple of 4"),
        ({"width": 100_000}, "width is 100000: .*less than or equal to 4096"),
        ({"lambda_tau": -0.1}, "lambda_tau is -0.1: .*greater than or equal to 0"),
        ({"lambda_tau": math.inf}, "lambda_tau is inf: .*finite"),
        ({"lambda_s": 1.5}, "lambda_s is 1.5: .*less than or equal to 1"),
        ({"temperature": 0}, "temperature is 0: .*greater than 0"),
        ({"variant": "papper"}, "variant is 'papper': .*'paper' or 'released'"),
        ({"lambda_t": 1}, "adapedit has no knob 'lambda_t'; its knobs: lambda_tau"),
        ({"method": {"name": "adapedit"}}, "no method {'name': 'adapedit'}; use one of: adapedit"),
        ({"method": "p2p"}, "no method 'p2p'; use one of: adapedit, masactrl,"),
        (
            {"method": "prompt-to-prompt", "local_blend": ("horse",)},
            "no word 'horse'; its words are: a, red, dog",
        ),
        (
            {"method": "prompt-to-prompt", "equalizer": ({"word": "cat", "value": 2},)},
            "no word 'cat'; its words are",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work_in_one_line(pipe, untouched, arguments, message):
    with pytest.raises(AdapEditError, match=message) as error:
        pipe(**{"source_prompt": SOURCE, "target_prompt": TARGET, "num_inference_steps": 2, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a dog"}, "prompt is not supported, use source_prompt and target_prompt"),
        (
            {"method": "plain", "word_steps": {"dog": 0.3}},
            "word_steps is not supported, use method='adapedit'",
        ),
        ({"strength": 0.5}, "strength is not supported, use method='sdedit'"),
        (
            {"source_prompt": request(), "target_prompt": None},
            r"got a request.*use edit_batch\(\[request\]\)",
        ),
        ({"target_prompt": None}, "target_prompt is missing"),
    ],
)
def test_names_of_diffusers_are_answered_in_a_line(pipe, untouched, arguments, message):
    with pytest.raises(AdapEditError, match=message) as error:
        pipe(**{"source_prompt": SOURCE, "target_prompt": TARGET, **arguments})
    assert "\n" not in str(error.value)


def test_strength_is_sdedits_knob(pipe):
    assert pipe(SOURCE, TARGET, method="sdedit", strength=0.5, num_inference_steps=2).target_image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fp16"}, "has no weights of variant 'fp16'; leave variant out"),
        ({"subfolder": "unet"}, "subfolder is not supported, use a folder"),
        ({"dtype": torch.float16}, "dtype is not supported, use torch_dtype"),
        ({"token": "x"}, "token is not supported, use HF_TOKEN"),
        ({"safety_checker": object()}, "safety_checker is a object, and none is run here"),
        ({"nonsense": 1}, "no option 'nonsense'; the options: device, torch_dtype, variant"),
        ({"scheduler": DDIMScheduler}, "got the class DDIMScheduler, wanted a scheduler made of it"),
    ],
)
def test_options_of_diffusers_loading_are_answered_in_a_line(tiny_folder, options, message):
    with pytest.raises(AdapEditError, match=message) as error:
        AdapEditPipeline.from_pretrained(tiny_folder, **options)
    assert "\n" not in str(error.value)


def test_a_pipeline_of_diffusers_is_refused_at_once():
    with pytest.raises(AdapEditError, match=r"got a DDIMScheduler, wanted a model.*from_pipe"):
        AdapEditPipeline(DDIMScheduler())  # type: ignore[arg-type]


def test_a_picture_larger_than_the_models_is_warned_of_once(pipe):
    with pytest.warns(EditWarning, match="40 x 16 pixels are more than 1.5 times the model's 16"):
        result = pipe(SOURCE, TARGET, num_inference_steps=1, width=40)
    assert len([line for line in result.warnings if "1.5 times" in line]) == 1
    assert not [line for line in edit(pipe).warnings if "1.5 times" in line]


@pytest.mark.parametrize(("name", "mend"), [("builtin", "knows only its drawings"), ("other", "more steps")])
def test_a_photograph_that_does_not_come_back_is_warned_of(pipe, name, mend):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    other = AdapEditPipeline(replace(pipe.model, name=name))
    with pytest.warns(EditWarning, match=f"comes back at .* dB, hardly to be known again; .*{mend}"):
        other(SOURCE, TARGET, num_inference_steps=2, image=noise)


def test_a_batch_names_the_request_that_is_wrong_before_any_work(pipe, untouched):
    bad = request(method="prompt-to-prompt", local_blend=("horse",))
    with pytest.raises(AdapEditError, match="request 1: the target prompt has no word 'horse'"):
        pipe.edit_batch([request(), bad])
    with pytest.raises(AdapEditError, match="takes 4 rows, max_rows is 3: raise it"):
        pipe.edit_batch([request()], max_rows=3)


def test_a_batch_of_what_are_no_requests(pipe, untouched):
    with pytest.raises(AdapEditError, match="request 1: got a dict; make a request with EditRequest.make"):
        pipe.edit_batch([request(), {"source_prompt": SOURCE, "target_prompt": TARGET}])
    with pytest.raises(AdapEditError, match="got one request; give a list"):
        pipe.edit_batch(request())


def test_an_empty_batch_is_no_work(pipe, untouched):
    assert pipe.edit_batch([]) == []
