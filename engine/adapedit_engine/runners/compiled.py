"""PyTorch, compiled: the UNet as one graph, replayed as a CUDA graph where there is a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from shutil import which

import torch
from torch import Tensor, nn

from adapedit_engine.controls import Controls
from adapedit_engine.runners import RunnerError
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.unet import OUTPUT_NAMES

MOST_SHAPES = 64
"""Compilations of one process, by numbers of rows and sizes of pictures. PyTorch's own limit is 8, which the slots of a
server exceed at two sizes."""


def why_not(device: torch.device | str) -> str | None:
    """What keeps torch.compile from working on `device`, and how to mend it; None where nothing does."""
    if torch.device(device).type == "cuda":
        missing = find_spec("triton") is None
        return "needs the package triton; pip install 'adapedit[gpu]'" if missing else None
    if which("g++") is None and which("clang++") is None:
        return "needs a C++ compiler on the CPU; install g++"
    return None


class CompiledRunner(PyTorchRunner):
    """As `PyTorchRunner`, compiled at the first call of each number of rows, which takes a minute or more.

    Wants every control in every call, so that there is one graph and not one for each set of them. On CUDA
    the outputs are overwritten by the next call.
    """

    needs_all_controls = True
    few_shapes = True
    """Every number of rows is a compilation, and on CUDA a graph, of its own: a server fills up to slots."""

    def __init__(self, unet: nn.Module, *, map_divisor: int | None = None, backend: str = "inductor") -> None:
        """backend: of torch.compile.

        Raises `RunnerError` where it can't work on the UNet's device.
        """
        super().__init__(unet, map_divisor=map_divisor)
        reason = why_not(self.device) if backend == "inductor" else None
        if reason is not None:
            raise RunnerError(f"runner 'pytorch-compiled' was asked for and can't run here: it {reason}")
        self._graphs = self.device.type == "cuda" and backend == "inductor"
        self._compiled = torch.compile(
            self._predict,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            mode="reduce-overhead" if self._graphs else None,
        )

    @torch.inference_mode()
    def infer(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Runner.infer`. All outputs are computed, so that there is one graph."""
        wanted = OUTPUT_NAMES if outputs is None else tuple(outputs)
        self._check(inputs, wanted)
        inputs = _alike(inputs)
        layers = range(len(self.specs.cross_layers))
        projected = [(inputs[f"key_{i}"], inputs[f"value_{i}"]) for i in layers]
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        controls = Controls.from_dict(inputs)
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            results = self._compiled(inputs["sample"], inputs["timestep"], controls, projected)
        named = dict(zip(OUTPUT_NAMES, results, strict=True))
        return {name: tensor for name in wanted if (tensor := named[name]) is not None}

    def _predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        controls: Controls,
        projected: Sequence[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        noise_pred, maps, features = self.controlled(sample, timestep, controls=controls, projected=projected)
        return noise_pred, maps, features


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
