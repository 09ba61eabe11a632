"""The same pictures by diffusers' own pipeline, of the same parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from adapedit import AdapEditPipeline


def diffusers_of(pipe: AdapEditPipeline) -> StableDiffusionPipeline:
    """Diffusers' own pipeline of the parts of ours."""
    theirs = StableDiffusionPipeline(**pipe.model.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def by_diffusers(pipe: AdapEditPipeline, prompt: str, steps: int, **options: Any) -> Image.Image:
    """The picture of one prompt from seed 0."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": steps, "guidance_scale": 7.5, "latents": latents, **options}
    picture = diffusers_of(pipe)(prompt, output_type="np", **options).images[0]
    return Image.fromarray((picture * 255).round().astype(np.uint8))
