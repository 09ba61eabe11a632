"""Parity: what PyTorch computed is kept in the bundle, and a runner is held to it wherever the bundle goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from adapedit_engine.bundle import write_tensors
from adapedit_engine.manifest import GraphSpec, reading
from adapedit_engine.models.controls import SELF_NAMES
from adapedit_engine.models.layers import SIZES, ModelSpecs
from adapedit_engine.models.text import HIDDEN
from adapedit_engine.plan import CrossEdit, EditOutcome, EditPlan, SelfEdit, held_steps
from adapedit_engine.runners.base import RunnerError
from adapedit_engine.runners.graphs import DTYPES, BundleRunner
from adapedit_engine.schedule import Schedule
from adapedit_engine.scheduler import denoise
from adapedit_export.options import Precision

Progress = Callable[[str], None]
REFERENCE_FILE = "reference.safetensors"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """calls: graph -> names of inputs and outputs -> tensors. edit: a plan and what it gave; None: not recorded."""

    calls: dict[str, dict[str, Tensor]]
    edit: EditPlan | None
    outcome: dict[str, Tensor]

    def save(self, folder: Path) -> None:
        """Write `reference.safetensors`."""
        tensors = {f"{graph}/{name}": t for graph, call in self.calls.items() for name, t in call.items()}
        if self.edit is not None:
            tensors |= _written(self.edit)
        tensors |= {f"outcome/{name}": tensor for name, tensor in self.outcome.items()}
        write_tensors(folder / REFERENCE_FILE, tensors)

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read it back. Raises `BundleError` where it is missing or broken."""
        groups: dict[str, dict[str, Tensor]] = {}
        with reading(folder / REFERENCE_FILE):
            for key, tensor in load_file(folder / REFERENCE_FILE).items():
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = tensor
            plan, tables, outcome = (groups.pop(name, {}) for name in ("plan", "schedule", "outcome"))
            edit = _read(plan, tables) if plan else None
        return cls(calls=groups, edit=edit, outcome=outcome)


def _written(plan: EditPlan) -> dict[str, Tensor]:
    """A plan that collects, as tensors of the groups "plan" and "schedule"."""
    entries = {entry.name: getattr(plan.schedule, entry.name) for entry in fields(plan.schedule)}
    tensors = plan.tensors() | {"source_track": torch.tensor(plan.source_track)}
    return {f"plan/{name}": tensor for name, tensor in tensors.items()} | {
        f"schedule/{name}": torch.as_tensor(value) for name, value in entries.items() if value is not None
    }


def _read(tensors: dict[str, Tensor], tables: dict[str, Tensor]) -> EditPlan:
    tracks = tuple(int(track) for track in tensors.pop("source_track"))
    entries: dict[str, Any] = {name: t if t.ndim else float(t) for name, t in tables.items()}
    own: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "." not in name}
    return EditPlan(schedule=Schedule(**entries), collect=True, **own).with_tensors(
        tensors, source_track=tracks
    )


def random_call(
    spec: GraphSpec, sizes: Mapping[str, int], *, vocabulary: int, seed: int
) -> dict[str, Tensor]:
    """Inputs of a graph in float32 that use every control; drawn once, recorded for good."""
    generator = torch.Generator().manual_seed(seed)
    rows, call = sizes["rows"], {}
    for tensor in spec.inputs:
        shape = tuple(side if isinstance(side, int) else sizes[side] for side in tensor.shape)
        if tensor.name in ("edited_row", "source_row", "map_row"):
            value = torch.cat([torch.arange(1, rows, 2), torch.arange(0, rows, 2)])[: shape[0]]
            value = value // 2 * 2 if tensor.name == "source_row" else value
        elif tensor.name == "timestep":
            value = torch.linspace(999, 1, rows)
        elif tensor.name == SIZES:
            value = torch.randint(2048, shape, generator=generator).float()
        elif tensor.name.startswith("input_ids") or tensor.name in SELF_NAMES:
            most = rows if tensor.name in SELF_NAMES else vocabulary
            value = torch.randint(most, shape, generator=generator)
        elif tensor.name == "token_map":
            value = torch.rand(shape, generator=generator).softmax(1)
        elif tensor.name in ("own_weight", "spatial_weight", "spatial_map", "pixels"):
            value = torch.rand(shape, generator=generator) * (0.5 if "weight" in tensor.name else 1)
        else:
            value = torch.randn(shape, generator=generator)
        call[tensor.name] = value
    return call


def random_plan(
    specs: ModelSpecs,
    schedule: Schedule,
    told: Mapping[str, Tensor],
    *,
    height: int,
    width: int,
    guidance_scale: float,
) -> EditPlan:
    """An edit of a source and a target that uses every kind of control.

    told: what text encoders make of three prompts, empty, source and target, [3, ...] each.
    """
    generator = torch.Generator().manual_seed(1)
    told = {name: torch.stack([value[[0, 1]], value[[0, 2]]]).float() for name, value in told.items()}
    hidden = told.pop(HIDDEN)
    if SIZES in specs.conditioning:
        told[SIZES] = torch.randint(2048, (6,), generator=generator).float().expand(2, 2, -1)
    steps, tokens, layers = len(schedule), hidden.shape[2], specs.self_layers
    map_height, map_width = specs.map_size(height, width)
    own_weight, word_steps = torch.zeros(2, tokens), torch.rand(2, tokens, generator=generator)
    own_weight[1, 2] = 1
    token_map = torch.eye(tokens)
    token_map[[3, 4]] = token_map[[4, 3]]
    across = torch.linspace(0, 1, map_width).expand(map_height, -1)
    taken = torch.zeros(2, 2, len(layers), 2, dtype=torch.int64)  # of queries and keys, and of values
    for index, layer in enumerate(layers):
        if layer.level >= 1:
            taken[0, 1, index] = torch.tensor([0, max(1, held_steps(0.4, steps))])
        elif layer.place == "up":
            taken[1, 1, index] = torch.tensor([held_steps(0.8, steps), steps])
    shape = (specs.out_channels, height, width)
    return EditPlan(
        schedule=schedule,
        latents=torch.randn(1, *shape, generator=generator).expand(2, -1, -1, -1).clone()
        * schedule.init_noise_sigma,
        encoder_hidden_states=hidden,
        conditioning=told,
        guidance_weights=torch.tensor([[1 - guidance_scale, guidance_scale]]).repeat(2, 1),
        source_track=(0, 0),
        cross_attention=CrossEdit(
            token_map=token_map.repeat(2, 1, 1),
            own_weight=own_weight,
            word_steps=word_steps,
            strength=torch.tensor([1.0, 0.9]),
            spatial_map=across.flatten().repeat(2, 1),
        ),
        self_attention=SelfEdit(query=taken[0], key=taken[0], value=taken[1]),
        noise=torch.randn(steps, *shape, generator=generator) if schedule.stochastic else None,
        collect=True,
    )


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
        return bool(getattr(self, self.measure) <= self.limit)


def check_runner(
    runner: BundleRunner, reference: Reference, *, progress: Progress | None = None
) -> list[Finding]:
    """Run everything that the reference holds. Raises `RunnerError` where the runner can't run here."""
    say = progress or (lambda _: None)
    precision = Precision(runner.bundle.manifest.precision)
    if not runner.capabilities.exact and precision is Precision.FLOAT32:
        precision = Precision.MIXED
    found = []
    for graph, call in reference.calls.items():
        say(f"{runner.name}: {graph}")
        spec = runner.bundle.graph(graph)
        inputs = {t.name: call[t.name].to(DTYPES[t.dtype]) for t in spec.inputs}
        outputs = runner.run_graph(graph, inputs)
        for tensor in spec.outputs:
            limit = precision.ratio_limit * _looseness(runner)
            found.append(_compare(runner.name, graph, tensor.name, outputs, call, "ratio", limit))
    if reference.edit is not None:
        say(f"{runner.name}: an edit of {reference.edit.steps} steps")
        found += _check_edit(runner, reference, reference.edit, precision)
    return found


def _looseness(runner: BundleRunner) -> float:
    """Factor on limits that were set for float16: bfloat16 has three bits less of a number."""
    return 1.0 if runner.capabilities.exact else 5.0


def _check_edit(
    runner: BundleRunner, reference: Reference, plan: EditPlan, precision: Precision
) -> list[Finding]:
    with runner:
        outcome = denoise([plan], runner)[0]
        pictures = runner.decode(outcome.latents)
    got = shown(outcome, pictures)
    exact = precision is Precision.FLOAT32
    loose = 5.0 if precision.quantised else _looseness(runner)
    limits = {
        "latents": ("ratio", 1e-3 if exact else 0.1 * loose),
        "maps": ("largest", 1e-4 if exact else 1e-2 * loose),
        "features": ("ratio", 1e-3 if exact else 0.1 * loose),
        "pictures": ("largest" if exact else "mean", precision.image_limit),
    }
    return [
        _compare(runner.name, "edit", name, got, reference.outcome, *limits[name])
        for name in reference.outcome
    ]


def shown(outcome: EditOutcome, pictures: Tensor) -> dict[str, Tensor]:
    """What is compared of an edit that collected maps; pictures: its latents decoded, in 0..1."""
    assert outcome.maps is not None and outcome.features is not None
    return {
        "latents": outcome.latents,
        "maps": outcome.maps,
        "features": outcome.features,
        "pictures": (pictures * 255).round(),
    }


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
