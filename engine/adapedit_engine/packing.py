"""Linear layers, gated ones and convolutions through oneDNN on the CPU, with weights packed once.

PyTorch hands float32 matrix products to MKL, which on AMD processors keeps to AVX2 (110 of 260 GFLOP/s a core
were measured on a Zen 5); oneDNN uses AVX-512 everywhere. Convolutions take that way already, but their weights are
turned into oneDNN's own layout at every call: with the few rows of one edit that is a fifth of their time. The GELU of
a gated layer (GEGLU) and its product are done where the matrix product leaves its numbers: on their own, over the
largest tensors of the UNet, they were a tenth of a call of 24 rows. Upsampling and the convolution behind it are one
transposed convolution, with 4/9 of the products (see `doubling`), residual blocks work in place (see `residual`), and
small groups are normalised by whole pixels (see `normalising`). All of it holds for bfloat16 as well, where the
processor multiplies it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from adapedit_engine.doubling import doubles, doubling_weight
from adapedit_engine.normalising import normalise, slowly_normalised
from adapedit_engine.residual import in_place, works_in_place
from adapedit_engine.samples import sample
from adapedit_engine.transformer import is_lean, leanly

Layer: TypeAlias = (
    nn.Linear | nn.Conv2d | GEGLU | Upsample2D | ResnetBlock2D | Transformer2DModel | nn.GroupNorm
)
Compute: TypeAlias = Callable[..., Tensor]

# Operators behind `torch.compile`'s freezing; a build without oneDNN lacks them, and keeps PyTorch's own way.
_PACK_LINEAR, _LINEAR = "_reorder_linear_weight", "_linear_pointwise"
_PACK_CONVOLUTION, _CONVOLUTION = "_reorder_convolution_weight", "_convolution_pointwise"
_PACK_TRANSPOSED, _TRANSPOSED = "_reorder_convolution_transpose_weight", "_convolution_transpose_pointwise"


_MULTIPLIES_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16. Without, they are emulated, slower than float32."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in _MULTIPLIES_BFLOAT16)


def can_pack(module: nn.Module) -> bool:
    """Whether packing does anything for this module here."""
    wanted = (_PACK_LINEAR, _LINEAR, _PACK_CONVOLUTION, _CONVOLUTION, _PACK_TRANSPOSED, _TRANSPOSED)
    there = all(hasattr(torch.ops.mkldnn, name) for name in wanted)
    return there and torch.backends.mkldnn.is_available() and any(True for _ in _layers(module))


class PackedWeights:
    """Packed copies of a module's CPU weights (float32 or bfloat16), made when they are first needed.

    `attached()` sets them in place of the layers' own `forward` for the length of a block, or of the last one where
    threads overlap. A weight that was changed since (loaded, merged with an adapter) is packed anew: at once where its
    tensor tells of it, and when the next block opens where it was changed behind its back (through `.data`, or in
    inference mode), which is seen by a sample of its numbers: where it is fewer of them that change, load the weight
    as a new tensor. Costs a second copy of these weights in memory.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._computes: dict[Layer, Compute] = {}
        self._weights: dict[Layer, list[_Packed]] = {}
        self._lock = threading.Lock()
        self._blocks, self._changed = 0, list[Layer]()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Blocks may nest and overlap; where another `PackedWeights` holds the layers, nothing changes."""
        with self._lock:
            if not self._blocks:
                self._changed = self._attach()
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    for layer in self._changed:
                        del vars(layer)["forward"]

    def _attach(self) -> list[Layer]:
        changed = [layer for layer in _layers(self._module) if "forward" not in vars(layer)]
        for packed in (packed for layer in changed for packed in self._weights.get(layer, ())):
            packed.forget_if_changed()
        for layer in changed:
            if layer not in self._computes:
                self._weights[layer] = _weights(layer)
                self._computes[layer] = _compute(layer, *self._weights[layer])
            vars(layer)["forward"] = _forward(layer, self._computes[layer])
        return changed


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """What was packed, and of what. sample: a view of the weight, by which its memory stays its own; seen: its numbers
    when it was packed."""

    sample: Tensor
    seen: Tensor
    version: int
    packed: Tensor


class _Packed:
    """One layer's weight in oneDNN's layout, made at the first call: a convolution's depends on the picture's size.

    outputs: those that are packed, by default all.
    """

    def __init__(self, layer: Layer, outputs: slice = slice(None)) -> None:
        self._owner, self._outputs = layer, outputs
        self._known: _Known | None = None

    @property
    def _layer(self) -> nn.Linear | nn.Conv2d:
        """Whose weight it is; that of a gated or an upsampling layer may have been replaced since."""
        owner = self._owner
        if isinstance(owner, Upsample2D):
            return cast(nn.Conv2d, owner.conv)
        return cast(nn.Linear, owner.proj) if isinstance(owner, GEGLU) else cast(nn.Linear | nn.Conv2d, owner)

    @property
    def bias(self) -> Tensor | None:
        return None if self._layer.bias is None else self._layer.bias[self._outputs]

    def of(self, input: Tensor) -> Tensor:
        weight, known = self._layer.weight, self._known
        version = 0 if weight.is_inference() else weight._version
        if known is None or known.sample.data_ptr() != weight.data_ptr() or known.version != version:
            # What is changed while it is packed has another sample afterwards: it is taken before.
            view = sample(weight)
            seen = view.clone()
            packed = self._pack(weight.detach()[self._outputs], input)
            known = self._known = _Known(sample=view, seen=seen, version=version, packed=packed)
        return known.packed

    def forget_if_changed(self) -> None:
        """Pack anew at the next call where the weight was changed in place and did not tell."""
        known = self._known
        if known is not None and not torch.equal(known.sample, known.seen):
            self._known = None

    def _pack(self, weight: Tensor, input: Tensor) -> Tensor:
        layer = self._layer
        if isinstance(layer, nn.Linear):
            return cast(Tensor, getattr(torch.ops.mkldnn, _PACK_LINEAR)(weight))
        if isinstance(self._owner, Upsample2D):
            pack = getattr(torch.ops.mkldnn, _PACK_TRANSPOSED)
            weight = doubling_weight(weight).contiguous(memory_format=torch.channels_last)
            return cast(Tensor, pack(weight, [1, 1], [0, 0], [2, 2], [1, 1], 1, list(input.shape)))
        pack = getattr(torch.ops.mkldnn, _PACK_CONVOLUTION)
        settings = (layer.padding, layer.stride, layer.dilation, layer.groups)
        return cast(Tensor, pack(weight, *settings, list(input.shape)))


def _layers(module: nn.Module) -> Iterator[Layer]:
    """Plain layers whose weights can be packed. Subclasses (LoRA, quantised) may compute otherwise."""
    for layer in module.modules():
        if type(layer) is GEGLU:
            if _packs(cast(nn.Linear, layer.proj)):
                yield layer
        elif type(layer) is Upsample2D:
            if doubles(layer) and _packs(cast(nn.Conv2d, layer.conv)):
                yield layer
        elif type(layer) is ResnetBlock2D:
            if works_in_place(layer) and all(
                _packs(cast(nn.Conv2d, conv)) for conv in (layer.conv1, layer.conv2)
            ):
                yield layer
        elif type(layer) is Transformer2DModel:
            if is_lean(layer) and _packs(cast(nn.Linear | nn.Conv2d, layer.proj_in)):
                yield layer
        elif type(layer) is nn.GroupNorm:
            if slowly_normalised(layer) and _multiplied(layer.weight):
                yield layer
        elif isinstance(layer, nn.Linear | nn.Conv2d) and _packs(layer):
            yield layer


def _packs(layer: nn.Linear | nn.Conv2d) -> bool:
    if not _multiplied(layer.weight):
        return False
    if type(layer) is not nn.Conv2d:
        return type(layer) is nn.Linear
    # oneDNN answers in channels last, which the layers after it only want where the model lies so.
    last = layer.weight.is_contiguous(memory_format=torch.channels_last)
    return last and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _multiplied(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by such a weight at full speed here."""
    if weight.device.type != "cpu":
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())


def _forward(layer: Layer, compute: Compute) -> Compute:
    plain, dtype = layer.forward, next(layer.parameters()).dtype

    def forward(input: Tensor, *others: Any, **named: Any) -> Tensor:
        usual = input.is_cpu and input.dtype == dtype and input.numel()
        if not usual or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
            return cast(Tensor, plain(input, *others, **named))
        return compute(input, *others, **named)

    return forward


def _weights(layer: Layer) -> list[_Packed]:
    """What a layer itself has packed: not what the layers in it have."""
    if isinstance(layer, GEGLU):
        half = layer.proj.out_features // 2
        return [_Packed(layer, slice(half)), _Packed(layer, slice(half, None))]
    return [_Packed(layer)] if isinstance(layer, nn.Linear | nn.Conv2d | Upsample2D) else []


def _compute(layer: Layer, *weights: _Packed) -> Compute:
    if isinstance(layer, GEGLU):
        return _gated(*weights)
    if isinstance(layer, Upsample2D):
        return _doubling(layer, *weights)
    if isinstance(layer, ResnetBlock2D):
        return in_place(layer)
    if isinstance(layer, Transformer2DModel):
        return leanly(layer)
    if isinstance(layer, nn.GroupNorm):
        return normalise(layer)
    return _linear(layer, *weights) if isinstance(layer, nn.Linear) else _convolution(layer, *weights)


def _linear(layer: nn.Linear, packed: _Packed) -> Compute:
    linear = getattr(torch.ops.mkldnn, _LINEAR)
    return lambda input: linear(input, packed.of(input), layer.bias, "none", [], "")


def _gated(hidden: _Packed, gate: _Packed) -> Compute:
    """h GELU(g) with [h, g] = W x + b, as two products: the gate's with GELU behind it, the other's times that."""
    linear = getattr(torch.ops.mkldnn, _LINEAR)

    def compute(input: Tensor) -> Tensor:
        open_by = linear(input, gate.of(input), gate.bias, "gelu", [], "none")
        return cast(Tensor, linear.binary(input, open_by, hidden.of(input), hidden.bias, "mul"))

    return compute


def _convolution(layer: nn.Conv2d, packed: _Packed) -> Compute:
    convolve = getattr(torch.ops.mkldnn, _CONVOLUTION)
    settings: tuple[Any, ...] = (layer.padding, layer.stride, layer.dilation, layer.groups, "none", [], "")

    def compute(input: Tensor) -> Tensor:
        # As PyTorch does for weights that lie so: the answer then lies so, too.
        input = input.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, convolve(input, packed.of(input), layer.bias, *settings))

    return compute


def _doubling(layer: Upsample2D, packed: _Packed) -> Compute:
    convolve = getattr(torch.ops.mkldnn, _TRANSPOSED)
    settings: tuple[Any, ...] = ([1, 1], [0, 0], [2, 2], [1, 1], 1, "none", [], "")
    plain = layer.forward

    def compute(input: Tensor, output_size: Any = None) -> Tensor:
        if output_size is not None:  # of latents with an odd side: not the double
            return cast(Tensor, plain(input, output_size))
        input = input.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, convolve(input, packed.of(input), packed.bias, *settings))

    return compute
