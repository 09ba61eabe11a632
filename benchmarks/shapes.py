"""Folders in published shapes, with random weights: as large and as fast as the true ones, and nothing is downloaded.

`--model sd-v1-shape` of the benchmarks makes one for the length of the process.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from adapedit.architectures import ARCHITECTURES, TOKENS, write_architecture
from adapedit.checkpoints import BUILTIN

STABLE_DIFFUSION = "sd-v1-shape"


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
        for place, parameter in enumerate(part.parameters()):
            if parameter.ndim > 1:
                # Each begins elsewhere: a product of many equal matrices makes thousands of times more of rounding.
                own = noise.roll(-7919 * place)
                strips = own.repeat(parameter.numel() // len(own) + 1)[: parameter.numel()]
                parameter.copy_(strips.view(parameter.shape) * parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.0)
        for name, parameter in part.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
    part.save_pretrained(folder)
    return sum(parameter.numel() for parameter in part.parameters())


def unet(in_channels: int = 4) -> UNet2DConditionModel:
    """The UNet of SD v1.4 with its own initial weights; in_channels: 8 for InstructPix2Pix."""
    return UNet2DConditionModel.from_config({**ARCHITECTURES["v1"]["unet"], "in_channels": in_channels})


def save_stable_diffusion(folder: Path, kind: str = "v1") -> dict[str, int]:
    """A whole checkpoint of a published architecture, by its name in `ARCHITECTURES`. Returns parameters by part."""
    write_architecture(kind, folder)
    parts, made = ARCHITECTURES[kind], {}
    for part, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!"))[
        : 1 + ("text_encoder_2" in parts)
    ]:
        tokenizer = CLIPTokenizer.from_pretrained(
            BUILTIN / "tokenizer", model_max_length=TOKENS, pad_token=padding
        )
        tokenizer.save_pretrained(folder / part)
    for part in ("text_encoder", "text_encoder_2"):
        if part in parts:
            encoder: Any = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            made[part] = partial(encoder, CLIPTextConfig(**{**parts[part], **ends}))
    made["unet"] = partial(UNet2DConditionModel.from_config, parts["unet"])
    made["vae"] = partial(AutoencoderKL.from_config, parts["vae"])
    return {part: save_part(make, folder / part) for part, make in made.items()}
