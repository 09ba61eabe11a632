"""Several edits in a call, and diffusers' habits: each held to `StableDiffusionPipeline` on the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler

from adapedit import AdapEditError, AdapEditPipeline, EditWarning
from adapedit.result import EditResult
from tests.helpers.diffusers import diffusers_of
from tests.helpers.edits import SOURCE, TARGET, grey_levels

STEPS = 4
"""Of which the stride between timesteps is whole: diffusers rounds others down."""
NEAR = 1e-4
PROMPTS = [SOURCE, "a cat on the road"]
TARGETS = [TARGET, "a dog on the road"]


def generator(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def theirs(pipe: AdapEditPipeline, prompt: Any = SOURCE, **options: Any) -> torch.Tensor:
    """Latents [K, C, h, w] of diffusers' own pipeline."""
    return diffusers_of(pipe)(
        prompt, num_inference_steps=STEPS, output_type="latent", **options
    ).images.clone()


def ours(pipe: AdapEditPipeline, source: Any = SOURCE, target: Any = TARGET, **options: Any) -> Any:
    return pipe(source, target, num_inference_steps=STEPS, **options)


def apart(results: Any, latents: torch.Tensor) -> float:
    """The largest difference of the sources' latents, over what the latents are like."""
    given = [results] if isinstance(results, EditResult) else results
    assert len(given) == len(latents)
    far = (torch.stack([result.latents[0] for result in given]) - latents).abs().max()
    return float(far / latents.square().mean().sqrt())


@pytest.fixture(params=["ddim", "ddpm", "euler-ancestral"])
def sampled(request: pytest.FixtureRequest, pipe: AdapEditPipeline) -> Iterator[AdapEditPipeline]:
    """Of three schedulers, two of which draw at every step."""
    noise = {
        key: pipe.scheduler.config[key]
        for key in ("beta_start", "beta_end", "beta_schedule", "timestep_spacing")
    }
    kinds = {"ddpm": DDPMScheduler, "euler-ancestral": EulerAncestralDiscreteScheduler}
    found = AdapEditPipeline(pipe.model)
    if request.param != "ddim":
        more = {"clip_sample": False} if request.param == "ddpm" else {}
        found.scheduler = kinds[request.param](**noise, steps_offset=1, **more)
    yield found


@pytest.mark.parametrize("method", ["adapedit", "prompt-to-prompt", "masactrl", "plain"])
@pytest.mark.parametrize(
    "more", [{}, {"negative_prompt": "a cat"}, {"height": 24, "width": 16}, {"guidance_scale": 1.0}]
)
def test_the_source_of_an_edit_is_what_diffusers_makes(pipe, method, more):
    result = ours(pipe, method=method, generator=generator(), **more)
    wanted = theirs(pipe, generator=generator(), **{"guidance_scale": 7.5, **more})
    assert apart(result, wanted) < NEAR


def test_one_generator_is_drawn_from_as_in_diffusers(sampled):
    assert apart(ours(sampled, generator=generator()), theirs(sampled, generator=generator())) < NEAR


@pytest.mark.filterwarnings("ignore::adapedit.EditWarning")
def test_several_pictures_come_out_of_one_generator(sampled):
    results = ours(sampled, generator=generator(), num_images_per_prompt=3)
    wanted = theirs(sampled, generator=generator(), num_images_per_prompt=3)
    assert apart(results, wanted) < NEAR


def test_or_each_out_of_one_of_its_own(sampled):
    own = [[generator(seed) for seed in (1, 2, 3, 4)] for _ in range(2)]
    results = ours(sampled, PROMPTS, TARGETS, generator=own[0], num_images_per_prompt=2)
    wanted = theirs(sampled, PROMPTS, generator=own[1], num_images_per_prompt=2)
    assert apart(results, wanted) < NEAR
    assert [result.request.seed for result in results] == [1, 2, 3, 4]
    assert [result.request.source_prompt for result in results] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2


@pytest.mark.filterwarnings("ignore::adapedit.EditWarning")
def test_prompts_may_be_lists(pipe):
    negative = ["a cat", "a dog"]
    results = ours(pipe, PROMPTS, TARGETS, negative_prompt=negative, generator=generator())
    wanted = theirs(pipe, PROMPTS, negative_prompt=negative, generator=generator())
    assert apart(results, wanted) < NEAR
    assert [result.request.target_prompt for result in results] == TARGETS
    one = ours(pipe, SOURCE, [TARGET, SOURCE], seed=4)
    assert apart(one, theirs(pipe, generator=generator()).expand(2, -1, -1, -1)) < NEAR
    assert isinstance(ours(pipe, [SOURCE], TARGET), list)


def test_latents_that_a_callback_changes_are_gone_on_from_as_in_diffusers(pipe):
    told: list[tuple[Any, int, float, tuple[int, ...]]] = []

    def halve(
        given: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        told.append((given, step, float(timestep), tuple(tensors["latents"].shape)))
        tensors["latents"] = tensors["latents"] * (0.5 if step == 1 else 1.0)
        return tensors

    result = ours(pipe, generator=generator(), callback_on_step_end=halve)
    mine, told = told, []
    wanted = theirs(pipe, generator=generator(), callback_on_step_end=halve)
    assert apart(result, wanted) < NEAR < apart(result, theirs(pipe, generator=generator()))
    assert [one[1:3] for one in mine] == [one[1:3] for one in told]
    assert {one[0] for one in mine} == {pipe} and {one[3] for one in mine} == {(2, 4, 8, 8)}


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_callback_interrupts_as_in_diffusers(pipe, step):
    def stop(given: Any, at: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given._interrupt = at == step
        return tensors

    result = ours(pipe, generator=generator(), callback_on_step_end=stop)
    assert apart(result, theirs(pipe, generator=generator(), callback_on_step_end=stop)) < NEAR
    whole = ours(pipe, generator=generator())
    assert (grey_levels(result.source_image, whole.source_image) == 0) == (step == 3)
    several = ours(pipe, seeds=[4, 5], callback_on_step_end=stop)
    assert apart(several[:1], result.latents[:1]) < NEAR


def test_each_seed_is_an_edit_that_can_be_repeated(pipe):
    results = ours(pipe, seeds=[3, 1, 4])
    assert [result.request.seed for result in results] == [3, 1, 4]
    for result in results:
        assert grey_levels(result.target_image, pipe.edit_batch([result.request])[0].target_image) <= 1
    following = ours(pipe, seed=3, num_images_per_prompt=2)
    assert [result.request.seed for result in following] == [3, 4]
    assert grey_levels(following[0].target_image, results[0].target_image) <= 1
    assert isinstance(ours(pipe, seeds=range(1)), list) and isinstance(ours(pipe, seed=0), EditResult)


def test_several_seeds_encode_their_prompts_once(pipe, monkeypatch):
    encoded: list[torch.Tensor] = []
    encode = type(pipe.model).encode_ids

    def note(self: Any, ids: torch.Tensor) -> torch.Tensor:
        encoded.append(ids)
        return encode(self, ids)

    monkeypatch.setattr(type(pipe.model), "encode_ids", note)
    ours(pipe, seeds=[0, 1, 2])
    assert len(encoded) == 3


@pytest.mark.parametrize("used", [True, False])
def test_what_no_seed_repeats_is_said(pipe, used):
    given, more = generator(), {}
    if used:
        torch.randn(3, generator=given)
    else:
        more = {"num_images_per_prompt": 2}
    with pytest.warns(EditWarning, match="so no seed repeats this picture: give seed= or seeds=") as seen:
        ours(pipe, generator=given, **more)
    assert seen[0].filename == __file__


def test_a_bar_is_shown_where_one_was_asked_for(pipe, capsys):
    shown = AdapEditPipeline(pipe.model)
    ours(shown)
    assert capsys.readouterr().err == ""
    shown.set_progress_bar_config(ncols=60)
    ours(shown, seeds=[0, 1])
    error = capsys.readouterr().err
    assert "Denoising: 100%" in error and f"{2 * STEPS}/{2 * STEPS}" in error
    shown.set_progress_bar_config(disable=True)
    ours(shown)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 1, "seeds": [1]}, "got both seed and seeds; give one"),
        ({"seeds": [1], "generator": generator()}, "got both seeds and generator"),
        ({"seeds": 3}, r"seeds is 3, wanted a list, such as \[0, 1, 2\]"),
        ({"seeds": []}, r"seeds is \[\], wanted a list"),
        ({"seeds": [True]}, "seed is True: a number was wanted"),
        ({"seeds": [1, 2], "num_images_per_prompt": 2}, "each seed is a picture, so leave that out"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0, wanted a whole number"),
        (
            {"generator": [generator()], "num_images_per_prompt": 2},
            "got 1 generators for 2 pictures; give one for each",
        ),
        ({"generator": [3]}, "generator is 3, wanted a torch.Generator"),
        (
            {"source_prompt": PROMPTS, "target_prompt": TARGETS * 2},
            "source_prompt has 2 texts, target_prompt has 4",
        ),
        ({"source_prompt": []}, "source_prompt is an empty list; give a text for each edit"),
        ({"target_prompt": [TARGET, 3]}, "target_prompt is 3: "),
        ({"output_type": "np"}, "output_type is not supported, use .*numpy.asarray.*latents"),
        ({"return_dict": False}, "return_dict is not supported, use the result's source_image"),
        (
            {"cross_attention_kwargs": {"scale": 0.5}},
            r"use a checkpoint whose LoRA was merged .*fuse_lora\(lora_scale",
        ),
        (
            {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            "use callback_on_step_end, which is given latents",
        ),
        ({"latents": torch.zeros(1)}, "latents is not supported, use seed or generator"),
    ],
)
def test_what_does_not_fit_is_refused_by_a_line_that_says_how(pipe, options, said):
    with pytest.raises(AdapEditError, match=said) as error:
        pipe(**{"source_prompt": SOURCE, "target_prompt": TARGET, **options})
    assert "\n" not in str(error.value)
