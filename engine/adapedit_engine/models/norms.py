"""Group norms of a UNet on a GPU: channels-last pictures stay so, and SiLU comes with the norm.

It stands alone because nothing here is about attention: for a while modules are of other classes, with all that they
hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapedit_kernels import group_norm


class Norm(nn.GroupNorm):
    """A group norm by the project's kernel; a compilation takes PyTorch's, which it joins with what is around it."""

    silu = False

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            normed = super().forward(input)
            return F.silu(normed) if self.silu else normed
        return group_norm(input, self.weight, self.bias, self.num_groups, self.eps, silu=self.silu)


class ActivatingNorm(Norm):
    """The same, with the SiLU that follows it."""

    silu = True


class Activation(nn.SiLU):
    """A SiLU of time embeddings, and of pictures behind a norm that has had it already."""

    def forward(self, input: Tensor) -> Tensor:
        return input if input.ndim == 4 else super().forward(input)


@contextmanager
def fast_norms(unet: nn.Module) -> Iterator[None]:
    """Norms by the kernel for the length of a block, but on the CPU, where PyTorch's do as well. May be nested."""
    changes: list[tuple[nn.Module, Any]] = list(_changes(unet)) if _is_slow(unet) else []
    before = [(module, type(module)) for module, _ in changes]
    try:
        for module, kind in changes:
            module.__class__ = kind
        yield
    finally:
        for module, kind in before:
            module.__class__ = kind


def _is_slow(unet: nn.Module) -> bool:
    """Whether PyTorch's own norm turns channels-last pictures into planes."""
    return next(unet.parameters()).device.type != "cpu"


def _changes(unet: Any) -> Iterator[tuple[nn.Module, Any]]:
    """Modules and the classes that they are to be of, a later one of a module in place of an earlier one."""
    yield from ((module, Norm) for module in unet.modules() if type(module) is nn.GroupNorm)
    if isinstance(unet.conv_norm_out, nn.GroupNorm) and type(unet.conv_act) is nn.SiLU:
        yield from ((unet.conv_norm_out, ActivatingNorm), (unet.conv_act, Activation))
    for block in unet.modules():
        # Elsewhere the time embedding comes between norm and SiLU.
        plain = getattr(block, "time_embedding_norm", None) == "default"
        if plain and type(block.nonlinearity) is nn.SiLU:
            yield from ((norm, ActivatingNorm) for norm in (block.norm1, block.norm2))
            yield block.nonlinearity, Activation
