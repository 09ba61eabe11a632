"""Whole edits by the ways of others, from prompts to decoded pictures, for the same request as ours."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from adapedit.edit import complete, make_context
from adapedit.sharing import Caches
from benchmarks.baselines.eager import Controller, controlled


def as_loaded(unet: Any) -> Any:
    """A copy of a UNet as diffusers loads it: this project lays convolution weights out channels last."""
    return copy.deepcopy(unet).to(memory_format=torch.contiguous_format)


@torch.inference_mode()
def plain_loop(
    unet: Any, scheduler: Any, latents: Tensor, text: Tensor, guidance_scale: float, steps: int
) -> Tensor:
    """K latents [K, C, h, w] by diffusers' loop, as its pipelines run it.

    text: prompts [2 K, N, D], the unconditional ones first.
    """
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


class OtherWays:
    """Runs on a copy of the model's UNet with diffusers' own processors.

    plain: both prompts by diffusers' loop, nothing edited: what generating the two pictures costs.
    eager: a first pass over the target prompt and a second over both, with a controller that is given every layer's
    probabilities, as the authors and Prompt-to-Prompt do it. Words are held for a fixed share of the steps: what the
    controller does between layers costs the same whatever it decides.
    """

    def __init__(self, pipe: Any) -> None:
        self._model = pipe.model
        self._unet = as_loaded(pipe.model.runner.controlled.unet)

    def plain(self, request: Any) -> Tensor:
        """Pixels [2, 3, H, W]."""
        context, text, latents = self._prepared(request)
        steps = request.num_inference_steps
        starts = latents.expand(2, -1, -1, -1)
        out = plain_loop(self._unet, self._model.scheduler, starts, text, context.guidance_scale, steps)
        return self._model.decode(out)

    def eager(self, request: Any) -> Tensor:
        """Pixels [2, 3, H, W]."""
        context, text, latents = self._prepared(request)
        unet, model, steps = self._unet, self._model, request.num_inference_steps
        specs, tokens = model.runner.specs, model.max_tokens
        out = latents
        for count, prompts in ((1, text[[0, 3]]), (2, text)):
            controller = Controller(
                layers=len(specs.self_layers) + len(specs.cross_layers),
                steps=steps,
                token_map=torch.eye(tokens, device=unet.device, dtype=unet.dtype),
                own_weight=torch.zeros(tokens, device=unet.device, dtype=unet.dtype),
                word_steps=torch.full((tokens,), 0.8, device=unet.device),
                self_steps=0.4,
                self_pixels=latents[0, 0].numel() // model.facts.self_divisor**2,
                prompts=count,
            )
            starts = latents.expand(count, -1, -1, -1)
            with controlled(unet, controller):
                out = plain_loop(unet, model.scheduler, starts, prompts, context.guidance_scale, steps)
        return model.decode(out)

    def _prepared(self, request: Any) -> tuple[Any, Tensor, Tensor]:
        context = make_context(complete(request, self._model), self._model, Caches.of(self._model.runner))
        prompts = (context.source_negative, context.source_negative, context.source, context.target)
        text = torch.stack([prompt.hidden_states for prompt in prompts])
        unet = self._unet
        return context, text.to(unet.device, unet.dtype), context.latents.to(unet.device, unet.dtype)
