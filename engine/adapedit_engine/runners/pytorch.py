"""The PyTorch runners: diffusers' UNet as it is, and compiled."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from shutil import which
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adapedit_engine.models.controls import Controls
from adapedit_engine.models.layers import ModelSpecs
from adapedit_engine.models.unet import OUTPUT_NAMES, ControlledUNet
from adapedit_engine.runners.base import Capabilities, RunnerError, cut_lists, fill_lists

MOST_SHAPES = 64
"""Compilations of one process, by numbers of rows and sizes of pictures. PyTorch's own limit is 8."""
COMPILED_ROWS = tuple(2**power for power in range(11))


class PyTorchRunner:
    """Runs a diffusers UNet in place: same device, same dtype, own processors back after the `with` block."""

    name = "pytorch"

    def __init__(self, unet: nn.Module, *, map_divisor: int | None = None) -> None:
        """See `ControlledUNet`. Raises `UnsupportedModelError` for a UNet that can't be controlled."""
        self.controlled = ControlledUNet(unet, map_divisor=map_divisor)
        self._prompt = tuple((f"key_{i}", f"value_{i}") for i in range(len(self.specs.cross_layers)))
        self._open: list[AbstractContextManager[ControlledUNet]] = []
        self._opening = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(gradients=True, capture=self._capture)

    @property
    def specs(self) -> ModelSpecs:
        return self.controlled.specs

    @property
    def device(self) -> torch.device:
        return next(self.controlled.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.controlled.parameters()).dtype

    def __enter__(self) -> PyTorchRunner:
        """Set the control processors. May be nested, and by several threads."""
        with self._opening:
            block = self.controlled.attached()
            block.__enter__()
            self._open.append(block)
        return self

    def __exit__(self, *error: Any) -> None:
        with self._opening:
            self._open.pop().__exit__(None, None, None)

    @torch.inference_mode()
    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        """`{"key_0": [rows, N, channels], "value_0": ..., "key_1": ...}`."""
        pairs = self.controlled.project(encoder_hidden_states.to(self.device, self.dtype))
        return {
            name: tensor
            for names, pair in zip(self._prompt, pairs, strict=True)
            for name, tensor in zip(names, pair, strict=True)
        }

    @torch.inference_mode()
    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        self_layers: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, Tensor]:
        """See `Runner.infer`. Raises `RunnerError` where it is closed."""
        wanted = self._wanted(outputs)
        output = self.controlled(
            inputs["sample"],
            inputs["timestep"],
            controls=Controls.from_dict(inputs),
            projected=self._projected(inputs),
            conditioning=self._conditioning(inputs),
            capture=wanted != OUTPUT_NAMES[:1],
            self_layers=self_layers,
        )
        return {name: getattr(output, name) for name in wanted}

    @property
    def _capture(self) -> Literal["step", "none"]:
        return "step" if self.device.type == "cuda" else "none"

    def _projected(self, inputs: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(inputs[key], inputs[value]) for key, value in self._prompt]

    def _conditioning(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: inputs[name] for name in self.specs.conditioning}

    def _wanted(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        if not self._open:
            raise RunnerError(f"runner {self.name!r} is closed: use it inside `with runner:`")
        return OUTPUT_NAMES if outputs is None else tuple(outputs)


class CompiledRunner(PyTorchRunner):
    """As `PyTorchRunner`, compiled at the first call of each number of rows, which takes a minute or more.

    Wants every control in every call, so that there is one graph and not one for each set of them.
    """

    name = "pytorch-compiled"

    def __init__(self, unet: nn.Module, *, map_divisor: int | None = None, backend: str = "inductor") -> None:
        """backend: of torch.compile. Raises `RunnerError` where it can't work on the UNet's device."""
        super().__init__(unet, map_divisor=map_divisor)
        reason = why_not_compiled(self.device) if backend == "inductor" else None
        if reason is not None:
            raise RunnerError(f"runner {self.name!r} was asked for and can't run here: it {reason}")
        self._compiled = torch.compile(self._predict, fullgraph=True, dynamic=False, backend=backend)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(rows=COMPILED_ROWS, all_controls=True, gradients=True, capture=self._capture)

    @torch.inference_mode()
    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        self_layers: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, Tensor]:
        """See `Runner.infer`. All outputs are computed, so that there is one graph."""
        wanted = self._wanted(outputs)
        maps = len(inputs["map_row"])
        inputs = _alike(fill_lists(inputs, len(inputs["sample"])))
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            results = self._compiled(
                inputs["sample"],
                inputs["timestep"],
                Controls.from_dict(inputs),
                self._projected(inputs),
                self._conditioning(inputs),
            )
        named = {
            name: tensor for name, tensor in zip(OUTPUT_NAMES, results, strict=True) if tensor is not None
        }
        return {name: tensor for name, tensor in cut_lists(named, maps).items() if name in wanted}

    def _predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        controls: Controls,
        projected: list[tuple[Tensor, Tensor]],
        conditioning: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        noise_pred, maps, features = self.controlled(
            sample, timestep, controls=controls, projected=projected, conditioning=conditioning
        )
        return noise_pred, maps, features


def why_not_compiled(device: torch.device | str) -> str | None:
    """What keeps torch.compile from working on `device`, and how to mend it; None where nothing does."""
    if torch.device(device).type == "cuda":
        missing = find_spec("triton") is None
        return "needs the package triton; pip install 'adapedit[gpu]'" if missing else None
    if which("g++") is None and which("clang++") is None:
        return "needs a C++ compiler on the CPU; install g++"
    return None


def _alike(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs without what an edit's method makes of them besides their values.

    A compilation holds for tensors that lie as its own did in memory, were or were not made in inference mode, and are
    or are not one and the same. So each is contiguous here, made in inference mode, and itself alone.
    """
    alike: dict[str, Tensor] = {}
    for name, tensor in inputs.items():
        tensor = tensor.contiguous()
        if not tensor.is_inference() or any(tensor is other for other in alike.values()):
            tensor = tensor.clone()
        alike[name] = tensor
    return alike
