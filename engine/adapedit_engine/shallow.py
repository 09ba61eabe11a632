"""The shallowest part of a UNet on its own: the first convolution, and the last stage of the last block up.

What DeepCache (Ma et al. 2024) runs at the steps in between, with one skip connection: the last stage joins what comes
from the deep layers, which is kept from an earlier step, with the first convolution's output.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def shallow_predict(unet: Any, sample: Tensor, timestep: Tensor, deep: Tensor, options: Any) -> Tensor:
    """noise_pred [B, C, h, w] from deep features [B, C', h, w]. options: further arguments of attention blocks."""
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
    if unet.time_embed_act is not None:
        embedding = unet.time_embed_act(embedding)
    block = unet.up_blocks[-1]
    hidden_states = block.resnets[-1](torch.cat([deep, unet.conv_in(sample)], dim=1), embedding)
    if getattr(block, "attentions", None):
        hidden_states = block.attentions[-1](hidden_states, **options, return_dict=False)[0]
    if unet.conv_norm_out:
        hidden_states = unet.conv_act(unet.conv_norm_out(hidden_states))
    return unet.conv_out(hidden_states)


@contextmanager
def deep_features(unet: Any) -> Iterator[list[Tensor]]:
    """Within the block, the deep features of each call are appended to the list: of calls of this thread alone."""
    found: list[Tensor] = []
    channels, thread = unet.conv_in.out_channels, threading.get_ident()

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        # The layer is everybody's: meanwhile other threads call it for edits of their own.
        if threading.get_ident() != thread:
            return
        # Behind the deep features stands the first convolution's output, which the next step has anew.
        found.append(inputs[0][:, :-channels].clone())

    hook = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
