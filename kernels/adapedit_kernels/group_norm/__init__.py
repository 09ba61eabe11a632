"""Group norm, and SiLU behind it, of pictures whose channels lie beside one another in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_kernels.dispatch import (
    FLOATING,
    check_contiguous,
    check_tensors,
    implementation_for,
    launch,
    operator_implementation,
)
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
    chosen = implementation_for(_NAME, implementation, x, weight, bias)
    if chosen == "triton":
        return group_norm_operator(x, weight, bias, groups, eps, silu)
    return _computed(chosen, x, weight, bias, groups, eps, silu)


@torch.library.custom_op("adapedit_kernels::group_norm", mutates_args=())
def group_norm_operator(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """The norm as a PyTorch operator, one node to compilers and exporters."""
    return _computed(operator_implementation(x), x, weight, bias, groups, eps, silu)


@group_norm_operator.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _computed(
    chosen: str, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """Check the arguments and run the chosen implementation on them."""
    kinds = FLOATING[chosen]
    expected = {"x": (x, "B C h w", kinds), "weight": (weight, "C", kinds), "bias": (bias, "C", kinds)}
    check_tensors(_NAME, expected)
    if groups < 1 or x.shape[1] % groups:
        raise AdapEditError(
            f"{_NAME}: groups is {groups}, wanted a divisor of {x.shape[1]}, the channels of x; change it"
        )
    if chosen == "reference":
        return reference.group_norm(x, weight, bias, groups, eps, silu)
    check_contiguous(_NAME, expected, but=("x",))
    result: Tensor = launch(_NAME, x, weight, bias, groups, eps, silu)
    return result
