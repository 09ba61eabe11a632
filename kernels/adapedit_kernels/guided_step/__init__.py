"""One denoising step over all latents: guidance, scheduler update and local blend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapedit_kernels.dispatch import (
    FLOATING,
    INTEGER,
    check_contiguous,
    check_rows,
    check_tensors,
    implementation_for,
    launch,
    operator_implementation,
)
from adapedit_kernels.errors import AdapEditError
from adapedit_kernels.guided_step import reference

__all__ = ["guided_step"]

_NAME = "guided_step"
_AXES = {
    "noise_pred": "B C h w",
    "latents": "K C h w",
    "guidance_rows": "K G",
    "guidance_weights": "K G",
    "sample_weight": "K",
    "output_weight": "K",
    "noise": "K C h w",
    "noise_weight": "K",
    "blend_mask": "K 1 h w",
    "blend_source": "K",
}
_INDICES = ("guidance_rows", "blend_source")


def guided_step(
    noise_pred: Tensor,
    latents: Tensor,
    guidance_rows: Tensor,
    guidance_weights: Tensor,
    sample_weight: Tensor,
    output_weight: Tensor,
    noise: Tensor | None = None,
    noise_weight: Tensor | None = None,
    blend_mask: Tensor | None = None,
    blend_source: Tensor | None = None,
    *,
    check_values: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """The next latents of K tracks, each with its own coefficients.

    ``eps_k = sum_g guidance_weights[k, g] noise_pred[guidance_rows[k, g]]``,
    ``x'_k = sample_weight[k] x_k + output_weight[k] eps_k + noise_weight[k] noise_k``, and where a mask is given
    ``x''_k = x'_s + mask (x'_k - x'_s)`` with ``s = blend_source[k]`` and ``x'_s`` before its own blend.

    Args:
        noise_pred: [B, C, h, w] floating, output of the UNet for all rows.
        latents: [K, C, h, w] floating.
        guidance_rows: [K, G] int64, rows of ``noise_pred``.
        guidance_weights: [K, G] floating; classifier-free guidance ``g`` is (1 - g, g).
        sample_weight: [K] floating.
        output_weight: [K] floating.
        noise: [K, C, h, w] floating, with ``noise_weight``.
        noise_weight: [K] floating.
        blend_mask: [K, 1, h, w] floating, 1 where a track keeps its own latents; with ``blend_source``.
        blend_source: [K] int64.
        check_values: look at the values of the index tensors too; waits for the device on CUDA tensors.
        implementation: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        [K, C, h, w] in the dtype of ``latents``; nothing is changed in place.

    Raises:
        AdapEditError: shapes, dtypes or devices that don't fit, indices out of range.
        ImplementationError: the named implementation can't run here.
    """
    chosen = implementation_for(_NAME, implementation, noise_pred, latents)
    weights = (guidance_rows, guidance_weights, sample_weight, output_weight)
    arguments = (noise_pred, latents, *weights, noise, noise_weight, blend_mask, blend_source)
    if chosen == "triton":
        return guided_step_operator(*arguments, check_values)
    return _computed(chosen, arguments, check_values)


@torch.library.custom_op(
    "adapedit_kernels::guided_step",
    mutates_args=(),
    schema="(Tensor noise_pred, Tensor latents, Tensor guidance_rows, Tensor guidance_weights, "
    "Tensor sample_weight, Tensor output_weight, Tensor? noise, Tensor? noise_weight, Tensor? blend_mask, "
    "Tensor? blend_source, bool check_values) -> Tensor",
)
def guided_step_operator(noise_pred: Tensor, latents: Tensor, *others: Any) -> Tensor:
    """The step as a PyTorch operator, one node to compilers and exporters."""
    *rest, check_values = others
    return _computed(operator_implementation(latents), (noise_pred, latents, *rest), check_values)


@guided_step_operator.register_fake
def _(noise_pred: Tensor, latents: Tensor, *_: object) -> Tensor:
    return torch.empty_like(latents)


def _computed(chosen: str, arguments: Sequence[Any], check_values: bool) -> Tensor:
    """Check the arguments, those of `_AXES` in its order, and run the chosen implementation on them."""
    given = dict(zip(_AXES, arguments, strict=True))
    _check_pair(given, "noise", "noise_weight")
    _check_pair(given, "blend_mask", "blend_source")
    kinds = {name: INTEGER if name in _INDICES else FLOATING[chosen] for name in _AXES}
    # The latents first: what does not fit them is named.
    order = ("latents", *(name for name in _AXES if name != "latents"))
    expected = {name: (given[name], _AXES[name], kinds[name]) for name in order}
    check_tensors(_NAME, expected)
    if check_values:
        check_rows(_NAME, "guidance_rows", given["guidance_rows"], given["noise_pred"].shape[0])
        if given["blend_source"] is not None:
            check_rows(_NAME, "blend_source", given["blend_source"], given["latents"].shape[0])
    if chosen == "reference":
        return reference.guided_step(*arguments)
    check_contiguous(_NAME, expected, but=("noise_pred",))
    return launch(_NAME, *arguments)


def _check_pair(given: Mapping[str, Any], first: str, second: str) -> None:
    if (given[first] is None) != (given[second] is None):
        missing, present = (first, second) if given[first] is None else (second, first)
        raise AdapEditError(f"{_NAME}: {present} is given without {missing}; give both or neither")
