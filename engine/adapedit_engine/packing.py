"""Linear layers through oneDNN on the CPU, with weights packed once.

PyTorch hands float32 matrix products to MKL, which on AMD processors keeps to AVX2 (110 of 260 GFLOP/s a core
were measured on a Zen 5). oneDNN uses AVX-512 everywhere, and convolutions take that way already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Operators behind `torch.compile`'s freezing; a build without oneDNN lacks them, and keeps PyTorch's own way.
_PACK, _LINEAR = "_reorder_linear_weight", "_linear_pointwise"


def can_pack(module: nn.Module) -> bool:
    """Whether packing does anything for this module here."""
    there = all(hasattr(torch.ops.mkldnn, name) for name in (_PACK, _LINEAR))
    return there and torch.backends.mkldnn.is_available() and any(True for _ in _linears(module))


class PackedLinears:
    """Packed copies of a module's float32 CPU weights, made when they are first needed.

    `attached()` sets them in place of the layers' own `forward` for the length of a block. A weight that was
    changed since (loaded, merged with an adapter) is packed anew on the next entry. Costs a second copy of
    these weights in memory.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._packed: dict[nn.Linear, tuple[tuple[int, int], Tensor]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Nested entries are harmless: the inner one changes nothing."""
        changed = [layer for layer in _linears(self._module) if "forward" not in vars(layer)]
        for layer in changed:
            vars(layer)["forward"] = _forward(layer, self._weight(layer))
        try:
            yield
        finally:
            for layer in changed:
                del vars(layer)["forward"]

    def _weight(self, layer: nn.Linear) -> Tensor:
        weight = layer.weight.detach()
        version = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        known = self._packed.get(layer)
        if known is None or known[0] != version:
            known = self._packed[layer] = (version, getattr(torch.ops.mkldnn, _PACK)(weight))
        return known[1]


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    """Plain linear layers of float32 weights on the CPU. Subclasses (LoRA, quantised) may compute otherwise."""
    for layer in module.modules():
        if (
            type(layer) is nn.Linear
            and layer.weight.device.type == "cpu"
            and layer.weight.dtype == torch.float32
        ):
            yield layer


def _forward(layer: nn.Linear, packed: Tensor) -> Callable[[Tensor], Tensor]:
    plain, linear = layer.forward, getattr(torch.ops.mkldnn, _LINEAR)

    def forward(input: Tensor) -> Tensor:
        cast = torch.is_autocast_enabled("cpu")
        if input.dtype != torch.float32 or cast or torch.is_grad_enabled() or not input.numel():
            return plain(input)
        return linear(input, packed, layer.bias, "none", [], "")

    return forward
