"""What runners of bundles share: the graphs of a bundle, loaded by some library, behind the interface of a runner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import GraphSpec, TensorSpec
from adapedit_engine.models.layers import ModelSpecs
from adapedit_engine.models.text import id_names
from adapedit_engine.runners.base import Capabilities, RunnerError, cut_lists, fill_lists

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64}


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


class BundleRunner:
    """Runs the UNet of a bundle, with keys and values projected once per prompt; and its text encoder and VAE.

    Graphs are loaded when they are first needed and stay loaded between `with` blocks; `close` frees them. Threads
    may share a runner (on a GPU those of one stream): a graph runs for one at a time, and outputs are the caller's.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        opener: Callable[[str], Session],
        device: torch.device | str,
        capabilities: Capabilities,
    ) -> None:
        """opener: loads one graph of the bundle, by its name."""
        self.bundle, self.name, self.capabilities = bundle, name, capabilities
        self.load, self._device = opener, torch.device(device)
        self._sessions: dict[str, Session] = {}
        # A session writes into buffers of its own: one thread at a time, until it has what it wants out of them.
        self._locks = {graph: threading.Lock() for graph in bundle.manifest.graphs}
        self._counting, self._open = threading.Lock(), 0
        self._entered = _Entered()
        self._dtypes = {t.name: DTYPES[t.dtype] for t in bundle.graph("unet").inputs}

    @property
    def specs(self) -> ModelSpecs:
        return self.bundle.manifest.specs

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtypes["sample"]

    def __enter__(self) -> BundleRunner:
        """Load the UNet unless it is. May be nested."""
        with self._locks["unet"]:
            self._session("unet")
        block = self.around()
        block.__enter__()
        self._entered.blocks.append(block)
        with self._counting:
            self._open += 1
        return self

    def __exit__(self, *error: Any) -> None:
        with self._counting:
            self._open -= 1
        self._entered.blocks.pop().__exit__(None, None, None)

    @contextmanager
    def around(self) -> Iterator[None]:
        """What a thread is in while it has the runner open, or runs a small graph.

        On the CPU torch gets one thread: more would go on spinning on the cores that the graph wants.
        """
        before = torch.get_num_threads()
        if self.device.type != "cpu" or before == 1:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """Free every graph; the next use loads them again."""
        for graph, lock in self._locks.items():
            with lock:
                session = self._sessions.pop(graph, None)
                if session is not None:
                    session.close()

    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        """`{"projected_text": [rows, N, W]}`: keys and values of every layer side by side."""
        return self._each("text_projection", {"encoder_hidden_states": encoder_hidden_states})

    @torch.inference_mode()
    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        self_layers: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, Tensor]:
        """See `Runner.infer`. Raises `RunnerError`."""
        if not self._open:
            raise RunnerError(f"runner {self.name!r} is closed: use it inside `with runner:`")
        cast = {n: t.to(self._dtypes[n]) if n in self._dtypes else t for n, t in inputs.items()}
        rows = self.bundle.manifest.rows
        if rows is None:
            return self._alone("unet", cast, outputs)
        return cut_lists(self._alone("unet", fill_lists(cast, rows), outputs), len(cast["map_row"]))

    def encode_ids(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Token ids [E, B, N] to "hidden_states" [B, N, D] and what else of a prompt rows bring, one at a time."""
        return self._each("text_encoder", dict(zip(id_names(len(input_ids)), input_ids, strict=True)))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pixels [B, 3, H, W] float32 in 0..1, on the CPU, one picture at a time."""
        return self._each("vae_decoder", {"latents": latents}, device="cpu")["pixels"].float()

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in 0..1 to latents [B, C, h, w] float32: the mean, scaled."""
        return self._each("vae_encoder", {"pixels": pixels})["latents"].float()

    def run_graph(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Any graph on inputs of its own dtypes, on any device; outputs are the caller's to keep."""
        return self._alone(graph, {name: tensor.to(self._device) for name, tensor in inputs.items()})

    def _each(self, graph: str, rows: Mapping[str, Tensor], device: str | None = None) -> dict[str, Tensor]:
        """What a graph gives, row by row: none depends on its neighbours."""
        dtypes = {spec.name: DTYPES[spec.dtype] for spec in self.bundle.graph(graph).inputs}
        given = {name: tensor.to(self._device, dtypes[name]) for name, tensor in rows.items()}
        count = len(next(iter(given.values())))
        with self.around():
            found = [
                self._alone(graph, {name: tensor[i : i + 1] for name, tensor in given.items()})
                for i in range(count)
            ]
            return {
                name: torch.cat([one[name].to(device or self._device) for one in found]) for name in found[0]
            }

    @torch.inference_mode()
    def _alone(
        self, graph: str, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        self.bundle.graph(graph)
        with self._locks[graph]:
            found = self._session(graph).run(inputs, outputs)
            return {name: tensor.clone() for name, tensor in found.items()}

    def _session(self, graph: str) -> Session:
        # With the graph's lock held: no graph is loaded twice.
        if graph not in self._sessions:
            self._sessions[graph] = self.load(graph)
        return self._sessions[graph]


class _Entered(threading.local):
    """The blocks that each thread is in."""

    def __init__(self) -> None:
        self.blocks: list[AbstractContextManager[None]] = []


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
        if (name, shape) not in self._held:
            self._held[name, shape] = torch.empty(shape, dtype=DTYPES[spec.dtype], device=self._device)
        return self._held[name, shape]


class OwnStream:
    """A CUDA stream of its own for a library that runs graphs beside PyTorch.

    PyTorch's usual one has the handle 0: ONNX Runtime takes that for "none given" and makes one of its own, which
    nothing waits for, and no work on it can be captured as a graph. Work here begins after what PyTorch has queued, and
    what PyTorch queues next begins after it; nothing waits on the host. cuda: `torch.cuda`, or what stands in for it.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self.stream = cuda.Stream(device)

    @property
    def handle(self) -> int:
        """What the library is given."""
        return int(self.stream.cuda_stream)

    @contextmanager
    def taking_turns(self) -> Iterator[None]:
        """The library queues its work within the block."""
        current = self._cuda.current_stream(self._device)
        self.stream.wait_stream(current)
        try:
            yield
        finally:
            # Memory that PyTorch gives away after the block is written by what it queues after the library's work, too.
            current.wait_stream(self.stream)


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
        wanted = _shown(spec)
        if sizes:
            wanted += f" with {', '.join(f'{name} = {size}' for name, size in sizes.items())}"
        raise RunnerError(f"{graph}: input {spec.name!r} has shape {tuple(given.shape)}, wanted {wanted}")


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype} ({', '.join(str(side) for side in spec.shape)})"
