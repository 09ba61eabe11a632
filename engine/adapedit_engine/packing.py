"""Linear layers and convolutions through oneDNN on the CPU, with weights packed once.

PyTorch hands float32 matrix products to MKL, which on AMD processors keeps to AVX2 (110 of 260 GFLOP/s a core
were measured on a Zen 5); oneDNN uses AVX-512 everywhere. Convolutions take that way already, but their weights are
turned into oneDNN's own layout at every call: with the few rows of one edit that is a fifth of their time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Layer: TypeAlias = nn.Linear | nn.Conv2d

# Operators behind `torch.compile`'s freezing; a build without oneDNN lacks them, and keeps PyTorch's own way.
_PACK_LINEAR, _LINEAR = "_reorder_linear_weight", "_linear_pointwise"
_PACK_CONVOLUTION, _CONVOLUTION = "_reorder_convolution_weight", "_convolution_pointwise"


def can_pack(module: nn.Module) -> bool:
    """Whether packing does anything for this module here."""
    wanted = (_PACK_LINEAR, _LINEAR, _PACK_CONVOLUTION, _CONVOLUTION)
    there = all(hasattr(torch.ops.mkldnn, name) for name in wanted)
    return there and torch.backends.mkldnn.is_available() and any(True for _ in _layers(module))


class PackedWeights:
    """Packed copies of a module's float32 CPU weights, made when they are first needed.

    `attached()` sets them in place of the layers' own `forward` for the length of a block. A weight that was
    changed since (loaded, merged with an adapter) is packed anew on the next entry. Costs a second copy of
    these weights in memory.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._packed: dict[Layer, _Packed] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Nested entries are harmless: the inner one changes nothing."""
        changed = [layer for layer in _layers(self._module) if "forward" not in vars(layer)]
        for layer in changed:
            vars(layer)["forward"] = _forward(layer, self._weight(layer))
        try:
            yield
        finally:
            for layer in changed:
                del vars(layer)["forward"]

    def _weight(self, layer: Layer) -> _Packed:
        weight = layer.weight.detach()
        version = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        known = self._packed.get(layer)
        if known is None or known.version != version:
            known = self._packed[layer] = _Packed(layer, version)
        return known


class _Packed:
    """One layer's weight in oneDNN's layout, made at the first call: a convolution's depends on the picture's size."""

    def __init__(self, layer: Layer, version: tuple[int, int]) -> None:
        self.version = version
        self._layer = layer
        self._weight: Tensor | None = None

    def of(self, input: Tensor) -> Tensor:
        if self._weight is None:
            layer, weight = self._layer, self._layer.weight.detach()
            if isinstance(layer, nn.Linear):
                self._weight = getattr(torch.ops.mkldnn, _PACK_LINEAR)(weight)
            else:
                pack = getattr(torch.ops.mkldnn, _PACK_CONVOLUTION)
                self._weight = pack(
                    weight, layer.padding, layer.stride, layer.dilation, layer.groups, list(input.shape)
                )
        return self._weight


def _layers(module: nn.Module) -> Iterator[Layer]:
    """Plain layers of float32 weights on the CPU. Subclasses (LoRA, quantised) may compute otherwise."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and _packs(layer):
            yield layer


def _packs(layer: Layer) -> bool:
    if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        return False
    if type(layer) is not nn.Conv2d:
        return type(layer) is nn.Linear
    # oneDNN answers in channels last, which the layers after it only want where the model lies so.
    last = layer.weight.is_contiguous(memory_format=torch.channels_last)
    return last and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _forward(layer: Layer, packed: _Packed) -> Callable[[Tensor], Tensor]:
    plain = layer.forward
    compute = _linear(layer, packed) if isinstance(layer, nn.Linear) else _convolution(layer, packed)

    def forward(input: Tensor) -> Tensor:
        cast = torch.is_autocast_enabled("cpu")
        if input.dtype != torch.float32 or cast or torch.is_grad_enabled() or not input.numel():
            return plain(input)
        return compute(input)

    return forward


def _linear(layer: nn.Linear, packed: _Packed) -> Callable[[Tensor], Tensor]:
    linear = getattr(torch.ops.mkldnn, _LINEAR)
    return lambda input: linear(input, packed.of(input), layer.bias, "none", [], "")


def _convolution(layer: nn.Conv2d, packed: _Packed) -> Callable[[Tensor], Tensor]:
    convolve = getattr(torch.ops.mkldnn, _CONVOLUTION)
    settings: tuple[Any, ...] = (layer.padding, layer.stride, layer.dilation, layer.groups, "none", [], "")

    def compute(input: Tensor) -> Tensor:
        # As PyTorch does for weights that lie so: the answer then lies so, too.
        input = input.contiguous(memory_format=torch.channels_last)
        return convolve(input, packed.of(input), layer.bias, *settings)

    return compute
