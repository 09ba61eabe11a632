"""From a bundle's graphs to TensorRT plans, named after all that they depend on; and plans with other weights."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from adapedit_engine.bundle import (
    PLANS_FOLDER,
    Bundle,
    check_file,
    check_graph,
    is_stale,
    read_plan,
    read_records,
    sha256_of,
    write_record,
)
from adapedit_engine.manifest import GRAPHS, BundleError, FileSpec, PlanKey, PlanRecord, Shapes
from adapedit_engine.runners.base import RunnerError
from adapedit_engine.runners.tensorrt import Messages, TensorRT, deserialise
from adapedit_engine.workloads import Workload, profiles_of
from adapedit_export.options import ExportError

Progress = Callable[[str, int, int], None]
"""What is being done, steps done, steps in all."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """compute_capability: "8.0", "8.9", ...; None: that of the GPU here. refit: leave the weights exchangeable.

    lean: for the lean runtime, of this or a later version; without refit.
    """

    workload: Workload
    compute_capability: str | None = None
    refit: bool = False
    lean: bool = False
    graphs: Sequence[str] = GRAPHS


def build_plans(
    bundle: Bundle, tensorrt: TensorRT, options: BuildOptions, *, progress: Progress | None = None
) -> list[PlanRecord]:
    """A plan for every graph; one that is there already and not stale is kept.

    Raises `ExportError` in one line with TensorRT's reason; plans that were finished before stay.
    """
    if bundle.manifest.precision == "int8":
        raise ExportError(
            f"{bundle.folder} is in int8 as CPUs multiply it, and TensorRT wants other scales; "
            "export with --quantize fp8"
        )
    capability = target_capability(tensorrt, options.compute_capability)
    if options.lean and (options.refit or tensorrt.builds_without_gpu):
        raise ExportError(
            "--lean is for the full TensorRT and without --refit: the lean runtime exchanges no weights"
        )
    if options.refit and not torch.cuda.is_available():
        # TensorRT for RTX compiles kernels for exchangeable weights while it builds, and asks the driver to.
        raise ExportError(
            "--refit needs an NVIDIA GPU where the plan is built, and none is here; build without it"
        )
    records = []
    for graph in options.graphs:
        key = PlanKey(
            graph=graph,
            onnx_sha256=bundle.graph_hash(graph),
            family=tensorrt.family,
            version=tensorrt.version,
            compute_capability=capability,
            workload=options.workload.name,
            profiles=profiles_of(graph, bundle.graph(graph), options.workload),
            refit=options.refit,
            lean=options.lean,
        )
        record = _existing(bundle, key)
        if record is None:
            start, path = time.perf_counter(), bundle.graph_path(graph)
            plan, layers, activation = serialise(tensorrt, path, bundle, key, progress=progress)
            record = _write(bundle, plan, key, layers=layers, activation_bytes=activation, start=start)
        records.append(record)
    return records


def serialise(
    tensorrt: TensorRT, path: Path, bundle: Bundle, key: PlanKey, *, progress: Progress | None = None
) -> tuple[Any, int, int]:
    """The plan's bytes, the network's layers, and the activation memory in bytes of the largest profile.

    Strongly typed: precision is what the file says. Attention may be spelled out where no fused kernel is there for it.
    Raises `ExportError` where TensorRT does not take the graph, `BundleError` where it sees another than the manifest.
    """
    messages = Messages(tensorrt)
    with polygraphy_backend(tensorrt, messages) as backend:
        try:
            parsed = backend.SetDecomposableAttentions(
                backend.NetworkFromOnnxPath(str(path), strongly_typed=True)
            )()
        except Exception as error:
            raise ExportError(
                f"{tensorrt.flavour} {tensorrt.version} does not take {path.name}: {messages.first()}"
            ) from error
        _, network, _ = parsed
        _check_network(network, bundle, key)
        timing = str(bundle.folder / PLANS_FOLDER / "timing.cache")
        config: dict[str, Any] = {
            "profiles": [_profile(backend, shapes) for shapes in key.profiles],
            "refittable": key.refit,
            "version_compatible": key.lean,
            "progress_monitor": progress and _monitor(tensorrt.module, key.graph, progress),
        }
        if tensorrt.builds_without_gpu:
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            capability = tuple(map(int, key.compute_capability.split(".")))
            chosen, timing = CreateConfigRTX(compute_capabilities=[capability], **config), ""
        else:  # which measures kernels as it builds, and remembers
            chosen = backend.CreateConfig(load_timing_cache=timing, **config)
        try:
            plan = backend.EngineBytesFromNetwork(parsed, chosen, save_timing_cache=timing or None)()
        except Exception as error:
            raise ExportError(
                f"{tensorrt.flavour} {tensorrt.version} built no plan of {key.graph}: {messages.first()}"
            ) from error
    return plan, network.num_layers, messages.activation_bytes


@contextmanager
def polygraphy_backend(tensorrt: TensorRT, messages: Messages | None = None) -> Iterator[Any]:
    """Polygraphy's loaders over a flavour, which tell `messages` what the library says, and print nothing.

    A process has one flavour: Polygraphy decides for TensorRT or TensorRT for RTX when it is imported.
    """
    if find_spec("polygraphy") is None:
        raise ExportError("building plans needs the package polygraphy; pip install polygraphy")
    from polygraphy import config

    if "polygraphy.backend.trt" not in sys.modules:
        config.USE_TENSORRT_RTX = tensorrt.builds_without_gpu
        sys.modules.setdefault(tensorrt.flavour.replace("-", "_"), tensorrt.module)
    elif tensorrt.builds_without_gpu != config.USE_TENSORRT_RTX:
        raise ExportError(
            "this process has built plans with the other TensorRT; build these in a process of their own"
        )
    from polygraphy.backend import trt as backend
    from polygraphy.backend.trt import util
    from polygraphy.logger import G_LOGGER

    util.TRT_LOGGER = (messages or Messages(tensorrt)).logger
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield backend


def _check_network(network: Any, bundle: Bundle, key: PlanKey) -> None:
    found = {
        "inputs": [network.get_input(i) for i in range(network.num_inputs)],
        "outputs": [network.get_output(i) for i in range(network.num_outputs)],
    }
    seen = {kind: {t.name: (t.dtype.name, tuple(t.shape)) for t in own} for kind, own in found.items()}
    check_graph(f"{key.graph}: what TensorRT sees", bundle.graph(key.graph), seen)


def _profile(backend: Any, shapes: dict[str, Shapes]) -> Any:
    profile = backend.Profile()
    for name, (low, best, high) in shapes.items():
        profile.add(name, min=low, opt=best, max=high)
    return profile


def refit_plans(source: Bundle, bundle: Bundle, tensorrt: TensorRT) -> list[PlanRecord]:
    """Every plan of `source` that this library can refit, with the weights of `bundle`, in `bundle`.

    Fine-tuned models have the graph, and take the plan, of the one they came from. Raises `ExportError` where there is
    none, and what `refit_plan` raises.
    """
    library = (tensorrt.family, tensorrt.version, True)
    fresh = [
        record
        for record in read_records(source)
        if (record.key.family, record.key.version, record.key.refit) == library
        and not is_stale(source, record)
    ]
    if not fresh:
        raise ExportError(
            f"{source.folder} has no plan of {tensorrt.family} {tensorrt.version} whose weights can be exchanged; "
            f"build one: adapedit build {source.folder} --refit"
        )
    return [refit_plan(record, source, bundle, tensorrt) for record in fresh]


def refit_plan(record: PlanRecord, source: Bundle, bundle: Bundle, tensorrt: TensorRT) -> PlanRecord:
    """Put the weights of `bundle` into a plan that `source` was built with and left exchangeable.

    Needs a GPU, where plans are loaded. Raises `RunnerError` or `ExportError` in one line.
    """
    if not record.key.refit:
        raise ExportError(f"{record.file_name} was built without refit; build it again with --refit")
    if not torch.cuda.is_available():
        raise RunnerError("a refit loads the plan, which needs an NVIDIA GPU; build a plan of its own here")
    start = time.perf_counter()
    trt, messages = tensorrt.module, Messages(tensorrt)
    engine = deserialise(tensorrt, read_plan(source, record), record.file_name)
    refitter = trt.Refitter(engine, messages.logger)
    weights = bundle.graph_path(record.key.graph)
    fed = trt.OnnxParserRefitter(refitter, messages.logger).refit_from_file(str(weights))
    if not fed or not refitter.refit_cuda_engine():
        raise ExportError(f"{record.file_name} does not take these weights: {messages.first()}")
    key = replace(record.key, onnx_sha256=bundle.graph_hash(record.key.graph))
    facts = {"layers": record.layers, "activation_bytes": record.activation_bytes}
    return _write(bundle, engine.serialize(), key, **facts, start=start)


def target_capability(tensorrt: TensorRT, wanted: str | None) -> str:
    """Compute capability to build for. Raises `ExportError` where it can't be built for here."""
    here = ".".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else None
    if wanted is None and here is None:
        raise ExportError(
            "there is no GPU here to build for: name one with --compute-capability, such as 8.9"
        )
    if not tensorrt.builds_without_gpu:
        if here is None or wanted not in (None, here):
            raise ExportError(
                f"TensorRT {tensorrt.version} builds for the GPU that it runs on ({here or 'none here'}); "
                "build there, or install TensorRT for RTX, which builds for others too"
            )
        return here
    chosen, known = wanted or here, capabilities(tensorrt)
    if chosen not in known:
        hint = (
            "; an H100 or H200 takes the full TensorRT, or runner onnxruntime-cuda" if chosen == "9.0" else ""
        )
        raise ExportError(
            f"compute capability {chosen} is none that {tensorrt.flavour} {tensorrt.version} names: "
            f"{', '.join(known)}{hint}"
        )
    return str(chosen)


def capabilities(tensorrt: TensorRT) -> list[str]:
    """Those that the library names, such as "8.9"."""
    names = dir(tensorrt.module.ComputeCapability)
    numbers = sorted(int(name.removeprefix("SM")) for name in names if name.startswith("SM"))
    return [f"{number // 10}.{number % 10}" for number in numbers]


def _monitor(trt: Any, graph: str, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            progress(f"{graph}: {name}", step + 1, self.steps.get(name, 0))
            return True

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()


def _existing(bundle: Bundle, key: PlanKey) -> PlanRecord | None:
    """The record of a plan that is there and whole."""
    for record in read_records(bundle):
        if record.key == key:
            with suppress(BundleError):
                check_file(bundle.folder / PLANS_FOLDER, record.file_name, record.file)
                return record
    return None


def _write(
    bundle: Bundle, plan: Any, key: PlanKey, *, layers: int, activation_bytes: int, start: float
) -> PlanRecord:
    """Put a plan and its record into the plans folder. start: of the work, by `time.perf_counter`."""
    folder = bundle.folder / PLANS_FOLDER
    path = folder / f"{key.name}.plan"
    part = path.with_suffix(".part")
    try:
        folder.mkdir(exist_ok=True)
        part.write_bytes(plan)
        os.replace(part, path)
        record = PlanRecord(
            key=key,
            file=FileSpec(bytes=path.stat().st_size, sha256=sha256_of(path)),
            layers=layers,
            activation_bytes=activation_bytes,
            build_seconds=round(time.perf_counter() - start, 3),
        )
        write_record(folder, record)
    except OSError as error:
        raise ExportError(f"can't write to {folder} ({error.strerror or error}); free space there") from error
    return record
