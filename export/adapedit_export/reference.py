"""What PyTorch computed, kept in the bundle: a runner is held to it wherever the bundle goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapedit_engine.bundle import BundleError
from adapedit_engine.manifest import GraphSpec
from adapedit_engine.models.controls import SELF_NAMES
from adapedit_engine.models.layers import ModelSpecs
from adapedit_engine.plan import EditPlan
from adapedit_engine.schedule import Schedule

REFERENCE_FILE = "reference.safetensors"
TABLES = ("timesteps", "input_scale", "sample_weight", "output_weight", "noise_weight")
PLAN_TENSORS = (
    "latents encoder_hidden_states guidance_weights token_map own_weight word_steps strength spatial_map"
    " self_query self_key self_value noise"
).split()


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
            tensors |= {
                f"plan/{name}": t for name in PLAN_TENSORS if (t := getattr(self.edit, name)) is not None
            }
            tensors |= {f"schedule/{name}": getattr(self.edit.schedule, name) for name in TABLES}
            tensors["plan/source_track"] = torch.tensor(self.edit.source_track)
        tensors |= {f"outcome/{name}": tensor for name, tensor in self.outcome.items()}
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / REFERENCE_FILE
        )

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read it back. Raises `BundleError` where it is missing or broken."""
        groups: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(folder / REFERENCE_FILE, "pt") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    group, _, name = key.partition("/")
                    groups.setdefault(group, {})[name] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise BundleError(
                f"{folder / REFERENCE_FILE} can't be read ({error}); export the model again"
            ) from error
        plan, tables, outcome = (groups.pop(name, {}) for name in ("plan", "schedule", "outcome"))
        edit = None
        if plan:
            source_track = tuple(int(track) for track in plan.pop("source_track"))
            fields: dict[str, Any] = {**plan, "schedule": _schedule(tables)}
            edit = EditPlan(source_track=source_track, collect=True, **fields)
        return cls(calls=groups, edit=edit, outcome=outcome)


def _schedule(tables: dict[str, Any]) -> Schedule:
    return Schedule(**tables)


def random_call(
    spec: GraphSpec, sizes: Mapping[str, int], *, vocabulary: int, seed: int
) -> dict[str, Tensor]:
    """Inputs of a graph in float32 that use every control; drawn once, recorded for good."""
    generator = torch.Generator().manual_seed(seed)
    rows, call = sizes["rows"], {}
    for tensor in spec.inputs:
        shape = tuple(side if isinstance(side, int) else sizes[side] for side in tensor.shape)
        if tensor.name == "source_row":
            value = torch.arange(rows) // 2 * 2
        elif tensor.name in SELF_NAMES:
            value = torch.randint(rows, shape, generator=generator)
        elif tensor.name == "input_ids":
            value = torch.randint(vocabulary, shape, generator=generator)
        elif tensor.name == "timestep":
            value = torch.linspace(999, 1, rows)
        elif tensor.name == "token_map":
            value = torch.rand(shape, generator=generator).softmax(1)
        elif tensor.name in ("own_weight", "spatial_weight"):
            value = torch.rand(shape, generator=generator) * 0.5
        elif tensor.name in ("spatial_map", "pixels"):
            value = torch.rand(shape, generator=generator)
        else:
            value = torch.randn(shape, generator=generator)
        call[tensor.name] = value
    return call


def random_plan(
    specs: ModelSpecs, schedule: Schedule, prompts: Tensor, *, height: int, width: int, guidance_scale: float
) -> EditPlan:
    """An edit of a source and a target that uses every kind of control; prompts [3, N, D]: empty, source, target."""
    generator = torch.Generator().manual_seed(1)
    steps, tokens, layers = len(schedule), prompts.shape[1], specs.self_layers
    map_height, map_width = specs.map_size(height, width)
    own_weight, word_steps = torch.zeros(2, tokens), torch.rand(2, tokens, generator=generator)
    own_weight[1, 2] = 1
    token_map = torch.eye(tokens)
    token_map[[3, 4]] = token_map[[4, 3]]
    across = torch.linspace(0, 1, map_width).expand(map_height, -1)
    deep = torch.tensor([layer.level >= 1 for layer in layers])
    upward = torch.tensor([layer.place == "up" and layer.level == 0 for layer in layers])
    step = torch.arange(steps)[:, None]
    target = torch.tensor([False, True])
    shape = (specs.out_channels, height, width)
    return EditPlan(
        schedule=schedule,
        latents=torch.randn(1, *shape, generator=generator).expand(2, -1, -1, -1).clone()
        * schedule.init_noise_sigma,
        encoder_hidden_states=torch.stack([prompts[[0, 1]], prompts[[0, 2]]]).float(),
        guidance_weights=torch.tensor([[1 - guidance_scale, guidance_scale]]).repeat(2, 1),
        source_track=(0, 0),
        token_map=token_map.repeat(2, 1, 1),
        own_weight=own_weight,
        word_steps=word_steps,
        strength=torch.tensor([1.0, 0.9]),
        spatial_map=across.flatten().repeat(2, 1),
        self_query=((step < 0.4 * steps) & deep)[..., None] & target,
        self_key=((step < 0.4 * steps) & deep)[..., None] & target,
        self_value=((step >= 0.8 * steps) & upward)[..., None] & target,
        noise=torch.randn(steps, *shape, generator=generator) if schedule.stochastic else None,
        collect=True,
    )
