"""A second, plain and slow implementation, written from the method's description: explicit probabilities everywhere.

It shares no code with the engine: processors that form every probability, and callbacks that change them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

# (probabilities [B, H, P, keys], is it cross-attention, name of the layer) -> probabilities
Change = Callable[[Tensor, bool, str], Tensor]


class SlowProcessor:
    def __init__(self, name: str, change: Change) -> None:
        self.name, self.change = name, change

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        cross = encoder_hidden_states is not None
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = []
        for tensor in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)):
            batch, length, width = tensor.shape
            heads.append(tensor.reshape(batch, length, attn.heads, width // attn.heads).permute(0, 2, 1, 3))
        query, key, value = heads
        logits = torch.einsum("bhpd,bhnd->bhpn", query, key) / math.sqrt(query.shape[-1])
        probabilities = self.change(logits.exp() / logits.exp().sum(-1, keepdim=True), cross, self.name)
        mixed = torch.einsum("bhpn,bhnd->bhpd", probabilities, value).permute(0, 2, 1, 3)
        return attn.to_out[0](mixed.reshape(*hidden_states.shape[:2], -1))


@contextmanager
def slow_attention(unet: UNet2DConditionModel, change: Change) -> Iterator[None]:
    before = dict(unet.attn_processors)
    unet.set_attn_processor({name: SlowProcessor(name, change) for name in before})
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def edited_maps(
    maps: Tensor,
    source_row: list[int],
    token_map: Tensor,
    own_weight: Tensor,
    spatial_weight: Tensor,
    spatial_map: Tensor,
) -> Tensor:
    """R = M_source A, W = u + v S, M' = R + W (M - R), one row and one token at a time. maps [B, H, P, N]."""
    out = maps.clone()
    for row, source in enumerate(source_row):
        if source == row:
            continue
        for j in range(maps.shape[-1]):
            remapped = sum(token_map[row, i, j] * maps[source, :, :, i] for i in range(maps.shape[-1]))
            weight = own_weight[row, j] + spatial_weight[row, j] * spatial_map[row]
            out[row, :, :, j] = remapped + weight * (maps[row, :, :, j] - remapped)
    return out


def prompt_to_prompt(
    unet: UNet2DConditionModel,
    scheduler: Any,
    latents: Tensor,
    text: Tensor,
    *,
    guidance_scale: float,
    token_map: Tensor,
    own: Tensor,
    cross_share: float,
    self_share: float,
    largest_self: int,
    steps: int,
) -> Tensor:
    """Source and target from the same latents [1, C, h, w], as Prompt-to-Prompt's refinement does. -> [2, C, h, w].

    text [4, N, D]: empty, empty, source, target. own [N]: tokens without a counterpart.
    """
    scheduler.set_timesteps(steps)
    latents = latents.repeat(2, 1, 1, 1)
    for index, timestep in enumerate(scheduler.timesteps):

        def change(maps: Tensor, cross: bool, name: str, index: int = index) -> Tensor:
            source, target = maps[2], maps[3]
            if cross and index < cross_share * steps:
                refined = source @ token_map * (1 - own) + target * own
                return torch.stack([maps[0], maps[1], source, refined])
            if not cross and index < self_share * steps and maps.shape[2] <= largest_self:
                return torch.stack([maps[0], maps[1], source, source])
            return maps

        with slow_attention(unet, change), torch.no_grad():
            predicted = unet(torch.cat([latents, latents]), timestep, text).sample
        empty, worded = predicted[:2], predicted[2:]
        guided = empty + guidance_scale * (worded - empty)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents
