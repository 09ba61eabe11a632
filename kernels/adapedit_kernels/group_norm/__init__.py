"""Group norm, and SiLU behind it, of pictures whose channels lie beside one another in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels import dispatch
from adapedit_kernels.errors import AdapEditError
from adapedit_kernels.group_norm import reference

__all__ = ["group_norm"]

_NAME = "group_norm"


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = False,
    implementation: str = "auto",
) -> Tensor:
    """``x`` brought to mean 0 and variance 1 in each group of channels, scaled and shifted; with SiLU after it or not.

    PyTorch's own on CUDA turns channels-last pictures into planes, which the next convolution turns back.

    Args:
        x: [B, C, h, w] floating; channels-last, or it is made so.
        weight: [C] floating; for the reference in the dtype of ``x``, as PyTorch wants it.
        bias: [C], as ``weight``.
        groups: a divisor of C.
        eps: added to the variance.
        silu: apply ``y sigmoid(y)`` to the result.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        [B, C, h, w] in the dtype of ``x``, channels-last by the kernel.

    Raises:
        AdapEditError: shapes, dtypes or devices that don't fit.
        ImplementationError: the named implementation can't run here.
    """
    chosen = dispatch.implementation_for(_NAME, implementation, x, weight, bias)
    kinds = dispatch.FLOATING[chosen]
    expected = {"x": (x, "B C h w", kinds), "weight": (weight, "C", kinds), "bias": (bias, "C", kinds)}
    dispatch.check_tensors(_NAME, expected)
    if groups < 1 or x.shape[1] % groups:
        raise AdapEditError(
            f"{_NAME}: groups is {groups}, wanted a divisor of {x.shape[1]}, the channels of x; change it"
        )
    if chosen == "reference":
        return reference.group_norm(x, weight, bias, groups, eps, silu)
    dispatch.check_layout(_NAME, expected, free=("x",))
    return group_norm_operator(x, weight, bias, groups, eps, silu)


group_norm_operator = dispatch.operator(
    _NAME,
    "(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool silu) -> Tensor",
    reference.group_norm,
    lambda x, *_: torch.empty_like(x, memory_format=torch.channels_last),
)
