"""Plans of a bundle's graphs, named after all that they depend on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapedit_engine.bundle import (
    GRAPHS,
    PLANS_FOLDER,
    Bundle,
    BundleError,
    FileSpec,
    check_file,
    sha256_of,
)
from adapedit_engine.plan_files import PlanKey, PlanRecord, read_records, write_record
from adapedit_engine.runners.tensorrt import Messages, TensorRT
from adapedit_export.options import ExportError
from adapedit_export.tensorrt.network import add_profiles, check_network, parse
from adapedit_export.tensorrt.workloads import Workload, profiles_of

Progress = Callable[[str, int, int], None]
"""What is being done, steps done, steps in all."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """compute_capability: "8.0", "8.9", ...; None: that of the GPU here. refit: leave the weights exchangeable."""

    workload: Workload
    compute_capability: str | None = None
    refit: bool = False
    graphs: Sequence[str] = GRAPHS


def build_plans(
    bundle: Bundle, tensorrt: TensorRT, options: BuildOptions, *, progress: Progress | None = None
) -> list[PlanRecord]:
    """A plan for every graph; one that is there already and not stale is kept.

    Raises `ExportError` in one line with TensorRT's reason; plans that were finished before stay.
    """
    capability = target_capability(tensorrt, options.compute_capability)
    if options.refit and not torch.cuda.is_available():
        # TensorRT for RTX compiles kernels for exchangeable weights while it builds, and asks the driver to.
        raise ExportError(
            "--refit needs an NVIDIA GPU where the plan is built, and none is here; build without it"
        )
    records = []
    for graph in options.graphs:
        profiles = profiles_of(graph, bundle.graph(graph), options.workload)
        key = PlanKey(
            graph=graph,
            onnx_sha256=bundle.graph_hash(graph),
            family=tensorrt.family,
            version=tensorrt.version,
            compute_capability=capability,
            workload=options.workload.name,
            profiles=profiles,
            refit=options.refit,
        )
        records.append(_existing(bundle, key) or build_plan(bundle, tensorrt, key, progress=progress))
    return records


def build_plan(
    bundle: Bundle, tensorrt: TensorRT, key: PlanKey, *, progress: Progress | None = None
) -> PlanRecord:
    """Build what `key` says, and put plan and record into the bundle's plans folder."""
    start = time.perf_counter()
    plan, layers, activation = serialise(
        tensorrt, bundle.graph_path(key.graph), bundle, key, progress=progress
    )
    folder = bundle.folder / PLANS_FOLDER
    try:
        folder.mkdir(exist_ok=True)
        path = folder / f"{key.name}.plan"
        part = path.with_suffix(".part")
        part.write_bytes(plan)
        os.replace(part, path)
        record = PlanRecord(
            key=key,
            file=FileSpec(bytes=path.stat().st_size, sha256=sha256_of(path)),
            layers=layers,
            activation_bytes=activation,
            build_seconds=round(time.perf_counter() - start, 3),
        )
        write_record(folder, record)
    except OSError as error:
        raise ExportError(f"can't write to {folder} ({error.strerror or error}); free space there") from error
    return record


def serialise(
    tensorrt: TensorRT, path: Path, bundle: Bundle, key: PlanKey, *, progress: Progress | None = None
) -> tuple[Any, int, int]:
    """The plan's bytes, the network's layers, and the activation memory in bytes of the largest profile."""
    messages = Messages(tensorrt)
    builder = tensorrt.module.Builder(messages.logger)
    if builder is None:
        raise ExportError(f"{tensorrt.flavour} can't start: {messages.first()}")
    network, parser = parse(tensorrt, builder, path, messages)
    check_network(network, bundle.graph(key.graph), key.graph)
    config = builder.create_builder_config()
    add_profiles(builder, config, network, key.profiles, key.graph)
    configure(tensorrt, config, key)
    monitor = _monitor(tensorrt.module, key.graph, progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    with _timing_cache(tensorrt, config, bundle.folder / PLANS_FOLDER):
        plan = builder.build_serialized_network(network, config)
    del parser
    if plan is None:
        raise ExportError(
            f"{tensorrt.flavour} {tensorrt.version} built no plan of {key.graph}: {messages.first()}"
        )
    return plan, network.num_layers, messages.activation_bytes


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
    known = capabilities(tensorrt)
    chosen = wanted or here
    if chosen not in known:
        raise ExportError(
            f"compute capability {chosen} is none that {tensorrt.flavour} {tensorrt.version} names: "
            f"{', '.join(known)}"
        )
    return str(chosen)


def capabilities(tensorrt: TensorRT) -> list[str]:
    """Those that the library names, such as "8.9"."""
    names = [name for name in dir(tensorrt.module.ComputeCapability) if name.startswith("SM")]
    return sorted(
        (f"{name[2:-1]}.{name[-1]}" for name in names), key=lambda text: tuple(map(int, text.split(".")))
    )


def configure(tensorrt: TensorRT, config: Any, key: PlanKey) -> None:
    """What differs between the libraries, and refit."""
    trt = tensorrt.module
    if tensorrt.builds_without_gpu:
        config.num_compute_capabilities = 1
        name = f"SM{key.compute_capability.replace('.', '')}"
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    if key.refit:
        config.set_flag(trt.BuilderFlag.REFIT)


def _existing(bundle: Bundle, key: PlanKey) -> PlanRecord | None:
    for record in read_records(bundle):
        if record.key == key:
            try:
                check_file(bundle.folder / PLANS_FOLDER, record.file_name, record.file)
            except BundleError:
                return None
            return record
    return None


@contextmanager
def _timing_cache(tensorrt: TensorRT, config: Any, folder: Path) -> Iterator[None]:
    """Full TensorRT measures kernels as it builds, and remembers; RTX chooses without measuring."""
    if tensorrt.builds_without_gpu:
        yield
        return
    path = folder / "timing.cache"
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    folder.mkdir(exist_ok=True)
    path.write_bytes(bytes(config.get_timing_cache().serialize()))


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
