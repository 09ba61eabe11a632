"""The plain loop: a diffusers UNet with its own processors, guidance and scheduler steps, as its pipelines run it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def as_loaded(unet: Any) -> Any:
    """A copy of a UNet as diffusers loads it: this project lays convolution weights out channels last."""
    return copy.deepcopy(unet).to(memory_format=torch.contiguous_format)


@torch.inference_mode()
def plain_loop(
    unet: Any, scheduler: Any, latents: Tensor, text: Tensor, guidance_scale: float, steps: int
) -> Tensor:
    """Denoise K latents [K, C, h, w] under prompts `text` [2 K, N, D], unconditional ones first."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device=latents.device)
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        noise_pred = unet(model_input, timestep, encoder_hidden_states=text, return_dict=False)[0]
        unconditional, conditional = noise_pred.chunk(2)
        noise_pred = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
    return latents
