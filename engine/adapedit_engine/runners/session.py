"""Sessions: one graph of a bundle, loaded by a backend and run on tensors without copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from adapedit_engine.manifest import GraphSpec, TensorSpec
from adapedit_engine.runners import RunnerError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int64": torch.int64,
}


class Session(Protocol):
    """A loaded graph. `close` gives its memory back; it is not usable afterwards."""

    spec: GraphSpec

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run on contiguous tensors on the session's device.

        The outputs lie in buffers that are allocated once for every shape and written again by the next run:
        clone what has to outlive it. On a GPU nothing here waits for the device.
        """
        ...

    def close(self) -> None: ...


class Buffers:
    """Output tensors, allocated once for every set of sizes."""

    def __init__(self, spec: GraphSpec, device: torch.device) -> None:
        self._outputs = {output.name: output for output in spec.outputs}
        self._device = device
        self._held: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, sizes: Mapping[str, int]) -> Tensor:
        """The buffer of output `name`, where the named sides have these sizes."""
        spec = self._outputs[name]
        shape = tuple(side if isinstance(side, int) else sizes[side] for side in spec.shape)
        held = self._held.get((name, shape))
        if held is None:
            held = torch.empty(shape, dtype=DTYPES[spec.dtype], device=self._device)
            self._held[name, shape] = held
        return held


def check_call(
    graph: str, spec: GraphSpec, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The sizes of the named sides and the names of the outputs wanted.

    Raises `RunnerError` for names that the graph does not have, and for dtypes and shapes that it does not take.
    """
    known = {tensor.name: tensor for tensor in spec.inputs}
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise RunnerError(f"{graph} has no input {unknown[0]!r}; its inputs: {', '.join(known)}")
    sizes: dict[str, int] = {}
    for name, tensor in known.items():
        if name not in inputs:
            raise RunnerError(f"{graph}: input {name!r} is missing, wanted {_shown(tensor)}")
        _check_tensor(graph, tensor, inputs[name], sizes)
    names = tuple(tensor.name for tensor in spec.outputs)
    wanted = names if outputs is None else tuple(outputs)
    for name in wanted:
        if name not in names:
            raise RunnerError(f"{graph} has no output {name!r}; its outputs: {', '.join(names)}")
    return sizes, wanted


def _check_tensor(graph: str, spec: TensorSpec, given: Tensor, sizes: dict[str, int]) -> None:
    if given.dtype != DTYPES[spec.dtype]:
        raise RunnerError(f"{graph}: input {spec.name!r} is {given.dtype}, wanted {spec.dtype}: cast it")
    fits = given.ndim == len(spec.shape)
    for got, side in zip(given.shape, spec.shape, strict=False):
        fits = fits and got == (side if isinstance(side, int) else sizes.setdefault(side, got))
    if not fits:
        raise RunnerError(
            f"{graph}: input {spec.name!r} has shape {tuple(given.shape)}, wanted {_shown(spec)}{_said(sizes)}"
        )


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype} ({', '.join(str(side) for side in spec.shape)})"


def _said(sizes: Mapping[str, int]) -> str:
    return f" with {', '.join(f'{name} = {size}' for name, size in sizes.items())}" if sizes else ""
