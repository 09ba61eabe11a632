"""TensorRT, full, lean or for RTX: plans of a bundle on an NVIDIA GPU, in turn with torch's stream.

Not run where this was written, which had no GPU: names and arguments were checked against the bindings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.bundle import PLANS_FOLDER, Bundle
from adapedit_engine.manifest import GraphSpec
from adapedit_engine.plan_files import PlanRecord, find_plan, read_plan
from adapedit_engine.runners import RunnerError
from adapedit_engine.runners import tensorrt_library as library
from adapedit_engine.runners.session import Buffers, Session, check_call
from adapedit_engine.runners.tensorrt_engine import check_engine
from adapedit_engine.runners.tensorrt_library import Messages, TensorRT
from adapedit_engine.runners.turns import OwnStream

RUNNERS = tuple(library.FLAVOURS)


def why_not(runner: str) -> str | None:
    """What keeps `runner` from running here, and how to mend it; None where nothing does."""
    if not torch.cuda.is_available():
        return (
            "needs an NVIDIA GPU and a CUDA build of torch, which are not here; "
            f"then {library.FLAVOURS[runner].install}"
        )
    return library.why_not(runner)


def opener(bundle: Bundle, runner: str) -> Callable[[str], Session]:
    """Loads graphs of `bundle` from the plans that were built for this library and GPU."""
    tensorrt = library.load(runner)
    major, minor = torch.cuda.get_device_capability()

    library_and_gpu = {
        "family": tensorrt.family,
        "version": tensorrt.version,
        "compute_capability": f"{major}.{minor}",
    }
    return lambda graph: TensorRTSession(bundle, find_plan(bundle, graph, **library_and_gpu), tensorrt)


def deserialise(tensorrt: TensorRT, plan: bytes, name: str) -> Any:
    """The engine of a plan. Raises `RunnerError` with TensorRT's own reason."""
    messages = Messages(tensorrt)
    runtime = tensorrt.module.Runtime(messages.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RunnerError(
            f"{name} is no plan that {tensorrt.flavour} {tensorrt.version} loads: {messages.first()}"
        )
    return engine


class TensorRTSession:
    """One plan with a context for each of its profiles that was used."""

    def __init__(self, bundle: Bundle, record: PlanRecord, tensorrt: TensorRT) -> None:
        """Raises `BundleError` for a plan that is not what its record says, `RunnerError` where it won't load or has
        other inputs, outputs or profiles than the manifest and the record."""
        self.graph, self.record = record.key.graph, record
        self.spec: GraphSpec = bundle.graph(self.graph)
        self._tensorrt = tensorrt
        self._engine: Any = deserialise(tensorrt, read_plan(bundle, record), record.file_name)
        check_engine(self._engine, self.spec, record)
        self._cache_file = bundle.folder / PLANS_FOLDER / f"{record.key.name}.runtime-cache"
        self._cache: Any = None
        self._contexts: dict[int, Any] = {}
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._own = OwnStream(self._device)
        self._buffers = Buffers(self.spec, self._device)
        self._held: tuple[Tensor, ...] = ()

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Session.run`. All outputs are computed, those wanted are returned."""
        sizes, wanted = check_call(self.graph, self.spec, inputs, outputs)
        given = {name: tensor.contiguous() for name, tensor in inputs.items()}
        stream = self._own.handle
        context = self._context({name: tuple(tensor.shape) for name, tensor in given.items()}, stream)
        results = {spec.name: self._buffers.take(spec.name, sizes) for spec in self.spec.outputs}
        for name, tensor in given.items():
            context.set_input_shape(name, tuple(tensor.shape))
        for name, tensor in (given | results).items():
            context.set_tensor_address(name, tensor.data_ptr())
        with self._own.taking_turns():
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
            ranges = [
                f"{low[0]} to {high[0]}"
                for low, _, high in (p[self._first] for p in self.record.key.profiles)
            ]
            raise RunnerError(
                f"{self.graph}: {shapes[self._first][0]} rows, this plan ({self.record.key.workload}) takes "
                f"{', '.join(ranges)}; build one for another workload with: adapedit build"
            )
        if profile not in self._contexts:
            context = self._new_context()
            context.set_optimization_profile_async(profile, stream)
            self._contexts[profile] = context
        return self._contexts[profile]

    @property
    def _first(self) -> str:
        return self.spec.inputs[0].name

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
