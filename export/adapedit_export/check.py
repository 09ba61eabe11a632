"""A runner held to what PyTorch gave, by Polygraphy's comparator: graph by graph, and along a whole edit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.bundle import find_plan, read_plan
from adapedit_engine.manifest import GraphSpec
from adapedit_engine.runners.base import RunnerError, capability_of
from adapedit_engine.runners.graphs import DTYPES, BundleRunner
from adapedit_engine.runners.onnxruntime import PROVIDERS
from adapedit_engine.runners.tensorrt import FLAVOURS, load
from adapedit_engine.scheduler import denoise
from adapedit_export.options import ExportError, Precision
from adapedit_export.parity import Progress, Reference, shown
from adapedit_kernels.errors import AdapEditError

try:
    from polygraphy.backend.base import BaseRunner
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator import Comparator, IterationResult
    from polygraphy.logger import G_LOGGER
except ImportError as error:
    raise ExportError("a check needs the package polygraphy; pip install polygraphy") from error


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One output of one stage, against the reference; true where it is near enough.

    stage:   a graph ("random inputs"), or "edit".
    largest: difference; of pictures in grey levels.
    ratio:   norm of the error over norm of the reference.
    limit:   what `measure` ("largest" or "ratio") may be.
    """

    runner: str
    stage: str
    output: str
    largest: float
    mean: float
    ratio: float
    measure: str
    limit: float

    @property
    def passed(self) -> bool:
        return bool(getattr(self, self.measure) <= self.limit)

    def __bool__(self) -> bool:
        return self.passed


def check_runner(
    runner: BundleRunner, reference: Reference, *, progress: Progress | None = None
) -> list[Finding]:
    """Run everything that the reference holds. Raises `RunnerError` where the runner can't run here."""
    say = progress or (lambda _: None)
    loose = 1.0 if runner.capabilities.exact else 5.0  # bfloat16 has three bits less of a number than float16
    precision = Precision(runner.bundle.manifest.precision)
    if not runner.capabilities.exact and precision is Precision.FLOAT32:
        precision = Precision.MIXED
    found = []
    for graph, call in reference.calls.items():
        say(f"{runner.name}: {graph}")
        spec = runner.bundle.graph(graph)
        inputs = {t.name: call[t.name].to(DTYPES[t.dtype]) for t in spec.inputs}
        limits = dict.fromkeys([t.name for t in spec.outputs], ("ratio", precision.ratio_limit * loose))
        found += _compare(_runner_of(runner, graph, inputs), graph, inputs, call, limits)
    if (plan := reference.edit) is not None:
        say(f"{runner.name}: an edit of {plan.steps} steps")

        def edit(_: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with runner:
                outcome = denoise([plan], runner)[0]
                return shown(outcome, runner.decode(outcome.latents))

        exact = precision is Precision.FLOAT32
        loose = 5.0 if precision.quantised else loose
        limits = {
            "latents": ("ratio", 1e-3 if exact else 0.1 * loose),
            "maps": ("largest", 1e-4 if exact else 1e-2 * loose),
            "features": ("ratio", 1e-3 if exact else 0.1 * loose),
            "pictures": ("largest" if exact else "mean", precision.image_limit),
        }
        found += _compare(_Own(runner.name, None, edit), "edit", {}, reference.outcome, limits)
    return found


def _runner_of(runner: BundleRunner, graph: str, inputs: Mapping[str, Tensor]) -> BaseRunner:
    """Polygraphy's runner of a graph where it has one for the library, else this project's."""
    provider = PROVIDERS.get(runner.name)
    if provider is not None and provider.plugin is None:
        path = str(runner.bundle.graph_path(graph))
        return OnnxrtRunner(SessionFromOnnx(path, providers=[provider.name]), name=runner.name)
    if runner.name in FLAVOURS and runner.name != "tensorrt-lean":  # not run where this was written
        from adapedit_export.tensorrt import polygraphy_backend

        tensorrt, gpu = load(runner.name), capability_of(runner.device.index)
        library: dict[str, Any] = {"family": tensorrt.family, "version": tensorrt.version, "lean": False}
        record = find_plan(runner.bundle, graph, **library, compute_capability=gpu)
        profile = record.key.profile_of({name: tuple(tensor.shape) for name, tensor in inputs.items()})
        if profile is not None:  # else this project's says which rows the plan takes
            with polygraphy_backend(tensorrt) as backend:
                engine = backend.EngineFromBytes(read_plan(runner.bundle, record))
                return backend.TrtRunner(engine, name=runner.name, optimization_profile=profile)
    return _Own(runner.name, runner.bundle.graph(graph), lambda given: runner.run_graph(graph, given))


class _Own(BaseRunner):
    """For Polygraphy what it has no runner for: a graph in another library, and a whole edit, which has no inputs."""

    def __init__(
        self, name: str, spec: GraphSpec | None, work: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> None:
        super().__init__(name=name)
        self._spec, self._work = spec, work

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for tensor in self._spec.inputs if self._spec else ():
            metadata.add(tensor.name, DTYPES[tensor.dtype], tensor.shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        start = time.perf_counter()
        found = {name: tensor.cpu() for name, tensor in self._work(feed_dict).items()}
        self.inference_time = time.perf_counter() - start
        return found


def _compare(
    runner: BaseRunner,
    stage: str,
    inputs: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    limits: Mapping[str, tuple[str, float]],
) -> list[Finding]:
    """limits: of every output that is compared, which measure may be how large."""

    def findings(got: IterationResult, reference: IterationResult) -> dict[str, Finding]:
        return {
            name: _finding(runner.name, stage, name, got[name], reference[name], *limits[name])
            for name in reference
        }

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        try:
            results = Comparator.run([runner], data_loader=[dict(inputs)])
        except AdapEditError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise RunnerError(f"{runner.name} can't run {stage}: {reason}") from error
        results.add([{name: wanted[name] for name in limits if name in wanted}], runner_name="PyTorch")
        (accuracy,) = Comparator.compare_accuracy(results, compare_func=findings)
    ((compared,),) = accuracy.values()
    return list(compared.values())


def _finding(
    runner: str, stage: str, output: str, got: Tensor, wanted: Tensor, measure: str, limit: float
) -> Finding:
    one, other = got.detach().double(), wanted.double()
    if one.shape != other.shape:
        raise RunnerError(
            f"{runner}: {stage} gave {output} of shape {tuple(one.shape)}, the reference has {tuple(other.shape)}"
        )
    # What is not finite is not near anything.
    error = torch.nan_to_num((one - other).abs(), nan=torch.inf, posinf=torch.inf)
    return Finding(
        runner=runner,
        stage=stage,
        output=output,
        largest=float(error.max()),
        mean=float(error.mean()),
        ratio=float(error.norm() / other.norm().clamp_min(1e-30)),
        measure=measure,
        limit=limit,
    )
