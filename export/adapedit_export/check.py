"""Parity: what a runner gives against what PyTorch gave, on random inputs and along a whole edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapedit_engine.scheduler import denoise
from adapedit_engine.runners import RunnerError
from adapedit_engine.runners.graphs import DTYPES, BundleRunner
from adapedit_export.options import Precision
from adapedit_export.reference import Reference

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One output of one stage, against the reference.

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
        value = getattr(self, self.measure)
        return bool(value <= self.limit)


def check_runner(
    runner: BundleRunner,
    reference: Reference,
    *,
    progress: Progress | None = None,
    graphs: Sequence[str] = (),
) -> list[Finding]:
    """Run everything that the reference holds. `graphs`: only these of the random calls.

    Raises `RunnerError` where the runner can't run here.
    """
    manifest = runner.bundle.manifest
    precision = Precision(manifest.precision)
    found = []
    for graph, call in reference.calls.items():
        if graphs and graph not in graphs:
            continue
        if progress is not None:
            progress(f"{runner.name}: {graph}")
        spec = runner.bundle.graph(graph)
        inputs = {t.name: call[t.name].to(DTYPES[t.dtype]) for t in spec.inputs}
        outputs = runner.run_graph(graph, inputs)
        for tensor in spec.outputs:
            limit = precision.ratio_limit
            found.append(_compare(runner.name, graph, tensor.name, outputs, call, "ratio", limit))
    if reference.edit is not None:
        if progress is not None:
            progress(f"{runner.name}: an edit of {reference.edit.steps} steps")
        found += _check_edit(runner, reference, precision)
    return found


def _check_edit(runner: BundleRunner, reference: Reference, precision: Precision) -> list[Finding]:
    assert reference.edit is not None
    with runner:
        outcome = denoise([reference.edit], runner)[0]
        pictures = runner.decode(outcome.latents)
    assert outcome.maps is not None and outcome.features is not None
    got = {
        "latents": outcome.latents,
        "maps": outcome.maps,
        "features": outcome.features,
        "pictures": (pictures * 255).round(),
    }
    exact = precision is Precision.FLOAT32
    limits = {
        "latents": ("ratio", 1e-3 if exact else 0.1),
        "maps": ("largest", 1e-4 if exact else 1e-2),
        "features": ("ratio", 1e-3 if exact else 0.1),
        "pictures": ("largest" if exact else "mean", precision.image_limit),
    }
    return [
        _compare(runner.name, "edit", name, got, reference.outcome, *limits[name])
        for name in reference.outcome
    ]


def _compare(
    runner: str,
    stage: str,
    output: str,
    got: dict[str, Tensor],
    wanted: dict[str, Tensor],
    measure: str,
    limit: float,
) -> Finding:
    one, other = got[output].detach().cpu().double(), wanted[output].double()
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
