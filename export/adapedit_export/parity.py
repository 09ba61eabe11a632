"""Parity: what PyTorch computed, kept in the bundle, so that a runner can be held to it wherever the bundle goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
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
from adapedit_engine.plan import CHANNELS, CrossEdit, EditOutcome, EditPlan, SelfEdit, held_steps
from adapedit_engine.schedule import Schedule

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
        groups = self.calls | {"outcome": self.outcome}
        if (plan := self.edit) is not None:
            tables = {entry.name: getattr(plan.schedule, entry.name) for entry in fields(plan.schedule)}
            groups["schedule"] = {name: torch.as_tensor(t) for name, t in tables.items() if t is not None}
            groups["plan"] = plan.tensors() | {"source_track": torch.tensor(plan.source_track)}
        tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
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


def _read(tensors: dict[str, Tensor], tables: dict[str, Tensor]) -> EditPlan:
    """The plan, which collects, of the groups "plan" and "schedule"."""
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
    uniform = partial(torch.rand, generator=generator, dtype=torch.float32)
    rows, call = sizes["rows"], {}
    for tensor in spec.inputs:
        shape = tuple(side if isinstance(side, int) else sizes[side] for side in tensor.shape)
        if tensor.name in ("edited_row", "source_row", "map_row"):
            value = torch.cat([torch.arange(1, rows, 2), torch.arange(0, rows, 2)])[: shape[0]]
            value = value // 2 * 2 if tensor.name == "source_row" else value
        elif tensor.name == "timestep":
            value = torch.linspace(999, 1, rows, dtype=torch.float32)
        elif tensor.name == SIZES:
            value = torch.randint(2048, shape, generator=generator).float()
        elif tensor.name.startswith("input_ids") or tensor.name in SELF_NAMES:
            most = rows if tensor.name in SELF_NAMES else vocabulary
            value = torch.randint(most, shape, generator=generator)
        elif tensor.name == "token_map":
            value = uniform(shape).softmax(1)
        elif tensor.name in ("own_weight", "spatial_weight", "spatial_map", "pixels"):
            value = uniform(shape) * (0.5 if "weight" in tensor.name else 1)
        else:
            value = torch.randn(shape, generator=generator, dtype=torch.float32)
        call[tensor.name] = value
    return call


def unedited_plan(
    specs: ModelSpecs,
    schedule: Schedule,
    told: Mapping[str, Tensor],
    size: tuple[int, int],
    guidance_scale: float,
    generator: torch.Generator,
) -> EditPlan:
    """Plain generation of some tracks.

    told: what text encoders make of the prompts, [tracks, 2, ...] each: of the empty one and the track's own. size: of
    the latents.
    """
    told = {name: value.float() for name, value in told.items()}
    hidden = told.pop(HIDDEN)
    tracks, shape = len(hidden), (specs.out_channels, *size)
    guidance = torch.tensor([[1 - guidance_scale, guidance_scale]], dtype=torch.float32)
    normal = partial(torch.randn, generator=generator, dtype=torch.float32)
    return EditPlan(
        schedule=schedule,
        latents=normal(tracks, *shape) * schedule.init_noise_sigma,
        encoder_hidden_states=hidden,
        conditioning=told,
        guidance_weights=guidance.repeat(tracks, 1),
        noise=normal(len(schedule), *shape) if schedule.stochastic else None,
    )


def random_plan(
    specs: ModelSpecs,
    schedule: Schedule,
    told: Mapping[str, Tensor],
    size: tuple[int, int],
    guidance_scale: float,
) -> EditPlan:
    """An edit of a source and a target that uses every kind of control.

    told: what text encoders make of three prompts, empty, source and target, [3, ...] each. size: of the latents.
    """
    generator = torch.Generator().manual_seed(1)
    uniform = partial(torch.rand, generator=generator, dtype=torch.float32)
    told = {name: torch.stack([value[[0, 1]], value[[0, 2]]]) for name, value in told.items()}
    if SIZES in specs.conditioning:
        told[SIZES] = torch.randint(2048, (6,), generator=generator).float().expand(2, 2, -1)
    if specs.in_channels > specs.out_channels:  # of inpainting, and of InstructPix2Pix
        brought = uniform(specs.in_channels - specs.out_channels, *size)
        told[CHANNELS] = brought.expand(2, 2, -1, -1, -1)
    plain = unedited_plan(specs, schedule, told, size, guidance_scale, generator)
    steps, tokens, layers = len(schedule), told[HIDDEN].shape[2], specs.self_layers
    map_height, map_width = specs.map_size(*size)
    own_weight = torch.zeros(2, tokens, dtype=torch.float32)
    word_steps = uniform(2, tokens)
    own_weight[1, 2] = 1
    token_map = torch.eye(tokens, dtype=torch.float32)
    token_map[[3, 4]] = token_map[[4, 3]]
    across = torch.linspace(0, 1, map_width, dtype=torch.float32).expand(map_height, -1)
    taken = torch.zeros(2, 2, len(layers), 2, dtype=torch.int64)  # of queries and keys, and of values
    for index, layer in enumerate(layers):
        if layer.level >= 1:
            taken[0, 1, index] = torch.tensor([0, max(1, held_steps(0.4, steps))])
        elif layer.place == "up":
            taken[1, 1, index] = torch.tensor([held_steps(0.8, steps), steps])
    return replace(
        plain,
        latents=plain.latents[[0, 0]],
        source_track=(0, 0),
        cross_attention=CrossEdit(
            token_map=token_map.repeat(2, 1, 1),
            own_weight=own_weight,
            word_steps=word_steps,
            strength=torch.tensor([1.0, 0.9], dtype=torch.float32),
            spatial_map=across.flatten().repeat(2, 1),
        ),
        self_attention=SelfEdit(query=taken[0], key=taken[0], value=taken[1]),
        collect=True,
    )


def shown(outcome: EditOutcome, pictures: Tensor) -> dict[str, Tensor]:
    """What is compared of an edit that collected maps; pictures: its latents decoded, in 0..1."""
    assert outcome.maps is not None and outcome.features is not None
    return {
        "latents": outcome.latents,
        "maps": outcome.maps,
        "features": outcome.features,
        "pictures": (pictures * 255).round(),
    }
