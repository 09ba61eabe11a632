"""InstructPix2Pix: step by step what diffusers does, its guidance at its limits, and beside other methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from adapedit import AdapEditPipeline
from adapedit.checkpoint import ModelError
from adapedit.methods.registry import make_method
from adapedit.prepare import complete, make_context
from adapedit_engine.denoising import denoise
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_kernels.errors import AdapEditError
from tests.helpers.edits import SOURCE, TARGET, grey_levels, request
from tests.helpers.tiny_editor import save_tiny_editor

COMMAND = "a red dog sitting"
METHOD = "instruct-pix2pix"


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_editor(tmp_path_factory.mktemp("editor")))


def passes(pipe: AdapEditPipeline, **knobs: Any) -> tuple[EditOutcome, EditOutcome, EditPlan]:
    """Outcomes of the source and of the edit, and the plan of the latter."""
    asked = complete(request(method=METHOD, **knobs), pipe.model)
    context, method = make_context(asked, pipe.model), make_method(asked.method, pipe.model.facts)
    with pipe.model.runner as runner:
        observe = method.observe(context)
        assert observe is not None
        (seen,) = denoise([observe], runner)
    plan, other = method.plan(context, seen), method.runner(pipe.model)
    assert other is not None
    with other:
        (edited,) = denoise([plan], other)
    return seen, edited, plan


def of_diffusers(folder: Path, editor: str) -> StableDiffusionInstructPix2PixPipeline:
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(editor, subfolder="unet"),
        scheduler=DDIMScheduler.from_pretrained(editor, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("text", "image"), [(7.5, 1.5), (2.0, 1.0), (3.0, 4.0)])
def test_every_step_is_that_of_diffusers(
    pipe: AdapEditPipeline, tiny_folder: Path, editor: str, text: float, image: float
) -> None:
    knobs = {"instruction": COMMAND, "checkpoint": editor}
    seen, edited, plan = passes(pipe, text_guidance=text, image_guidance=image, **knobs)
    picture = seen.latents / AutoencoderKL.load_config(tiny_folder, subfolder="vae")["scaling_factor"]
    steps: list[torch.Tensor] = []

    def keep(_pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(values["latents"].clone())
        return values

    of_diffusers(tiny_folder, editor)(
        COMMAND, image=picture, latents=plan.latents, num_inference_steps=5, guidance_scale=text,
        image_guidance_scale=image, output_type="latent", callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents"],
    )  # fmt: skip
    assert len(steps) == 5
    torch.testing.assert_close(edited.latents, steps[-1], rtol=1e-4, atol=1e-4)
    assert (edited.latents - seen.latents).abs().max() > 0.1


def test_diffusers_encodes_the_picture_as_it_is_given_here(
    pipe: AdapEditPipeline, tiny_folder: Path, editor: str
) -> None:
    """Pixels that diffusers encodes are the latents that the plan gets: the mode, not scaled."""
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = of_diffusers(tiny_folder, editor).prepare_image_latents(
        pixels * 2 - 1, 1, 1, torch.float32, torch.device("cpu"), False
    )
    asked = complete(request(method=METHOD, checkpoint=editor), pipe.model)
    context, method = make_context(asked, pipe.model), make_method(asked.method, pipe.model.facts)
    clean = pipe.model.encode(pixels)
    seen = EditOutcome(
        latents=clean, maps=None, features=None, word_steps=None, spatial_map=None, steps=5, seconds=0.0
    )
    channels = method.plan(context, seen).conditioning_channels
    assert channels is not None and channels.shape == (1, 3, 4, 8, 8)
    torch.testing.assert_close(channels[0, 1:2], theirs)
    torch.testing.assert_close(channels[0, 2:3], theirs)
    assert not channels[0, 0].any()


def test_without_guidance_the_row_with_both_is_the_edit(pipe: AdapEditPipeline, editor: str) -> None:
    _, both, _ = passes(pipe, checkpoint=editor, text_guidance=1.0, image_guidance=1.0)
    asked = complete(request(method=METHOD, checkpoint=editor), pipe.model).model_copy(
        update={"guidance_until": 0.0}
    )
    context, method = make_context(asked, pipe.model), make_method(asked.method, pipe.model.facts)
    seen, guided, _ = passes(pipe, checkpoint=editor)
    with method.runner(pipe.model) as runner:  # type: ignore[union-attr]
        (alone,) = denoise([method.plan(context, seen)], runner)
    torch.testing.assert_close(both.latents, alone.latents, rtol=1e-4, atol=1e-4)
    assert (guided.latents - alone.latents).abs().max() > 1e-2


def test_without_either_scale_neither_text_nor_picture_counts(pipe: AdapEditPipeline, editor: str) -> None:
    scales = {"checkpoint": editor, "text_guidance": 0.0, "image_guidance": 0.0}
    _, one, _ = passes(pipe, **scales)
    _, other, _ = passes(pipe, instruction="a blue cat", **scales)
    torch.testing.assert_close(one.latents, other.latents)
    _, picture, _ = passes(pipe, **{**scales, "image_guidance": 1.0})
    assert (picture.latents - one.latents).abs().max() > 1e-2


def test_the_instruction_stands_for_the_target_prompt(pipe: AdapEditPipeline, editor: str) -> None:
    named, own = pipe.edit_batch(
        [
            request(method=METHOD, checkpoint=editor, instruction=TARGET),
            request(method=METHOD, checkpoint=editor),
        ]
    )
    other = pipe.edit_batch([request(method=METHOD, checkpoint=editor, instruction="a blue cat")])[0]
    assert grey_levels(named.target_image, own.target_image) <= 1
    assert grey_levels(other.target_image, own.target_image) > 1
    # The maps of an instruction are not those of the target's words.
    assert own.target_maps.sum() > 0 and not named.target_maps.any()


def test_the_source_is_the_models_own(pipe: AdapEditPipeline, editor: str) -> None:
    edited = pipe.edit_batch([request(method=METHOD, checkpoint=editor)])[0]
    plain = pipe.edit_batch([request(method="plain")])[0]
    assert grey_levels(edited.source_image, plain.source_image) <= 1
    assert grey_levels(edited.target_image, plain.source_image) > 1


def test_beside_other_methods_it_is_what_it_is_alone(pipe: AdapEditPipeline, editor: str) -> None:
    requests = [
        request(method="adapedit"),
        request(method=METHOD, checkpoint=editor),
        request(method="plain", steps=3),
        request(method=METHOD, checkpoint=editor, instruction=COMMAND, seed=4, steps=4),
        request(SOURCE, "a blue dog standing on the grass", method="sdedit"),
    ]
    calls: list[tuple[int, int]] = []
    together = pipe.edit_batch(requests, callback=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == len(calls)
    for asked, found in zip(requests, together, strict=True):
        (alone,) = pipe.edit_batch([asked])
        assert grey_levels(found.target_image, alone.target_image) <= 1
        assert grey_levels(found.source_image, alone.source_image) <= 1


def test_the_server_runs_it_beside_other_methods(pipe: AdapEditPipeline, editor: str) -> None:
    requests = [request(method=method) for method in ("adapedit", "plain", "sdedit")]
    requests += [request(method=METHOD, checkpoint=editor, seed=seed) for seed in (0, 0, 5)]
    with pipe.serve() as server:
        served = [future.result(timeout=120) for future in [server.submit(one) for one in requests]]
    for asked, found in zip(requests, served, strict=True):
        (alone,) = pipe.edit_batch([asked])
        assert grey_levels(found.target_image, alone.target_image) <= 1


def test_schedulers_that_add_noise(tiny_folder: Path, editor: str) -> None:
    euler = EulerAncestralDiscreteScheduler.from_pretrained(tiny_folder, subfolder="scheduler")
    pipe = AdapEditPipeline.from_pretrained(tiny_folder, scheduler=euler)
    one, other = (pipe.edit_batch([request(method=METHOD, checkpoint=editor)])[0] for _ in range(2))
    assert grey_levels(one.target_image, other.target_image) == 0


def test_it_is_loaded_once(pipe: AdapEditPipeline, editor: str) -> None:
    method = make_method(request(method=METHOD, checkpoint=editor).method, pipe.model.facts)
    assert method.runner(pipe.model) is method.runner(pipe.model)


def test_a_real_picture_is_edited(pipe: AdapEditPipeline, editor: str) -> None:
    picture = pipe.edit_batch([request(method="plain", seed=9)])[0].source_image
    found = pipe(SOURCE, TARGET, image=picture, method=METHOD, checkpoint=editor, num_inference_steps=5)
    drawn = pipe(SOURCE, TARGET, method=METHOD, checkpoint=editor, num_inference_steps=5)
    assert found.request.inversion is None
    assert grey_levels(found.target_image, drawn.target_image) > 1


@pytest.mark.parametrize(
    ("unet", "scheduler", "said"),
    [
        ({"in_channels": 4}, {}, "has in_channels 4, wanted 8"),
        ({"cross_attention_dim": 16}, {}, "has cross_attention_dim 16, wanted 32"),
        ({}, {"prediction_type": "v_prediction"}, "has prediction_type 'v_prediction'"),
        ({}, {"beta_end": 0.02}, "has beta_end 0.02"),
    ],
)
def test_a_unet_of_another_model_is_refused(
    pipe: AdapEditPipeline, tmp_path: Path, unet: dict[str, Any], scheduler: dict[str, Any], said: str
) -> None:
    folder = save_tiny_editor(tmp_path / "other", unet=unet, **scheduler)
    refused(pipe, str(folder), said)


def test_no_checkpoint_and_no_such_checkpoint_are_said(pipe: AdapEditPipeline, tmp_path: Path) -> None:
    refused(pipe, None, "with the knob checkpoint")
    refused(pipe, str(tmp_path / "absent"), "there is no model at")
    refused(pipe, str(tmp_path), "is no Stable Diffusion checkpoint in the diffusers layout")


def test_the_built_in_unet_goes_with_no_other_model(pipe: AdapEditPipeline) -> None:
    refused(pipe, "builtin", "checkpoint 'builtin' has")


def refused(pipe: AdapEditPipeline, checkpoint: str | None, said: str) -> None:
    before = dict(pipe.model.editors)
    with pytest.raises(ModelError, match=said.replace("(", r"\(")) as error:
        pipe.edit_batch([request(method=METHOD, checkpoint=checkpoint)])
    assert "\n" not in str(error.value)
    assert pipe.model.editors == before


def test_an_instruction_that_is_too_long_is_refused(pipe: AdapEditPipeline, editor: str) -> None:
    with pytest.raises(AdapEditError, match="instruction"):
        pipe.edit_batch([request(method=METHOD, checkpoint=editor, instruction="a red dog " * 20)])
