"""TensorRT, full, lean or for RTX: plans of a bundle on an NVIDIA GPU, in turn with torch's stream.

Not run where this was written, which had no GPU: names and arguments were checked against the bindings.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from adapedit_engine.bundle import PLANS_FOLDER, Bundle, check_graph, find_plan, read_plan
from adapedit_engine.manifest import BundleError, GraphSpec, PlanKey, PlanRecord
from adapedit_engine.runners.base import Capabilities, RunnerError, capability_of, why_no_gpu, why_no_rtx
from adapedit_engine.runners.graphs import Buffers, BundleRunner, OwnStream, check_call

RTX_BINDINGS = "tensorrt_rtx_bindings"
RTX_LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"
PRELOAD = ("libcudart.so.*", "libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")
# A plan tells this only where it can be loaded, which takes a GPU; the builder says it anywhere.
ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """builds: whether plans can be built with it, or only run."""

    modules: tuple[str, ...]
    builds: bool
    install: str

    @property
    def installed(self) -> str | None:
        """The first of its modules that is there."""
        return next((name for name in self.modules if find_spec(name) is not None), None)


FLAVOURS = {
    "tensorrt": Flavour(modules=("tensorrt",), builds=True, install="pip install 'adapedit[tensorrt]'"),
    "tensorrt-rtx": Flavour(
        modules=("tensorrt_rtx", RTX_BINDINGS), builds=True, install="pip install 'adapedit[tensorrt-rtx]'"
    ),
    "tensorrt-lean": Flavour(
        modules=("tensorrt_lean",), builds=False, install="pip install tensorrt-lean-cu13"
    ),
}


@dataclass(frozen=True, kw_only=True)
class TensorRT:
    """A loaded library: `module` has TensorRT's Python API."""

    flavour: str
    module: Any
    version: str

    @property
    def builds_without_gpu(self) -> bool:
        """Whether plans for a named compute capability can be built where no GPU is."""
        return self.flavour == "tensorrt-rtx"

    @property
    def family(self) -> str:
        """Whose plans it runs: the lean runtime runs those of the full library."""
        return "tensorrt" if self.flavour == "tensorrt-lean" else self.flavour


def why_not_load(flavour: str) -> str | None:
    """What keeps a flavour from loading, and how to mend it; None where nothing does."""
    kind = FLAVOURS[flavour]
    if not kind.installed:
        return f"needs the package {kind.modules[0]}; {kind.install}"
    try:
        load(flavour)
    except RunnerError as error:
        return str(error)
    return None


@lru_cache
def load(flavour: str) -> TensorRT:
    """Import a flavour. Raises `RunnerError` where it is not installed or its libraries do not load."""
    kind = FLAVOURS.get(flavour)
    if kind is None:
        raise RunnerError(f"there is no TensorRT {flavour!r}; use one of: {', '.join(FLAVOURS)}")
    name = kind.installed
    if name is None:
        raise RunnerError(f"{flavour} is not installed; {kind.install}")
    try:
        if name == RTX_BINDINGS:
            _preload_rtx()
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunnerError(f"{name} is installed but does not load ({reason}); {kind.install}") from error
    return TensorRT(flavour=flavour, module=module, version=module.__version__)


def load_builder() -> TensorRT:
    """The first flavour that is installed and builds plans: the full library before RTX."""
    for flavour, kind in FLAVOURS.items():
        if kind.builds and kind.installed:
            return load(flavour)
    hints = " or ".join(kind.install for kind in FLAVOURS.values() if kind.builds)
    raise RunnerError(f"no TensorRT that builds plans is installed; {hints}")


def _preload_rtx() -> None:
    # The bindings name libraries that they do not carry; ONNX Runtime's plug-in does, and does not put them
    # where the loader looks. Order matters: each needs the one before it.
    found = find_spec(RTX_LIBRARIES)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the libraries are in the package {RTX_LIBRARIES.replace('_', '-')}-cu13")
    folder = Path(next(iter(found.submodule_search_locations)))
    for pattern in PRELOAD:
        files = sorted(folder.glob(pattern))
        if not files:
            raise ImportError(f"{folder} has no {pattern}")
        ctypes.CDLL(str(files[-1]), mode=ctypes.RTLD_GLOBAL)


class Messages:
    """What a library says from now on, so that an error can name its cause.

    activation_bytes: device memory between the layers, of the largest profile, as the builder planned it.
    """

    def __init__(self, tensorrt: TensorRT) -> None:
        self._said: list[str] = []
        self.activation_bytes = 0
        self.logger, listener = _logger(tensorrt)
        listener[:] = [self._hear]

    def first(self) -> str:
        """The first error, in a line of moderate length."""
        return self._said[0][:400] if self._said else "no reason was given"

    def _hear(self, serious: bool, message: str) -> None:
        if serious:
            self._said.append(" ".join(message.split()))
        elif found := ACTIVATION.search(message):
            self.activation_bytes = max(self.activation_bytes, int(found[1]))


@lru_cache
def _logger(tensorrt: TensorRT) -> tuple[Any, list[Callable[[bool, str], None]]]:
    # One for the life of the process: TensorRT keeps the first logger that it is given and ignores all others.
    trt: Any = tensorrt.module
    errors = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
    listener: list[Callable[[bool, str], None]] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            for hear in listener:
                hear(severity in errors, message)

    return Log(), listener


def why_not(runner: str, index: int = 0) -> str | None:
    """What keeps `runner` from running here, and how to mend it; None where nothing does."""
    if (reason := why_no_gpu(FLAVOURS[runner].install)) is not None:
        return reason
    if runner == "tensorrt-rtx" and (reason := why_no_rtx(index)) is not None:
        return reason
    return why_not_load(runner)


def open_bundle(bundle: Bundle, runner: str, device: torch.device) -> BundleRunner:
    """A runner over the plans of a bundle that were built for this library and GPU.

    Raises `BundleError` where there is none of the UNet.
    """
    tensorrt, gpu = load(runner), capability_of(device.index)
    lean = runner == "tensorrt-lean"
    library: dict[str, Any] = {"family": tensorrt.family, "version": tensorrt.version, "lean": lean}

    def find(graph: str) -> PlanRecord:
        return find_plan(bundle, graph, **library, compute_capability=gpu)

    def load_graph(graph: str) -> TensorRTSession:
        return TensorRTSession(bundle, find(graph), tensorrt, device)

    capture: Literal["own", "step"] = "own" if runner == "tensorrt-rtx" else "step"
    capabilities = Capabilities(rows=rows_of(find("unet").key), all_controls=True, capture=capture)
    return BundleRunner(bundle, runner, load_graph, device, capabilities)


def rows_of(key: PlanKey) -> tuple[int, ...]:
    """The numbers of rows that some profile of a UNet's plan takes, ascending."""
    ranges = [(low[0], high[0]) for low, _, high in (profile["sample"] for profile in key.profiles)]
    return tuple(sorted({rows for low, high in ranges for rows in range(low, high + 1)}))


def deserialise(tensorrt: TensorRT, plan: bytes, name: str) -> Any:
    """The engine of a plan. Raises `RunnerError` with TensorRT's own reason."""
    messages = Messages(tensorrt)
    runtime = tensorrt.module.Runtime(messages.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        library = f"{tensorrt.flavour} {tensorrt.version}"
        raise RunnerError(f"{name} is no plan that {library} loads: {messages.first()}")
    return engine


class TensorRTSession:
    """One plan with a context for each of its profiles that was used."""

    def __init__(self, bundle: Bundle, record: PlanRecord, tensorrt: TensorRT, device: torch.device) -> None:
        """Raises `BundleError` for a plan that is not what its record and the manifest say, `RunnerError` for one that
        won't load."""
        self.graph, self.record = record.key.graph, record
        self.spec: GraphSpec = bundle.graph(self.graph)
        self._tensorrt = tensorrt
        with torch.cuda.device(device):
            self._engine: Any = deserialise(tensorrt, read_plan(bundle, record), record.file_name)
        check_engine(self._engine, self.spec, record)
        self._cache_file = bundle.folder / PLANS_FOLDER / f"{record.key.name}.runtime-cache"
        self._cache: Any = None
        self._contexts: dict[int, Any] = {}
        self._device = device
        self._own = OwnStream(self._device)
        self._buffers = Buffers(self.spec, self._device)
        self._held: tuple[Tensor, ...] = ()

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Session.run`. All outputs are computed, those wanted are returned."""
        sizes, wanted = check_call(self.graph, self.spec, inputs, outputs)
        given = {name: tensor.contiguous() for name, tensor in inputs.items()}
        stream = self._own.handle
        results = {spec.name: self._buffers.take(spec.name, sizes) for spec in self.spec.outputs}
        with torch.cuda.device(self._device), self._own.taking_turns():
            context = self._context({name: tuple(tensor.shape) for name, tensor in given.items()}, stream)
            for name, tensor in given.items():
                context.set_input_shape(name, tuple(tensor.shape))
            for name, tensor in (given | results).items():
                context.set_tensor_address(name, tensor.data_ptr())
            started = context.execute_async_v3(stream)
        if not started:
            raise RunnerError(f"{self.graph}: TensorRT did not start; see its messages above")
        # The work goes on after this call: what it reads must outlive it until the next one is queued.
        self._held = tuple(given.values())
        return {name: results[name] for name in wanted}

    def close(self) -> None:
        """Free contexts and engine; keep what RTX compiled for this GPU, for the next start."""
        if self._cache is not None:
            self._cache_file.write_bytes(bytes(self._cache.serialize()))
        self._contexts, self._cache, self._engine, self._held = {}, None, None, ()

    def _context(self, shapes: dict[str, tuple[int, ...]], stream: int) -> Any:
        profile = self.record.key.profile_of(shapes)
        if profile is None:
            first, key = self.spec.inputs[0].name, self.record.key
            ranges = [f"{low[0]} to {high[0]}" for low, _, high in (p[first] for p in key.profiles)]
            raise RunnerError(
                f"{self.graph}: {shapes[first][0]} rows, this plan ({key.workload}) takes "
                f"{', '.join(ranges)}; build one for another workload with: adapedit build"
            )
        if profile not in self._contexts:
            context = self._new_context()
            context.set_optimization_profile_async(profile, stream)
            self._contexts[profile] = context
        return self._contexts[profile]

    def _new_context(self) -> Any:
        if self._tensorrt.flavour != "tensorrt-rtx":
            return self._engine.create_execution_context()
        # RTX compiles kernels when they are first needed: kept in a cache, the next start has them at once.
        trt = self._tensorrt.module
        config = self._engine.create_runtime_config()
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._cache_file.is_file():
                self._cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(self._cache)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._engine.create_execution_context(config)


def check_engine(engine: Any, spec: GraphSpec, record: PlanRecord) -> None:
    """Raise `BundleError` unless inputs, outputs and profiles are those of the manifest and of the record."""
    found: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        kind = "inputs" if engine.get_tensor_mode(name).name == "INPUT" else "outputs"
        found[kind][name] = engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))
    where, mend = f"plan {record.file_name}", "build it again: adapedit build"
    check_graph(where, spec, found, mend=mend)
    profiles, count = record.key.profiles, engine.num_optimization_profiles
    if count != len(profiles):
        raise BundleError(f"{where} has {count} profiles, wanted {len(profiles)}; {mend}")
    for index, profile in enumerate(profiles):
        for name, shapes in profile.items():
            got = tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, index))
            if got != shapes:
                what = f"{name} in profile {index} as {got}, wanted {shapes}"
                raise BundleError(f"{where} takes {what}; {mend}")
