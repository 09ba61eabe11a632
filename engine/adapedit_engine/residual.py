"""A residual block that writes over what it made itself and nobody reads again.

diffusers makes a new tensor for each activation and each sum, and divides by a factor of 1; on the CPU, where a block's
tensors are larger than its nearer caches, that was a thirtieth of a UNet call and more of a decoded picture. The
numbers are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


def works_in_place(block: ResnetBlock2D) -> bool:
    """Whether a block is Stable Diffusion's plain one: two convolutions behind norm and SiLU, and nothing else."""
    return (
        type(block.norm1) is type(block.norm2) is nn.GroupNorm
        and type(block.nonlinearity) is nn.SiLU
        and block.upsample is None
        and block.downsample is None
        # That of an autoencoder, which knows no time, is called "group".
        and (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and not (block.time_emb_proj is not None and block.skip_time_act)
        and (block.dropout.p == 0 or not block.training)
        and block.output_scale_factor == 1
    )


def in_place(block: ResnetBlock2D) -> Callable[..., Tensor]:
    """What such a block computes, without gradients: [B, C, h, w] and the time embedding [B, E] to [B, C', h, w]."""

    def compute(input: Tensor, temb: Tensor | None = None) -> Tensor:
        hidden = block.conv1(F.silu(block.norm1(input), inplace=True))
        if block.time_emb_proj is not None:
            temb = block.time_emb_proj(F.silu(cast(Tensor, temb)))[:, :, None, None]
        if temb is not None and block.time_embedding_norm == "default":
            hidden.add_(temb)
        hidden = block.conv2(F.silu(block.norm2(hidden), inplace=True))
        return hidden.add_(input if block.conv_shortcut is None else block.conv_shortcut(input))

    return compute
