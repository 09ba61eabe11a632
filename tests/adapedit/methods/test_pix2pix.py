"""InstructPix2Pix: step by step what diffusers does, its guidance at its limits, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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

from adapedit import AdapEditPipeline, EditRequest
from adapedit_engine.plan import EditPlan
from adapedit_kernels.errors import AdapEditError
from tests.helpers.edits import SOURCE, STEPS, TARGET, grey_levels
from tests.helpers.edits import request as of_prompts
from tests.helpers.methods import plan_of, run
from tests.helpers.pictures import picture
from tests.helpers.tiny_model import save_tiny_model

COMMAND = "a red dog sitting"
METHOD = "instruct-pix2pix"
UNET = {"in_channels": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("editor"), unet=UNET)


@pytest.fixture(scope="module")
def editor(folder: Path) -> AdapEditPipeline:
    loaded = AdapEditPipeline.from_pretrained(folder)
    sharpen(loaded.model.runner.controlled.unet)  # type: ignore[attr-defined]
    return loaded


def sharpen(unet: Any) -> Any:
    """Random weights hardly look at their text or at their picture; these do."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("attn2.to_v.weight", "conv_in.weight")):
                parameter.mul_(4)
    return unet


def request(seed: int = 0, steps: int = STEPS, image: Any = None, **knobs: Any) -> EditRequest:
    return EditRequest.make(
        source_prompt=SOURCE, target_prompt=TARGET, seed=seed, num_inference_steps=steps,
        method={"name": METHOD, **knobs}, image=picture() if image is None else image,
    )  # fmt: skip


def latents_of(pipe: AdapEditPipeline, plan: EditPlan) -> torch.Tensor:
    return run(pipe, [plan])[0].latents


def of_diffusers(folder: Path) -> StableDiffusionInstructPix2PixPipeline:
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=sharpen(UNet2DConditionModel.from_pretrained(folder, subfolder="unet")),
        scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("text", "image"), [(7.5, 1.5), (2.0, 1.0), (3.0, 4.0), (1.0, 2.0), (4.0, 0.5)])
def test_every_step_is_that_of_diffusers(
    editor: AdapEditPipeline, folder: Path, text: float, image: float
) -> None:
    plan = plan_of(editor, request(instruction=COMMAND, text_guidance=text, image_guidance=image))
    steps: list[torch.Tensor] = []

    def keep(_pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(values["latents"].clone())
        return values

    of_diffusers(folder)(
        COMMAND, image=plan.conditioning["channels"][0, -1:], latents=plan.latents, num_inference_steps=STEPS,
        guidance_scale=text, image_guidance_scale=image, output_type="latent", callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents"],
    )  # fmt: skip
    assert len(steps) == STEPS
    torch.testing.assert_close(latents_of(editor, plan), steps[-1], rtol=1e-4, atol=1e-4)


def test_diffusers_encodes_the_picture_as_it_is_given_here(editor: AdapEditPipeline, folder: Path) -> None:
    """Pixels that diffusers encodes are the latents that the plan gets: the mode, not scaled."""
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None].float() / 255
    theirs = of_diffusers(folder).prepare_image_latents(
        pixels * 2 - 1, 1, 1, torch.float32, torch.device("cpu"), False
    )
    channels = plan_of(editor, request()).conditioning["channels"]
    assert channels.shape == (1, 3, 4, 8, 8)
    torch.testing.assert_close(channels[0, 1:2], theirs)
    torch.testing.assert_close(channels[0, 2:3], theirs)
    assert not channels[0, 0].any()


def test_without_guidance_the_row_with_both_is_the_edit(editor: AdapEditPipeline) -> None:
    both = latents_of(editor, plan_of(editor, request(text_guidance=1.0, image_guidance=1.0)))
    guided = latents_of(editor, plan_of(editor, request()))
    alone = latents_of(editor, plan_of(editor, request()).without_guidance())
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)
    assert (guided - alone).abs().max() > 1e-2


def test_the_instruction_stands_for_the_target_prompt(editor: AdapEditPipeline) -> None:
    named, own = editor.edit_batch([request(instruction=TARGET), request()])
    (other,) = editor.edit_batch([request(instruction="a blue cat")])
    assert grey_levels(named.target_image, own.target_image) <= 1
    assert grey_levels(other.target_image, own.target_image) > 1
    # The maps of an instruction are not those of the target's words, and nothing looked at the source's.
    assert own.target_maps.sum() > 0 and not named.target_maps.any() and not own.source_maps.any()


def test_the_source_is_the_picture(editor: AdapEditPipeline) -> None:
    (edited,) = editor.edit_batch([request()])
    (other,) = editor.edit_batch([request(seed=3, instruction=COMMAND)])
    assert edited.reconstruction_psnr is not None
    assert grey_levels(edited.source_image, other.source_image) == 0
    assert grey_levels(edited.target_image, edited.source_image) > 1


def test_together_and_in_a_server_it_is_what_it_is_alone(editor: AdapEditPipeline) -> None:
    requests = [request(), request(instruction=COMMAND, seed=4, steps=4), request(seed=5)]
    together = editor.edit_batch(requests)
    with editor.serve() as server:
        served = [future.result(timeout=120) for future in [server.submit(one) for one in requests]]
    for asked, *found in zip(requests, together, served, strict=True):
        (alone,) = editor.edit_batch([asked])
        assert all(grey_levels(one.target_image, alone.target_image) <= 1 for one in found)


def test_schedulers_that_add_noise(folder: Path) -> None:
    euler = EulerAncestralDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    pipe = AdapEditPipeline.from_pretrained(folder, scheduler=euler)
    one, other = (pipe.edit_batch([request()])[0] for _ in range(2))
    assert grey_levels(one.target_image, other.target_image) == 0


def test_other_models_and_edits_without_a_picture_are_refused(
    pipe: AdapEditPipeline, editor: AdapEditPipeline
) -> None:
    with pytest.raises(AdapEditError, match="takes 4 channels, instruct-pix2pix wants 8: load its own"):
        pipe.edit_batch([request()])
    with pytest.raises(AdapEditError, match="give it as image"):
        editor.edit_batch([of_prompts(method=METHOD)])
    with pytest.raises(AdapEditError, match="takes 8 channels, .* use method 'instruct-pix2pix'"):
        editor.edit_batch([of_prompts()])


def test_an_instruction_that_is_too_long_is_refused(editor: AdapEditPipeline) -> None:
    with pytest.raises(AdapEditError, match="instruction"):
        editor.edit_batch([request(instruction="a red dog " * 20)])
