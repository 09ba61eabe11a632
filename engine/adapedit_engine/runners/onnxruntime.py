"""ONNX Runtime: graphs on the CPU, or on a GPU by its CUDA, TensorRT and TensorRT-RTX execution providers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from adapedit_engine.bundle import Bundle, check_graph
from adapedit_engine.manifest import GraphSpec
from adapedit_engine.runners.base import Capabilities, RunnerError, why_no_gpu
from adapedit_engine.runners.graphs import DTYPES, Buffers, BundleRunner, OwnStream, check_call

RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider: its name for ONNX Runtime, the device that it runs on, and what it needs."""

    name: str
    device: str
    install: str
    capture: Literal["own", "none"] = "none"

    @property
    def cuda_graph(self) -> bool:
        """Whether ONNX Runtime is asked to make CUDA graphs; TensorRT for RTX makes its own unasked."""
        return self.capture == "own" and self.name != RTX_PROVIDER


PROVIDERS = {
    "onnxruntime": Provider(
        name="CPUExecutionProvider", device="cpu", install="pip install 'adapedit[onnx]'"
    ),
    "onnxruntime-cuda": Provider(
        name="CUDAExecutionProvider", device="cuda", install="pip install onnxruntime-gpu", capture="own"
    ),
    "onnxruntime-tensorrt": Provider(
        name="TensorrtExecutionProvider",
        device="cuda",
        install="pip install onnxruntime-gpu and TensorRT's libraries",
    ),
    "onnxruntime-tensorrt-rtx": Provider(
        name=RTX_PROVIDER,
        device="cuda",
        install="pip install onnxruntime onnxruntime-ep-nv-tensorrt-rtx-cu13",
        capture="own",
    ),
}


def why_not(runner: str) -> str | None:
    """What keeps `runner` from running here, and how to mend it; None where nothing does."""
    provider = PROVIDERS[runner]
    if importlib.util.find_spec("onnxruntime") is None:
        return f"needs the package onnxruntime; {provider.install}"
    if provider.device == "cuda" and (reason := why_no_gpu(provider.install)) is not None:
        return reason
    if provider.name == RTX_PROVIDER:
        missing = importlib.util.find_spec(RTX_PACKAGE) is None
        return f"needs the package {RTX_PACKAGE}; {provider.install}" if missing else None
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if provider.name in there:
        return None
    return f"needs {provider.name}, this onnxruntime has {', '.join(there)}; {provider.install}"


def open_bundle(bundle: Bundle, runner: str) -> OnnxRuntimeRunner:
    """A runner of this file over a bundle. The CPU gets as many threads as torch has now."""
    return OnnxRuntimeRunner(bundle, runner)


class OnnxRuntimeRunner(BundleRunner):
    """Graphs of a bundle in ONNX Runtime, each in a session of its own."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        provider, threads = PROVIDERS[name], torch.get_num_threads()
        rows = None if bundle.manifest.rows is None else (bundle.manifest.rows,)
        capabilities = Capabilities(rows=rows, all_controls=True, capture=provider.capture)

        def load(graph: str) -> OnnxRuntimeSession:
            return OnnxRuntimeSession(bundle, graph, name, threads=threads)

        super().__init__(bundle, name, load, provider.device, capabilities)

    @contextmanager
    def around(self) -> Iterator[None]:
        """On the CPU torch gets one thread: more would go on spinning on the cores that the graph wants."""
        before = torch.get_num_threads()
        if self.device.type != "cpu" or before == 1:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class OnnxRuntimeSession:
    """One graph in ONNX Runtime, bound to the memory of torch tensors."""

    def __init__(
        self, bundle: Bundle, graph: str, runner: str = "onnxruntime", *, threads: int | None = None
    ) -> None:
        """threads: of the CPU, by default as many as torch uses.

        Raises `RunnerError` where the graph won't load, `BundleError` where it is not what the manifest says.
        """
        self.graph = graph
        self.spec: GraphSpec = bundle.graph(graph)
        self._provider = PROVIDERS[runner]
        self.device = torch.device(self._provider.device)
        self._own = OwnStream(self.device) if self.device.type == "cuda" else None
        self._session: Any = _load(bundle.graph_path(graph), self._provider, threads, self._own)
        found = {"inputs": self._session.get_inputs(), "outputs": self._session.get_outputs()}
        seen = {kind: {t.name: (t.type, tuple(t.shape)) for t in tensors} for kind, tensors in found.items()}
        check_graph(str(bundle.graph_path(graph)), self.spec, seen)
        self._buffers = Buffers(self.spec, self.device)
        self._bindings: dict[tuple[str, ...], Any] = {}
        self._stable: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._graphs = GraphNumbers()

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Session.run`."""
        sizes, wanted = check_call(self.graph, self.spec, inputs, outputs)
        if self._provider.cuda_graph:
            inputs = {name: self._at_one_address(name, tensor) for name, tensor in inputs.items()}
        binding = self._bindings.setdefault(wanted, self._session.io_binding())
        results = {name: self._buffers.take(name, sizes) for name in wanted}
        # Held until the run is over: what has to be made contiguous lives in a tensor of its own.
        held = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in held.items():
            binding.bind_input(name, *self._place(tensor))
        for name, tensor in results.items():
            binding.bind_output(name, *self._place(tensor))
        with nullcontext() if self._own is None else self._own.taking_turns():
            self._session.run_with_iobinding(binding, self._options(wanted, sizes))
        return results

    def close(self) -> None:
        """Free the session and its buffers."""
        self._session = None
        self._bindings, self._stable = {}, {}

    def _place(self, tensor: Tensor) -> tuple[Any, ...]:
        index = self.device.index or 0
        return self.device.type, index, _ELEMENT[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()

    def _at_one_address(self, name: str, tensor: Tensor) -> Tensor:
        # A CUDA graph replays addresses: inputs are copied to where they were when it was recorded.
        key = (name, tuple(tensor.shape))
        if key not in self._stable:
            self._stable[key] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        return self._stable[key].copy_(tensor)

    def _options(self, wanted: tuple[str, ...], sizes: Mapping[str, int]) -> Any:
        import onnxruntime

        if self.device.type == "cpu":
            return None
        options = onnxruntime.RunOptions()
        if self._provider.name != RTX_PROVIDER:  # which is not given a stream, and has to be waited for
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._provider.cuda_graph:
            options.add_run_config_entry("gpu_graph_id", str(self._graphs.of(wanted, sizes)))
        return options


class GraphNumbers:
    """Numbers from 1 on for CUDA graphs: one holds what it computed when it was recorded, at the sizes of then."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}

    def of(self, wanted: tuple[str, ...], sizes: Mapping[str, int]) -> int:
        """The number of the graph with these outputs and sides."""
        return self._known.setdefault((wanted, frozenset(sizes.items())), len(self._known) + 1)


def _load(path: Path, provider: Provider, threads: int | None, own: OwnStream | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    # Threads that wait for the next call by spinning keep a core from torch and from the other graphs' threads.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        if provider.name == RTX_PROVIDER:
            settings = {"nv_runtime_cache_path": str(path.parent)}
            options.add_provider_for_devices(_rtx_devices(onnxruntime), settings)
            return onnxruntime.InferenceSession(str(path), options)
        chosen = [(provider.name, _provider_options(provider, own))]
        return onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except RunnerError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise RunnerError(f"ONNX Runtime can't load {path.name} for {provider.name}: {reason}") from error


def _provider_options(provider: Provider, own: OwnStream | None) -> dict[str, str]:
    if own is None:
        return {}
    options = {"user_compute_stream": str(own.handle)}
    if provider.cuda_graph:
        options["enable_cuda_graph"] = "1"
    return options


def _rtx_devices(onnxruntime: Any) -> list[Any]:
    package = importlib.import_module(RTX_PACKAGE)
    there = [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX_PROVIDER]
    if not there:
        onnxruntime.register_execution_provider_library(RTX_PROVIDER, package.get_library_path())
        there = [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX_PROVIDER]
    if not there:
        raise RunnerError(f"{RTX_PROVIDER} finds no device: it needs an NVIDIA RTX GPU and its driver")
    return there[:1]


# Numbers of the ONNX tensor types: onnxruntime takes them in place of numpy's, which lack some.
_ELEMENT = {DTYPES[name]: number for name, number in {"float32": 1, "int64": 7, "float16": 10}.items()}
