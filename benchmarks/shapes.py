"""Folders in published shapes, with random weights: as large and as fast as the true ones, and nothing is downloaded.

`--model sd-v1-shape` of the benchmarks makes one for the length of the process.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from adapedit.checkpoints import BUILTIN

STABLE_DIFFUSION = "sd-v1-shape"
TOKENS, VOCABULARY = 77, 49408
NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def folder_of(model: str) -> str:
    """A made folder in place of a shape's name; other names as they are."""
    if model != STABLE_DIFFUSION:
        return model
    folder = tempfile.mkdtemp(prefix="adapedit-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_stable_diffusion(Path(folder))
    return folder


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


def unet(in_channels: int = 4) -> UNet2DConditionModel:
    """The UNet with its own initial weights; in_channels: 8 for InstructPix2Pix."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=in_channels,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def wide_unet() -> UNet2DConditionModel:
    """A UNet as wide and as deep as Stable Diffusion XL's, which takes no added embeddings."""
    cross = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", cross[0], cross[0]),
        up_block_types=(cross[1], cross[1], "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
    )


def save_stable_diffusion(folder: Path) -> dict[str, int]:
    """The five parts with the dimensions of CompVis/stable-diffusion-v1-4. Returns parameters by part."""
    tokenizer = CLIPTokenizer.from_pretrained(BUILTIN / "tokenizer", model_max_length=TOKENS)
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(**NOISE).save_pretrained(folder / "scheduler")
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
    counts["unet"] = save_part(unet, folder / "unet")
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
