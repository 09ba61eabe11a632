"""A pipeline in hand: taken from diffusers as it is, and handled as diffusers' own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.calls import EditWarning
from adapedit.configs import ModelError
from adapedit.inversion import make_inversion_settings
from tests.helpers.edits import SOURCE, TARGET, grey_levels, request
from tests.helpers.methods import plan_of, run
from tests.helpers.pictures import picture
from tests.helpers.tiny_model import save_tiny_xl

STEPS = 4
KINDS = {"sd": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"sd": tiny_folder, "xl": save_tiny_xl(tmp_path_factory.mktemp("xl"))}


def theirs_of(folders: dict[str, Path], kind: str, **options: Any) -> Any:
    """Diffusers' own pipeline of a folder."""
    options |= {"safety_checker": None} if kind == "sd" else {}
    pipe = KINDS[kind].from_pretrained(folders[kind], **options)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_by(theirs: Any, seed: int) -> torch.Tensor:
    return theirs(
        SOURCE,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images


def state_of(pipe: Any) -> dict[str, Any]:
    """All that a pipeline is made of: weights bit for bit, where they lie, their flags, processors and settings."""
    found: dict[str, Any] = {"scheduler": dict(pipe.scheduler.config)}
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            for key, weight in part.state_dict().items():
                found[f"{name}.{key}"] = (weight.clone(), weight.data_ptr(), weight.stride(), weight.dtype)
            flags = [(p.requires_grad, p.grad) for p in part.parameters()]
            found[name] = (id(part), part.training, flags, [m.__class__ for m in part.modules()])
        elif name.startswith("tokenizer"):
            found[name] = (part.backend_tokenizer.padding, part.backend_tokenizer.truncation)
    found["processors"] = {name: id(one) for name, one in pipe.unet.attn_processors.items()}
    return found


def same_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, tuple):
            return all(equal(x, y) for x, y in zip(a, b, strict=True))
        return bool(a == b)

    return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_pipeline_in_hand_is_shared_and_left_as_it_is(folders, kind):
    theirs = theirs_of(folders, kind)
    wanted = latents_by(theirs, 4)
    before = state_of(theirs)
    ours = AdapEditPipeline.from_pipe(theirs)
    assert ours.components["unet"] is theirs.unet and ours.components["vae"] is theirs.vae
    asked = request(seed=4, steps=STEPS).model_copy(update={"guidance_scale": 5.0})
    (outcome,) = run(ours, [plan_of(ours, asked)])
    torch.testing.assert_close(outcome.latents[:1], wanted, atol=1e-4, rtol=1e-5, check_stride=False)
    # Gradients are searched for on the way back, and none is left in the modules.
    inversion = make_inversion_settings("null-text", cache="off", inner_steps=1)
    ours(SOURCE, TARGET, image=picture(), inversion=inversion, num_inference_steps=2)
    assert same_state(before, state_of(theirs))
    assert torch.equal(latents_by(theirs, 4), wanted)


def test_a_pipeline_in_hand_keeps_its_scheduler(folders):
    theirs = theirs_of(folders, "sd")
    theirs.scheduler = PNDMScheduler.from_config(theirs.scheduler.config)
    with pytest.raises(AdapEditError, match="PNDMScheduler .*these work: DDIM"):
        AdapEditPipeline.from_pipe(theirs)
    mine = EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    assert isinstance(AdapEditPipeline.from_pipe(theirs, scheduler=mine).scheduler, EulerDiscreteScheduler)
    assert isinstance(theirs.scheduler, PNDMScheduler)


def test_in_float16_the_vae_of_a_pipeline_in_hand_is_copied_where_it_overflows(folders):
    theirs = theirs_of(folders, "xl", torch_dtype=torch.float16)
    ours = AdapEditPipeline.from_pipe(theirs)
    assert theirs.vae.dtype == torch.float16 and ours.model.vae.dtype == torch.float32


def test_what_is_no_pipeline_in_hand(folders):
    with pytest.raises(ModelError, match="got a str, wanted a diffusers pipeline of Stable Diffusion 1.x"):
        AdapEditPipeline.from_pipe("folder")
    theirs = theirs_of(folders, "sd")
    theirs.unet._hf_hook = object()
    with pytest.raises(ModelError, match="StableDiffusionPipeline are offloaded; give one that lies on one"):
        AdapEditPipeline.from_pipe(theirs)
    other = type("StableDiffusion3Pipeline", (DiffusionPipeline,), {})()
    with pytest.raises(ModelError, match="got a StableDiffusion3Pipeline, wanted"):
        AdapEditPipeline.from_pipe(other)
    with pytest.raises(AdapEditError, match="got a str, wanted a model .*from_pipe"):
        AdapEditPipeline("model")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_components_make_a_pipeline_of_diffusers(folders, kind):
    ours = AdapEditPipeline.from_pretrained(folders[kind])
    theirs = KINDS[kind](**ours.components)
    theirs.set_progress_bar_config(disable=True)
    assert set(ours.components) == set(theirs.components)
    asked = request(seed=4, steps=STEPS).model_copy(update={"guidance_scale": 5.0})
    (outcome,) = run(ours, [plan_of(ours, asked)])
    torch.testing.assert_close(
        outcome.latents[:1], latents_by(theirs, 4), atol=1e-4, rtol=1e-5, check_stride=False
    )


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_to_another_precision_and_back(folders, kind):
    pipe = AdapEditPipeline.from_pretrained(folders[kind])
    before = pipe(SOURCE, TARGET, num_inference_steps=1)
    assert pipe.to(torch.bfloat16) is pipe and pipe.dtype == torch.bfloat16 and pipe.device.type == "cpu"
    half = pipe(SOURCE, TARGET, num_inference_steps=1)
    assert half.made_with["dtype"] == "bfloat16"
    loaded = AdapEditPipeline.from_pretrained(folders[kind], torch_dtype=torch.bfloat16)
    assert grey_levels(half.source_image, loaded(SOURCE, TARGET, num_inference_steps=1).source_image) == 0
    back = pipe.to("cpu", torch.float32)(SOURCE, TARGET, num_inference_steps=1)
    assert back.made_with["dtype"] == "float32"
    assert grey_levels(back.source_image, before.source_image) <= 16  # bfloat16 has rounded the weights
    pipe.to(dtype=torch.float16)
    assert pipe.model.vae.dtype == (torch.float32 if kind == "xl" else torch.float16)
    for wrong, message in (
        ("nonsense", "device 'nonsense' can't be used"),
        (torch.int64, "wanted a floating"),
    ):
        with pytest.raises(ModelError, match=message):
            pipe.to(wrong)


def test_tiles_are_those_of_diffusers(folders):
    pipe = AdapEditPipeline.from_pretrained(folders["sd"])
    latents = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    whole = pipe.model.decode(latents)
    pipe.enable_vae_tiling()
    pipe.enable_vae_slicing()
    theirs = copy.deepcopy(pipe.components["vae"])
    theirs.enable_slicing()
    with torch.inference_mode():
        wanted = (theirs.decode(latents / pipe.model.latent_scale).sample / 2 + 0.5).clamp(0, 1)
    assert np.abs((pipe.model.decode(latents) - wanted).numpy()).max() < 1e-5
    assert np.abs((whole - wanted).numpy()).max() > 1e-3
    pipe.disable_vae_tiling()
    pipe.disable_vae_slicing()
    assert torch.equal(pipe.model.decode(latents), whole)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("enable_model_cpu_offload", "torch_dtype=torch.float16, and edit_batch"),
        ("enable_sequential_cpu_offload", "torch_dtype=torch.float16, and edit_batch"),
        ("load_lora_weights", "from_pipe"),
        ("unet", "components"),
    ],
)
def test_what_is_done_otherwise_here_says_how(pipe, name, wanted):
    assert not hasattr(pipe, name)
    with pytest.raises(AdapEditError, match=f"{name} is not supported, use .*{wanted}"):
        getattr(pipe, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pipe.nonsense


def test_a_safety_checker_is_said_to_be_off(folders, tmp_path):
    theirs = theirs_of(folders, "sd")
    theirs.register_modules(safety_checker=torch.nn.Identity())
    with pytest.warns(EditWarning, match="the safety checker of .* is not run here"):
        ours = AdapEditPipeline.from_pipe(theirs)
    assert ours.model.made_with["safety_checker"] == "off"
    assert "safety_checker" not in AdapEditPipeline.from_pretrained(folders["sd"]).model.made_with
    with pytest.raises(ModelError, match="safety_checker is a Identity, and none is run here"):
        AdapEditPipeline.from_pipe(theirs, safety_checker=torch.nn.Identity())
