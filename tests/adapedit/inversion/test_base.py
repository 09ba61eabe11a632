"""Inversions: the picture comes back as well as each promises; settings, keys and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from adapedit import AdapEditError, AdapEditPipeline, EditRequest
from adapedit.inversion import INVERSIONS, make_inversion_settings
from adapedit.inversion.base import InversionError, backwards, inversion_key
from adapedit.inversion.null_text import _Search
from adapedit_engine.schedule import Schedule
from adapedit_engine.scheduler import denoise
from tests.helpers.pictures import (
    SIDE,
    SOURCE,
    STEPS,
    TARGET,
    before,
    context_of,
    decoded,
    edit,
    far,
    picture,
    pixels,
    request,
    settings,
)
from tests.helpers.tiny_model import save_tiny_model


def lost(pipe: AdapEditPipeline, name: str) -> float:
    """Root mean square distance of the source's last latents to the picture's own."""
    context = context_of(pipe, request(name))
    with pipe.model.runner as runner:
        (outcome,) = denoise([context.plan(("source", "target"))], runner)
    return float((outcome.latents[0] - context.image_latents[0]).square().mean().sqrt())


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> AdapEditPipeline:
    torch.set_num_threads(1)
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), facts={"self_divisor": 1})
    return AdapEditPipeline.from_pretrained(folder)


def test_encoding_is_the_posteriors_mean_and_draws_nothing(pipe: AdapEditPipeline) -> None:
    values = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    one, other = pipe.model.encode(values), pipe.model.encode(values)
    assert torch.equal(one, other) and one.dtype == torch.float32
    expected = pipe.model.vae.encode(values * 2 - 1).latent_dist.mean * pipe.model.vae.config.scaling_factor
    assert torch.allclose(one, expected, atol=1e-5)
    assert torch.equal(pipe.model.encode(values[:1]), one[:1])


def test_the_way_back_undoes_the_way_there() -> None:
    schedule = Schedule.from_scheduler(DDIMScheduler(clip_sample=False), 5)
    back, x, predicted = backwards(schedule), torch.tensor(0.7).double(), torch.randn(5).double()
    y = x
    for step in range(5):
        y = back.sample_weight[step] * y + back.output_weight[step] * predicted[step]
    for step in range(5):
        y = schedule.sample_weight[step] * y + schedule.output_weight[step] * predicted[4 - step]
    assert abs(float(y - x)) < 1e-12


def test_what_is_lost_by_each(pipe: AdapEditPipeline) -> None:
    """DDIM loses most; null-text makes good some of it; direct nothing, to the bit; edit-friendly to rounding."""
    losses = {name: lost(pipe, name) for name in INVERSIONS}
    assert losses["direct"] == 0
    assert losses["edit-friendly"] < 1e-4
    assert losses["edit-friendly"] < losses["null-text"] < 0.9 * losses["ddim"]


def test_the_source_of_direct_is_the_encoded_picture(pipe: AdapEditPipeline) -> None:
    (result,) = edit(pipe, request("direct"))
    context = before(pipe, request("direct"))
    assert np.array_equal(pixels(result.source_image), decoded(pipe, context.image_latents))


@pytest.mark.parametrize("skip", [0.0, 0.5])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_edit_friendly_gives_the_picture_back(pipe: AdapEditPipeline, skip: float, eta: float) -> None:
    asked = request(settings("edit-friendly", skip=skip, eta=eta), target_prompt=SOURCE)
    (result,) = edit(pipe, asked)
    context = before(pipe, asked)
    assert np.abs(pixels(result.source_image) - decoded(pipe, context.image_latents)).max() <= 1
    assert far(result.source_image, result.target_image) <= 1


def test_what_is_skipped_leaves_the_other_noise_as_it_was(pipe: AdapEditPipeline) -> None:
    whole = context_of(pipe, request("edit-friendly"))
    half = context_of(pipe, request(settings("edit-friendly", skip=0.5)))
    assert len(half.schedule) == STEPS // 2
    assert torch.allclose(half.noise, whole.noise[STEPS // 2 :], atol=1e-4)
    other = context_of(pipe, request("edit-friendly", seed=4))
    assert float((other.noise - whole.noise).abs().max()) > 1e-2


def test_direct_that_corrects_targets_gives_the_picture_back_where_nothing_is_edited(
    pipe: AdapEditPipeline,
) -> None:
    asked = [
        request(settings("direct", targets=share), method, target_prompt=SOURCE)
        for share in (0.0, 1.0)
        for method in ("plain", "adapedit")
    ]
    free, _, plain, adapedit = edit(pipe, *asked)
    assert far(plain.source_image, plain.target_image) <= 1
    # An edited row is the source's up to rounding, which a picture that comes back so badly shows.
    assert far(adapedit.source_image, adapedit.target_image) <= 2
    assert far(free.source_image, free.target_image) > 1


def test_the_search_goes_the_same_way_in_half_precision(tiny_folder: Path) -> None:
    """A goal that is nearly reached has gradients that float16 rounds to nothing."""
    moved = []
    for dtype in (torch.float32, torch.float16):
        one = AdapEditPipeline.from_pretrained(tiny_folder, torch_dtype=dtype)
        context = before(one, request("direct"))
        runner: Any = one.model.runner
        search = _Search(settings("null-text", inner_steps=1, learning_rate=0.01), context, runner.controlled)
        first, latents = search.empty.clone(), context.latents
        with runner, torch.no_grad():
            text = search._predict(3, latents, search._source)
            goal = search._next(3, latents, search.empty, text) + 1e-4
            search._improve(3, latents, goal, text)
        moved.append(search.empty - first)
    whole, half = moved
    assert float(whole.abs().mean()) > 5e-3
    assert float(((whole - half).abs() < 1e-3).float().mean()) > 0.98


def test_keys_of_inversions_tell_apart_what_differs(pipe: AdapEditPipeline) -> None:
    context = before(pipe, request("direct"))
    direct, noisy = settings("direct"), settings("edit-friendly")
    keys = {
        inversion_key(context, direct, 0),
        inversion_key(context, noisy, 0),
        inversion_key(context, noisy, 1),
        inversion_key(context, settings("direct", targets=0.5), 0),
        inversion_key(replace(context, guidance_scale=4.0), direct, 0),
        inversion_key(replace(context, image_latents=context.image_latents + 1e-3), direct, 0),
        inversion_key(replace(context, source=context.target), direct, 0),
        inversion_key(replace(context, schedule=context.schedule.tail(1)), direct, 0),
    }
    assert len(keys) == 8
    assert inversion_key(context, direct, 0) == inversion_key(context, direct, 1)


def test_a_saved_edit_can_be_repeated(pipe: AdapEditPipeline, tmp_path: Path) -> None:
    path = tmp_path / "dog.png"
    picture().save(path)
    for image in (str(path), picture()):
        (result,) = edit(pipe, request("edit-friendly", image=image))
        folder = result.save(tmp_path / "out")
        saved = json.loads((folder / "edit.json").read_text())
        assert len(saved["request"]["image"]["sha256"]) == 64
        assert saved["reconstruction_psnr"] == pytest.approx(result.reconstruction_psnr, abs=1e-3)
        again = EditRequest.read(folder)
        assert far(edit(pipe, again)[0].target_image, result.target_image) == 0
    assert (folder / "input.png").is_file() and saved["request"]["image"]["file"] == "input.png"


def test_the_pipeline_takes_a_path_or_a_picture(pipe: AdapEditPipeline, tmp_path: Path) -> None:
    picture().save(tmp_path / "dog.png")
    options: dict[str, Any] = {"num_inference_steps": STEPS, "method": "plain"}
    from_file = pipe(SOURCE, TARGET, image=tmp_path / "dog.png", **options)
    from_python = pipe(SOURCE, TARGET, image=picture(), inversion="direct", **options)
    assert far(from_file.target_image, from_python.target_image) == 0
    assert from_file.request.inversion == settings("direct")


@pytest.mark.parametrize("image", ["missing.png", "."])
def test_pictures_that_cant_be_edited_are_refused_before_any_work(
    pipe: AdapEditPipeline, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.model.runner, "infer", None)
    with pytest.raises(AdapEditError, match=f"image {image}"):
        edit(pipe, request("direct", image=image))


def test_inversions_that_cant_be_done_are_refused_before_any_work(tiny_folder: Path) -> None:
    noisy = AdapEditPipeline.from_pretrained(tiny_folder, scheduler=DDPMScheduler(clip_sample=False))
    for name in ("ddim", "direct", "null-text"):
        with pytest.raises(InversionError, match="use inversion 'edit-friendly'"):
            edit(noisy, request(name))
    (result,) = edit(noisy, request("edit-friendly", target_prompt=SOURCE))
    assert far(result.source_image, result.target_image) <= 1
    back = AdapEditPipeline.from_pretrained(tiny_folder, scheduler=DPMSolverMultistepScheduler())
    for name in INVERSIONS:
        with pytest.raises(InversionError, match="looks back at earlier steps"):
            edit(back, request(name))
    euler = AdapEditPipeline.from_pretrained(tiny_folder, scheduler=EulerDiscreteScheduler())
    with pytest.raises(InversionError, match="no form that adds noise"):
        edit(euler, request("edit-friendly"))
    (direct,) = edit(euler, request("direct"))
    context = before(euler, request("direct"))
    assert np.array_equal(pixels(direct.source_image), decoded(euler, context.image_latents))


def test_settings_are_validated() -> None:
    with pytest.raises(
        AdapEditError,
        match="no inversion 'none'; use one of: ddim, direct, edit-friendly, null-text",
    ):
        make_inversion_settings("none")
    with pytest.raises(AdapEditError, match="inversion direct has no knob 'skip'; its knobs: targets"):
        make_inversion_settings("direct", skip=0.1)
    with pytest.raises(AdapEditError, match="skip is 1.0"):
        make_inversion_settings("edit-friendly", skip=1.0)
    with pytest.raises(AdapEditError, match="inversion 'ddim' wants a picture"):
        request("ddim", image=None)
    assert EditRequest.make(source_prompt="a", target_prompt="b", image="x.png", inversion="ddim").inversion
