"""A random model in the true shape of Stable Diffusion v1.4, saved as a folder, loads and edits."""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from adapedit import AdapEditPipeline
from tests.helpers.edits import SOURCE, TARGET
from tests.helpers.tiny_model import SCHEDULER
from tests.helpers.tokenizers import small_clip_tokenizer

TOKENS = 77
VOCABULARY = 49408
SIDE = 256


def save_part(make: Callable[[], Any], folder: Path) -> int:
    """Write a module in float16 with random weights, and return its number of parameters.

    The library's own initialisation of a billion weights takes longer than the edit; here one strip of noise is laid
    over all of them, scaled so that layers keep the size of what passes through.
    """
    with torch.device("meta"):
        part = make()
    part = part.half().to_empty(device="cpu")
    noise = torch.randn(2**20 + 7, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).half()
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.ndim > 1:
                strips = noise.repeat(parameter.numel() // len(noise) + 1)[: parameter.numel()]
                parameter.copy_(strips.view(parameter.shape) * parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.0)
        for name, parameter in part.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
    part.save_pretrained(folder)
    return sum(parameter.numel() for parameter in part.parameters())


def save_unet(folder: Path, in_channels: int = 4) -> int:
    return save_part(
        lambda: UNet2DConditionModel(
            sample_size=64,
            in_channels=in_channels,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        ),
        folder / "unet",
    )


def save_stable_diffusion(folder: Path) -> dict[str, int]:
    """The five parts with the dimensions of CompVis/stable-diffusion-v1-4. Returns parameters by part."""
    tokenizer = small_clip_tokenizer(max_length=TOKENS)
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    counts = {"text_encoder": save_part(lambda: CLIPTextModel(text), folder / "text_encoder")}
    counts["unet"] = save_unet(folder)
    counts["vae"] = save_part(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
            scaling_factor=0.18215,
        ),
        folder / "vae",
    )
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return counts


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
    assert save_unet(editor, in_channels=8) == 859_520_964 + 4 * 320 * 9
    noise: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
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
