"""Random models in the true shapes of Stable Diffusion v1.4 and XL, saved as folders, load and edit."""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from adapedit import AdapEditPipeline, EditRequest
from adapedit.architectures import NOISE, TOKENS
from benchmarks.shapes import save_part, save_stable_diffusion, unet
from tests.helpers.edits import SOURCE, TARGET
from tests.helpers.methods import plan_of, run

SIDE = 256
KINDS: dict[str, tuple[Any, int, int, dict[str, int]]] = {
    "v1": (StableDiffusionPipeline, 16, 512, {"unet": 859_520_964}),
    "xl_base": (
        StableDiffusionXLPipeline,
        70,
        1024,
        {"unet": 2_567_463_684, "text_encoder_2": 694_659_840},
    ),
}
"""Of published architectures: diffusers' pipeline, layers of cross-attention, side in pixels, numbers of weights."""


@pytest.mark.slow
def test_two_steps_of_an_edit(tmp_path):
    """About 6 GiB of memory and 2 GB of disk. 256 pixels: a quarter of the work, and the model is the same."""
    torch.set_num_threads(2)
    start = time.perf_counter()
    counts = save_stable_diffusion(tmp_path)
    gc.collect()
    assert counts == {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}
    made = time.perf_counter()
    pipe = AdapEditPipeline.from_pretrained(tmp_path)
    assert (pipe.model.latent_size, pipe.model.vae_factor, pipe.model.max_tokens) == (64, 8, TOKENS)
    assert len(pipe.model.runner.specs.cross_layers) == 16
    loaded = time.perf_counter()
    result = pipe(SOURCE, TARGET, num_inference_steps=2, height=SIDE, width=SIDE)
    edited = time.perf_counter()
    assert result.source_image.size == result.target_image.size == (SIDE, SIDE)
    assert result.target_maps.shape == (SIDE // 16, SIDE // 16, TOKENS)
    assert np.isfinite(result.target_maps).all() and np.asarray(result.target_image).std() > 0
    assert result.request.guidance_scale == 7.5
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"made and saved {made - start:.0f} s, loaded {loaded - made:.0f} s, edited {edited - loaded:.0f} s "
        f"{result.timings}, peak {peak:.1f} GiB",
        file=sys.stderr,
    )


@pytest.mark.slow
def test_a_step_of_an_instruct_pix2pix_checkpoint(tmp_path):
    """The dimensions and the scheduler of timbrooks/instruct-pix2pix, in bfloat16: about 6 GiB, 4 GB of disk."""
    torch.set_num_threads(2)
    editor = tmp_path / "editor"
    save_stable_diffusion(editor)
    assert save_part(lambda: unet(8), editor / "unet") == 859_520_964 + 4 * 320 * 9
    noise = {name: NOISE[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    EulerAncestralDiscreteScheduler(**noise).save_pretrained(editor / "scheduler")
    (editor / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionInstructPix2PixPipeline"})
    )
    gc.collect()
    pipe = AdapEditPipeline.from_pretrained(editor, torch_dtype=torch.bfloat16)
    assert pipe.model.runner.specs.in_channels == 8
    knobs = {"image": Image.new("RGB", (SIDE // 2, SIDE // 2), "red"), "instruction": "make the dog sit"}
    size = {"num_inference_steps": 1, "height": SIDE // 2, "width": SIDE // 2}
    result = pipe(SOURCE, TARGET, method="instruct-pix2pix", **size, **knobs)
    assert result.request.method.text_guidance == 7.5 and result.request.method.image_guidance == 1.5
    moved = np.asarray(result.source_image, float) - np.asarray(result.target_image)
    assert np.abs(moved).max() > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_diffusers(kind, tmp_path):
    """Two rows of 512 pixels in float32, of float16 weights. SDXL: about 16 GiB of memory and 7 GB of disk."""
    torch.set_num_threads(2)
    pipeline, layers, side, counts = KINDS[kind]
    assert save_stable_diffusion(tmp_path, kind).items() >= counts.items()
    gc.collect()
    scheduler = DDIMScheduler(**{**NOISE, "timestep_spacing": "trailing"})
    pipe = AdapEditPipeline.from_pretrained(tmp_path, scheduler=scheduler)
    specs = pipe.model.runner.specs
    assert (len(specs.cross_layers), pipe.model.side) == (layers, side)
    options = {"num_inference_steps": 1, "guidance_scale": 0.0, "height": 512, "width": 512}
    asked = EditRequest.make(source_prompt=SOURCE, target_prompt=TARGET, seed=3, **options)
    start = time.perf_counter()
    plan = plan_of(pipe, asked)
    (outcome,) = run(pipe, [plan])
    seconds = time.perf_counter() - start
    assert plan.rows == 2
    theirs = pipeline(**pipe.components)
    drawn = torch.Generator().manual_seed(3)
    wanted = theirs(SOURCE, generator=drawn, output_type="latent", **options).images
    found = float((outcome.latents[:1] - wanted).abs().max())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{kind}: latents of up to {wanted.abs().max():.1f} differ by {found:.1e}, "
        f"{seconds:.0f} s, peak {peak:.1f} GiB",
        file=sys.stderr,
    )
    assert found <= 1e-4
    assert not torch.equal(outcome.latents[0], outcome.latents[1])
