"""SDEdit: at its limits, beside image to image of diffusers, and with other schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)

from adapedit import AdapEditPipeline, EditResult
from tests.helpers.edits import SOURCE, TARGET, grey_levels, request
from tests.helpers.methods import context_of, run
from tests.helpers.pictures import request as of_a_picture

STEPS = 10


def edit(pipe: AdapEditPipeline, method: str, **knobs: Any) -> EditResult:
    return pipe.edit_batch([request(method=method, seed=3, **knobs)])[0]


def test_no_strength_is_the_source(pipe: AdapEditPipeline) -> None:
    result = edit(pipe, "sdedit", strength=0.0)
    assert grey_levels(result.source_image, edit(pipe, "plain").source_image) <= 1
    assert grey_levels(result.target_image, result.source_image) == 0


def test_in_between_it_is_neither_picture(pipe: AdapEditPipeline) -> None:
    result, plain = edit(pipe, "sdedit", strength=0.4), edit(pipe, "plain")
    assert grey_levels(result.target_image, plain.target_image) > 1
    assert grey_levels(result.target_image, plain.source_image) > 1


@pytest.mark.parametrize("strength", [0.15, 0.5, 0.75, 1.0])
def test_every_strength_is_that_of_diffusers(
    pipe: AdapEditPipeline, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.75 of 10 steps are 7, 0.15 one; at 1 the picture is noised like any other."""
    context, method = context_of(pipe, request(method="sdedit", steps=STEPS, strength=strength))
    (seen,) = run(pipe, [method.observe(context)])
    plan = method.plan(context, seen)
    assert plan.steps == int(strength * STEPS)
    (edited,) = run(pipe, [plan])
    model = pipe.model
    own = {**model.components, "scheduler": DDIMScheduler.from_config(model.scheduler.config)}
    theirs = StableDiffusionImg2ImgPipeline(**own, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    name = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor"
    monkeypatch.setattr(name, lambda *_, **__: context.latents / context.schedule.init_noise_sigma)
    expected = theirs(
        prompt=TARGET, image=seen.latents, strength=strength, num_inference_steps=STEPS,
        guidance_scale=context.guidance_scale, output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(edited.latents, expected, rtol=1e-4, atol=1e-4)


def test_sdedits_of_different_sources_are_not_mixed_up(pipe: AdapEditPipeline) -> None:
    """Their targets begin alike as far as is known before the first pass: one prompt, one seed."""
    asked = [request(method="sdedit", strength=0.4)]
    asked.append(asked[0].model_copy(update={"source_prompt": "a small dog jumping on the grass"}))
    together = pipe.edit_batch(asked)
    for one, result in zip(asked, together, strict=True):
        (alone,) = pipe.edit_batch([one])
        assert grey_levels(alone.source_image, result.source_image) <= 1
        assert grey_levels(alone.target_image, result.target_image) <= 1
    assert grey_levels(together[0].target_image, together[1].target_image) > 1


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_other_schedulers(pipe: AdapEditPipeline, kind: Any) -> None:
    scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    other = AdapEditPipeline.from_pretrained(pipe.model.name, scheduler=scheduler)
    assert (
        grey_levels(edit(other, "sdedit", strength=0.0).target_image, edit(other, "plain").source_image) <= 1
    )
    context, method = context_of(other, request(method="sdedit", strength=0.6))
    (seen,) = run(other, [method.observe(context)])
    scheduler.set_timesteps(5)
    expected = seen.latents + scheduler.sigmas[2] * context.latents / context.schedule.init_noise_sigma
    torch.testing.assert_close(method.plan(context, seen).latents, expected, rtol=1e-5, atol=1e-5)


def test_a_picture_is_redrawn_under_its_own_prompt(pipe: AdapEditPipeline):
    """The target prompt is the source's: its track is a target's all the same, and begins at noise of its own."""
    method = {"name": "sdedit", "strength": 0.5}
    (result,) = pipe.edit_batch([of_a_picture(method=method, inversion=None, target_prompt=SOURCE)])
    assert grey_levels(result.source_image, result.target_image) > 1
