"""ONNX Runtime: graphs on the CPU, or on a GPU by its CUDA, TensorRT and TensorRT-RTX execution providers.

The providers for GPUs were not run where this was written, which had none: tests hold the options to a stand-in.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from adapedit_engine.bundle import PLANS_FOLDER, Bundle, check_graph
from adapedit_engine.manifest import GRAPHS, GraphSpec, Shapes
from adapedit_engine.runners.base import Capabilities, RunnerError, why_no_gpu, why_no_rtx
from adapedit_engine.runners.graphs import DTYPES, Buffers, BundleRunner, OwnStream, check_call
from adapedit_engine.workloads import EVERY, profiles_of

PACKAGES = ("onnxruntime", "onnxruntime-gpu")
"""Distributions of the one module: they write the same folder, and the later one spoils the earlier."""

LEAST_ON_GPU = (1, 25)
"""The first version whose CUDA provider has `Attention` of opset 23, which older ones leave to the CPU."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider.

    name:    for ONNX Runtime.
    device:  that it runs on.
    install: what it needs, as a command.
    capture: whether ONNX Runtime is asked to make CUDA graphs.
    plugin:  the package whose library has to be registered, where it does not come with onnxruntime.
    plans:   prefix of its options for profiles of shapes; its graphs are built when the bundle is opened.
    """

    name: str
    device: str
    install: str
    capture: Literal["own", "none"] = "none"
    plugin: str | None = None
    plans: str | None = None


GPU = "pip install 'adapedit[gpu]'"
PROVIDERS = {
    "onnxruntime": Provider(
        name="CPUExecutionProvider", device="cpu", install="pip install 'adapedit[onnx]'"
    ),
    "onnxruntime-cuda": Provider(name="CUDAExecutionProvider", device="cuda", install=GPU, capture="own"),
    "onnxruntime-tensorrt": Provider(
        name="TensorrtExecutionProvider",
        device="cuda",
        install=f"{GPU} and TensorRT's libraries",
        plans="trt",
    ),
    "onnxruntime-tensorrt-rtx": Provider(
        name="NvTensorRTRTXExecutionProvider",
        device="cuda",
        install="pip install 'adapedit[tensorrt-rtx]'",
        capture="own",
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
        plans="nv",
    ),
}


def why_not(runner: str, index: int = 0) -> str | None:
    """What keeps `runner` from running here, and how to mend it; None where nothing does."""
    provider, there = PROVIDERS[runner], packages()
    if importlib.util.find_spec("onnxruntime") is None:
        return f"needs the package onnxruntime; {provider.install}"
    if len(there) > 1:
        kept = "onnxruntime-gpu" if torch.cuda.is_available() else "onnxruntime"
        (spare,) = set(PACKAGES) - {kept}
        return (
            f"finds {' and '.join(PACKAGES)}, which write one folder and spoil each other; remove {spare}: "
            f"pip uninstall -y {' '.join(PACKAGES)}, then pip install {kept}=={there[kept]}"
        )
    if provider.device == "cpu":
        return None
    if (reason := why_no_gpu(provider.install)) is not None:
        return reason
    if provider.plans == "nv" and (reason := why_no_rtx(index)) is not None:
        return reason
    import onnxruntime

    if _numbers(onnxruntime.__version__) < LEAST_ON_GPU:
        least = ".".join(map(str, LEAST_ON_GPU))
        return (
            f"has onnxruntime {onnxruntime.__version__}, which leaves attention to the CPU; "
            f"pip install '{next(iter(there), PACKAGES[1])}>={least}'"
        )
    if provider.plugin is not None and importlib.util.find_spec(provider.plugin) is None:
        return f"needs the package {provider.plugin}; {provider.install}"
    names = onnxruntime.get_available_providers()
    if _devices(onnxruntime, provider) or provider.name in names:
        return None
    if provider.plugin is not None:
        return f"needs {provider.name}, which finds no device: it takes an NVIDIA RTX GPU and its driver"
    return f"needs {provider.name}, this onnxruntime has {', '.join(names)}; {provider.install}"


def packages() -> dict[str, str]:
    """The distributions of onnxruntime that are installed, with their versions."""
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def open_bundle(bundle: Bundle, runner: str, device: torch.device) -> OnnxRuntimeRunner:
    """A runner of this file over a bundle. The CPU gets as many threads as torch has now."""
    return OnnxRuntimeRunner(bundle, runner, device)


class OnnxRuntimeRunner(BundleRunner):
    """Graphs of a bundle in ONNX Runtime, each in a session of its own."""

    def __init__(self, bundle: Bundle, name: str, device: torch.device) -> None:
        provider, threads = PROVIDERS[name], torch.get_num_threads()
        planned = None if provider.plans is None else tuple(range(1, EVERY.rows[-1] + 1))
        rows = planned if bundle.manifest.rows is None else (bundle.manifest.rows,)
        capabilities = Capabilities(rows=rows, all_controls=True, capture=provider.capture)

        def load(graph: str) -> OnnxRuntimeSession:
            return OnnxRuntimeSession(bundle, graph, name, device, threads=threads)

        super().__init__(bundle, name, load, device, capabilities)
        if provider.plans is not None:
            # Plans are built where they are not yet in the cache: minutes, which no request shall wait for.
            (bundle.folder / PLANS_FOLDER).mkdir(exist_ok=True)
            for graph in GRAPHS:
                self._session(graph)


class OnnxRuntimeSession:
    """One graph in ONNX Runtime, bound to the memory of torch tensors."""

    def __init__(
        self,
        bundle: Bundle,
        graph: str,
        runner: str,
        device: torch.device,
        *,
        threads: int | None = None,
    ) -> None:
        """threads: of the CPU, by default as many as torch uses.

        Raises `RunnerError` where the graph won't load, `BundleError` where it is not what the manifest says.
        """
        self.graph = graph
        self.spec: GraphSpec = bundle.graph(graph)
        self._provider = PROVIDERS[runner]
        self.device = device
        self._own = OwnStream(self.device) if self.device.type == "cuda" else None
        options = {} if self._own is None else gpu_options(runner, bundle, graph, device, self._own.handle)
        self._session: Any = _load(bundle.graph_path(graph), self._provider, device, options, threads)
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
        if self._provider.capture == "own":
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
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._provider.capture == "own":
            options.add_run_config_entry("gpu_graph_id", str(self._graphs.of(wanted, sizes)))
        return options


class GraphNumbers:
    """Numbers from 1 on for CUDA graphs: one holds what it computed when it was recorded, at the sizes of then."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}

    def of(self, wanted: tuple[str, ...], sizes: Mapping[str, int]) -> int:
        """The number of the graph with these outputs and sides."""
        return self._known.setdefault((wanted, frozenset(sizes.items())), len(self._known) + 1)


def gpu_options(runner: str, bundle: Bundle, graph: str, device: torch.device, stream: int) -> dict[str, str]:
    """The options of a runner's provider for one graph: a PyTorch stream, CUDA graphs, and where plans are kept."""
    provider, options = PROVIDERS[runner], {"user_compute_stream": str(stream)}
    if provider.plugin is None:  # a plug-in is given the device itself
        options["device_id"] = str(device.index or 0)
    if provider.capture == "own":
        options["enable_cuda_graph"] = "1"
    if provider.plans is None:
        return options | {
            # float32 means float32, and no call of another number of rows waits for a search.
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
    # ONNX Runtime names plans after the graph without its weights: a folder for each keeps them apart.
    folder = bundle.folder / PLANS_FOLDER / f"{runner}-{bundle.graph_hash(graph)[:16]}"
    options |= _profiles(provider.plans, profiles_of(graph, bundle.graph(graph), EVERY))
    if provider.plans == "nv":
        return options | {"nv_multi_profile_enable": "1", "nv_runtime_cache_path": str(folder)}
    half = bundle.manifest.precision == "float16"
    return options | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder.parent),
        "trt_fp16_enable": str(int(half)),
    }


def _profiles(prefix: str, profiles: Sequence[Mapping[str, Shapes]]) -> dict[str, str]:
    """As these providers want them: `name:1x4x8x8,...`, each input once a profile."""

    def written(place: int) -> str:
        return ",".join(
            f"{name}:{'x'.join(map(str, shapes[place]))}"
            for profile in profiles
            for name, shapes in profile.items()
        )

    return {f"{prefix}_profile_{name}_shapes": written(i) for i, name in enumerate(("min", "opt", "max"))}


def _load(
    path: Path, provider: Provider, device: torch.device, settings: dict[str, str], threads: int | None
) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    # Threads that wait for the next call by spinning keep a core from torch and from the other graphs' threads.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    devices = _devices(onnxruntime, provider) if device.type == "cuda" else []
    try:
        if devices:
            options.add_provider_for_devices([devices[device.index or 0]], settings)
            session = onnxruntime.InferenceSession(str(path), options)
        else:
            chosen = [(provider.name, settings)]
            if provider.plans == "trt":  # CUDA runs what TensorRT does not take
                shared = {name: settings[name] for name in ("device_id", "user_compute_stream")}
                chosen.append((PROVIDERS["onnxruntime-cuda"].name, shared))
            session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise RunnerError(f"ONNX Runtime can't load {path.name} for {provider.name}: {reason}") from error
    # A provider whose libraries are not found is left out, and the CPU takes its place.
    if provider.name not in (there := session.get_providers()):
        raise RunnerError(
            f"ONNX Runtime gave {path.name} to {', '.join(there)} and not to {provider.name}, whose libraries it did "
            f"not find; {provider.install}"
        )
    return session


def _devices(onnxruntime: Any, provider: Provider) -> list[Any]:
    """What a plug-in offers, its library registered first; empty for a provider that is no plug-in."""

    def there() -> list[Any]:
        return [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider.name]

    if not (found := there()) and provider.plugin is not None:
        library = importlib.import_module(provider.plugin).get_library_path()
        onnxruntime.register_execution_provider_library(provider.name, library)
        found = there()
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


# Numbers of the ONNX tensor types: onnxruntime takes them in place of numpy's, which lack some.
_ELEMENT = {DTYPES[name]: number for name, number in {"float32": 1, "int64": 7, "float16": 10}.items()}
