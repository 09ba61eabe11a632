"""Rows: a plan laid out for the UNet's batch, with the controls of every step ready on the device.

Everything that depends on the plan alone is computed once, for all steps, so that a step is a few slices.
Rows of a plan stand track by track, and inside a track guidance row by guidance row, the conditional one
last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.adaptive import Adaptive, Found
from adapedit_engine.models.controls import SELF_NAMES, Controls
from adapedit_engine.models.layers import ModelSpecs
from adapedit_engine.plan import EditPlan, PlanError, without_guidance
from adapedit_engine.runners import Runner

# tau * T is a product of rounded numbers: 0.1 * 30 must not hold step 3. A millionth of a step means nothing.
STEP_ROUNDING = 1e-4


def held(step_index: int | Tensor, word_steps: Tensor, steps: int | Tensor) -> Tensor:
    """Whether tokens are held to the source's map at a step: step_index < tau * T, bool, shapes broadcast."""
    return step_index + STEP_ROUNDING < word_steps * steps


def spatial_weight(held_now: Tensor, own_weight: Tensor, strength: Tensor) -> Tensor:
    """v = (1 - u) (1 - held) lambda_s, Eq. 4 and 8; [..., K1, N] with strength [K1]."""
    return (1 - own_weight) * (~held_now) * strength.unsqueeze(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowTables:
    """One plan as B = K1 * G rows over T steps. Row and track numbers count from 0 inside the plan."""

    plan: EditPlan
    track_of_row: Tensor  # [B] int64
    conditional_row: Tensor  # [K1] int64
    source_track: Tensor  # [K1] int64
    guidance_weights: Tensor  # [K1, G]
    timestep: Tensor  # [T, B]
    input_scale: Tensor | None  # [T, B]; None: 1 throughout
    sample_weight: Tensor  # [T, K1]
    output_weight: Tensor  # [T, K1]
    noise_weight: Tensor | None  # [T, K1]
    noise: Tensor | None  # [T, K1, C, h, w]
    history: Tensor | None  # [T, 2, K1], weights of latents and prediction in what a step leaves to the next
    prompt: Mapping[str, Tensor]  # [B, ...] each, as the runner wants it
    step_prompt: Mapping[str, Tensor]  # [T, 1, ...] each, of the first guidance rows; empty: as in `prompt`
    first_rows: Tensor  # [K1] int64, the rows that `step_prompt` is for
    conditioning_channels: Tensor | None  # [B, E, h, w]
    source_row: Tensor  # [B] int64
    token_map: Tensor | None  # [B, N, N]
    own_weight: Tensor | None  # [B, N]
    word_steps: Tensor | None  # [B, N], tau of the plan
    strength: Tensor | None  # [B]
    spatial_map: Tensor | None  # [B, P]
    spatial_weight: Tensor | None  # [T, B, N]
    self_rows: Mapping[str, Tensor]  # by control name, [T, L, B] int64; absent: never from another row
    self_used: Mapping[str, tuple[bool, ...]]  # by control name, per step
    adaptive: Adaptive | None  # the plan's, with its tensors on the device
    adaptive_layers: Tensor | None  # [L, B] bool, rows and layers that FWT's self share acts on
    blend_tokens: Tensor | None  # [K1, N]
    blend_places: Tensor | None  # [K1, P]
    late: (
        RowTables | None
    )  # the tables from step `late_from` on, where the plan stops guidance before its end
    late_from: int

    @property
    def rows(self) -> int:
        """B."""
        return self.source_row.shape[0]

    def at(self, step_index: int) -> RowTables:
        """The tables that hold from a step on."""
        return self if self.late is None or step_index < self.late_from else self.late

    @classmethod
    def build(cls, plan: EditPlan, runner: Runner) -> RowTables:
        """Lay the plan out on the runner's device. Raises `PlanError` where it does not fit the model."""
        check_plan(plan, runner.specs)
        device, guidance, tracks = runner.device, plan.guidance, plan.tracks
        rows = torch.arange(tracks * guidance)
        conditional = torch.arange(tracks) * guidance + guidance - 1
        source_row = rows.clone()
        source_row[conditional] = conditional[list(plan.source_track)]
        self_rows, self_used = _self_tables(plan, rows)
        schedule = plan.schedule
        late_from = math.ceil(plan.guidance_until * plan.steps - STEP_ROUNDING)
        scaled = bool((schedule.input_scale != 1).any())
        return cls(
            plan=plan,
            track_of_row=(rows // guidance).to(device),
            conditional_row=conditional.to(device),
            source_track=torch.tensor(plan.source_track, device=device),
            guidance_weights=plan.guidance_weights.to(device, torch.float32),
            timestep=_per_step(schedule.timesteps, len(rows), device),
            input_scale=_per_step(schedule.input_scale, len(rows), device) if scaled else None,
            **_step_tables(plan, device),
            prompt=runner.condition(plan.encoder_hidden_states.flatten(0, 1)),
            step_prompt=_step_prompt(plan, runner),
            first_rows=(torch.arange(tracks) * guidance).to(device),
            conditioning_channels=_on(plan.conditioning_channels, device, runner.dtype),
            source_row=source_row.to(device),
            self_rows={name: table.to(device) for name, table in self_rows.items()},
            self_used=self_used,
            adaptive=None if plan.adaptive is None else plan.adaptive.to(device),
            adaptive_layers=_adaptive_layers(plan, source_row != rows, device),
            blend_tokens=None if plan.local_blend is None else plan.local_blend.token_weights.to(device),
            blend_places=_blend_places(plan, device),
            late=cls.build(without_guidance(plan), runner)
            if late_from < plan.steps and guidance > 1
            else None,
            late_from=late_from,
            **_edit_tables(plan, runner, conditional, len(rows)),
        )

    def controls(self, step_index: int, found: Found | None = None) -> Controls:
        """The controls of one step, from the plan alone or with what the single pass has `found` so far."""
        selves: dict[str, Tensor] = {}
        for name, table in self.self_rows.items():
            if self.self_used[name][step_index]:
                selves[name] = table[step_index]
        if self.spatial_weight is None:
            return Controls(**selves)
        weight, spatial_map, adaptive = self.spatial_weight[step_index], self.spatial_map, self.plan.adaptive
        if found is not None and adaptive is not None:
            if adaptive.temporal:
                weight = self.found_weight(step_index, found.word_steps)
                selves |= self.found_self_rows(step_index, found.self_share)
            if adaptive.spatial:
                spatial_map = found.spatial_map.index_select(0, self.track_of_row)
        return Controls(
            source_row=self.source_row,
            token_map=self.token_map,
            own_weight=self.own_weight,
            spatial_weight=weight,
            spatial_map=spatial_map,
            **selves,
        )

    def found_weight(self, step_index: int | Tensor, word_steps: Tensor) -> Tensor:
        """`spatial_weight` [B, N] of a step by the word steps [K1, N] that the single pass has found."""
        assert self.own_weight is not None and self.strength is not None
        held_now = held(step_index, word_steps.index_select(0, self.track_of_row), self.plan.steps)
        return spatial_weight(held_now, self.own_weight, self.strength)

    def found_self_rows(self, step_index: int | Tensor, self_share: Tensor) -> dict[str, Tensor]:
        """The self-attention rows [L, B] that FWT's share [K1] sets; empty where it sets none."""
        if self.adaptive_layers is None:
            return {}
        shared = held(step_index, self_share.index_select(0, self.track_of_row), self.plan.steps)
        own_row = torch.arange(self.rows, device=self.source_row.device)
        rows = torch.where(self.adaptive_layers & shared, self.source_row, own_row)
        return {"self_query_row": rows, "self_key_row": rows}


def check_plan(plan: EditPlan, specs: ModelSpecs) -> None:
    """Raise `PlanError` unless a model with these facts can run the plan."""
    _, channels, height, width = plan.latents.shape
    extra = 0 if plan.conditioning_channels is None else plan.conditioning_channels.shape[2]
    if channels != specs.out_channels or channels + extra != specs.in_channels:
        raise PlanError(
            f"latents have {channels} channels and {extra} conditioning channels, "
            f"this model takes {specs.in_channels} and returns {specs.out_channels}"
        )
    if plan.encoder_hidden_states.shape[-1] != specs.text_channels:
        got = plan.encoder_hidden_states.shape[-1]
        raise PlanError(f"encoder_hidden_states are {got} wide, this model wants {specs.text_channels}")
    map_height, map_width = specs.map_size(height, width)
    pixels = map_height * map_width
    if plan.spatial_map is not None and plan.spatial_map.shape[1] != pixels:
        raise PlanError(
            f"spatial_map has {plan.spatial_map.shape[1]} pixels, wanted {map_height} x {map_width}"
        )
    layers = len(specs.self_layers)
    for name in ("self_query", "self_key", "self_value"):
        table = getattr(plan, name)
        if table is not None and table.shape[1] != layers:
            raise PlanError(f"{name} is for {table.shape[1]} self-attention layers, this model has {layers}")
    adaptive_layers = None if plan.adaptive is None else plan.adaptive.self_layers
    if adaptive_layers is not None and adaptive_layers.shape[0] != layers:
        raise PlanError(
            f"adaptive.self_layers has {adaptive_layers.shape[0]} layers, this model has {layers}"
        )


def _step_tables(plan: EditPlan, device: torch.device) -> dict[str, Any]:
    """Weights of x' = a x + b eps + c noise per step and track, and the noise."""
    schedule, tracks = plan.schedule, plan.tracks
    tables: dict[str, Any] = {
        name: _per_step(getattr(schedule, name), tracks, device)
        for name in ("sample_weight", "output_weight", "noise_weight")
    }
    noise = plan.noise if schedule.stochastic else None
    if noise is not None:
        noise = noise if noise.ndim == 5 else noise.unsqueeze(1).expand(-1, tracks, -1, -1, -1)
        noise = noise.to(device, torch.float32)
    if plan.source_latents is not None:
        # A track that is told where it goes is a step of weights 0, 0 and 1: blends and merged batches need not know.
        known = plan.source_latents.to(device, torch.float32)
        noise = known.new_zeros(plan.steps, *plan.latents.shape) if noise is None else noise.clone()
        noise[:, 0] = known
        for name, value in (("sample_weight", 0), ("output_weight", 0), ("noise_weight", 1)):
            tables[name][:, 0] = value
    tables |= {"noise": noise, "noise_weight": None if noise is None else tables["noise_weight"]}
    return {**tables, "history": _history(plan, device)}


def _history(plan: EditPlan, device: torch.device) -> Tensor | None:
    sample, output = plan.schedule.history_sample_weight, plan.schedule.history_output_weight
    if sample is None or output is None:
        return None
    history = torch.stack([_per_step(table, plan.tracks, device) for table in (sample, output)], dim=1)
    if plan.source_latents is not None:
        history[..., 0] = 0
    return history


def _step_prompt(plan: EditPlan, runner: Runner) -> dict[str, Tensor]:
    if plan.unconditional_steps is None:
        return {}
    return {name: value.unsqueeze(1) for name, value in runner.condition(plan.unconditional_steps).items()}


def _edit_tables(plan: EditPlan, runner: Runner, conditional: Tensor, rows: int) -> dict[str, Any]:
    if not plan.edited:
        return dict.fromkeys(
            ("token_map", "own_weight", "word_steps", "strength", "spatial_map", "spatial_weight")
        )
    assert plan.token_map is not None and plan.own_weight is not None and plan.word_steps is not None
    height, width = runner.specs.map_size(*plan.latents.shape[-2:])
    strength = torch.ones(plan.tracks) if plan.strength is None else plan.strength.float().cpu()
    spatial = torch.ones(plan.tracks, height * width) if plan.spatial_map is None else plan.spatial_map
    own_weight = plan.own_weight.float().cpu()
    steps = torch.arange(plan.steps).reshape(-1, 1, 1)
    word_steps = plan.word_steps.float().cpu()
    held_then = held(steps, word_steps, plan.steps)  # [T, K1, N]
    weight = spatial_weight(held_then, own_weight, strength)
    on_rows = {
        "token_map": _scatter(plan.token_map.float().cpu(), conditional, rows, 0),
        "own_weight": _scatter(own_weight, conditional, rows, 0),
        "word_steps": _scatter(word_steps, conditional, rows, 0),
        "strength": _scatter(strength, conditional, rows, 0),
        "spatial_map": _scatter(spatial.float().cpu(), conditional, rows, 0),
        "spatial_weight": _scatter(weight, conditional, rows, 1),
    }
    return {name: table.to(runner.device) for name, table in on_rows.items()}


def _self_tables(plan: EditPlan, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, tuple[bool, ...]]]:
    tracks, guidance = rows // plan.guidance, rows % plan.guidance
    source_row = torch.tensor(plan.source_track)[tracks] * plan.guidance + guidance
    acts = guidance == plan.guidance - 1
    if plan.self_all_rows is not None:
        acts = acts | plan.self_all_rows.cpu()[tracks]
    tables, used = {}, {}
    for name, flags in zip(SELF_NAMES, (plan.self_query, plan.self_key, plan.self_value), strict=True):
        if flags is None:
            continue
        on_rows = flags.cpu()[:, :, tracks] & acts & (source_row != rows)
        tables[name] = torch.where(on_rows, source_row, rows)  # [T, L, B]
        used[name] = tuple(on_rows.flatten(1).any(1).tolist())
    return tables, used


def _adaptive_layers(plan: EditPlan, edited_row: Tensor, device: torch.device) -> Tensor | None:
    if plan.adaptive is None or plan.adaptive.self_layers is None:
        return None
    return (plan.adaptive.self_layers.cpu().repeat_interleave(plan.guidance, dim=1) & edited_row).to(device)


def _scatter(values: Tensor, conditional: Tensor, rows: int, dim: int) -> Tensor:
    """Values of tracks along `dim` to the conditional rows; 0 elsewhere, where nothing reads them."""
    shape = list(values.shape)
    shape[dim] = rows
    return torch.zeros(shape, dtype=values.dtype).index_copy(dim, conditional, values)


def _per_step(table: Tensor, width: int, device: torch.device) -> Tensor:
    return table.to(device, torch.float32).unsqueeze(1).expand(-1, width).contiguous()


def _on(tensor: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.flatten(0, 1).to(device, dtype)


def _blend_places(plan: EditPlan, device: torch.device) -> Tensor | None:
    places = None if plan.local_blend is None else plan.local_blend.places
    return None if places is None else places.to(device, torch.float32)
