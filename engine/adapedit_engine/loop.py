"""The denoising loop: ticks over sets of edits, each at its own step, until all are done.

A state is a value: a tick returns new states and changes none. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapedit_engine.adaptive import Found, observe
from adapedit_engine.layout import Layout, join
from adapedit_engine.models.unet import OUTPUT_NAMES
from adapedit_engine.padding import infer_in_slot
from adapedit_engine.plan import EditPlan
from adapedit_engine.rows import RowTables
from adapedit_engine.runners import Runner
from adapedit_engine.stepping import look_back, step
from adapedit_kernels.errors import AdapEditError


class LoopError(AdapEditError):
    """Ticking what can't be ticked: no states, or one that is done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EditState:
    """An edit between two steps. `step_index` steps are done; latents [K1, C, h, w] float32.

    map_sum [K1, P, N] and feature_sum [K1, P, V], float32, are sums over those steps of the conditional rows'
    own maps and features; `None` until the first, and for plans that do not ask for them. `found`: FWT and
    DPS of the single pass so far. trajectory: latents after each step, of plans that record them.
    maps_seen: steps that are in the sums. history [K1, C, h, w]: what the last step left to the next, of schedules
    that look back.
    """

    tables: RowTables
    latents: Tensor
    step_index: int = 0
    map_sum: Tensor | None = None
    feature_sum: Tensor | None = None
    found: Found | None = None
    trajectory: tuple[Tensor, ...] = ()
    maps_seen: int = 0
    history: Tensor | None = None

    @property
    def plan(self) -> EditPlan:
        return self.tables.plan

    @property
    def done(self) -> bool:
        return self.step_index >= self.plan.steps


@dataclass(frozen=True, kw_only=True, eq=False)
class EditOutcome:
    """What an edit ended with, on the runner's device.

    latents [K1, C, h, w] float32. maps [K1, P, N] and features [K1, P, V]: averages over the steps, where the
    plan asked for them. word_steps [K1, N] and spatial_map [K1, P]: the plan's, or the last that the single
    pass found.
    steps: how many were run. seconds: of wall time, shared with the edits that ran in the same calls; on a
    device that works asynchronously, the time until the work was handed to it.
    trajectory [T, K1, C, h, w]: the latents after each step, where the plan asked for them.
    """

    latents: Tensor
    maps: Tensor | None
    features: Tensor | None
    word_steps: Tensor | None
    spatial_map: Tensor | None
    steps: int
    seconds: float
    trajectory: Tensor | None = None


@torch.inference_mode()
def begin(plan: EditPlan, runner: Runner) -> EditState:
    """The state before the first step. Raises `PlanError` where the plan does not fit the runner's model."""
    tables = RowTables.build(plan, runner).at(0)
    return EditState(tables=tables, latents=plan.latents.to(runner.device, torch.float32))


@torch.inference_mode()
def tick(states: Sequence[EditState], runner: Runner, layout: Layout | None = None) -> list[EditState]:
    """Advance every state by one step with one UNet call, each from its own step.

    `layout`: `Layout.of` of the states' tables, where it is at hand from an earlier tick of the same edits in the same
    order. Raises `LoopError` where there is nothing to do.
    """
    check_states(states)
    if layout is None:
        layout = Layout.of([state.tables for state in states], runner)
    wants_maps = any(state.plan.needs_maps for state in states)
    latents = join([state.latents for state in states])
    inputs = _inputs(states, latents, layout, runner)
    outputs = infer_in_slot(runner, inputs, OUTPUT_NAMES if wants_maps else OUTPUT_NAMES[:1])
    seen = [_accumulate(state, outputs, start) for state, start in zip(states, layout.first_row, strict=True)]
    after = step(seen, latents, outputs["noise_pred"], layout, runner)
    history = look_back(seen, latents, outputs["noise_pred"], layout)
    parts = after.split([state.plan.tracks for state in states])
    return [
        _advance(replace(state, history=back), part)
        for state, part, back in zip(seen, parts, history, strict=True)
    ]


def check_states(states: Sequence[EditState]) -> None:
    """Raise `LoopError` where there is nothing to do."""
    if not states or any(state.done for state in states):
        raise LoopError("tick was given an edit that is done, or none: keep those that are not done")


@torch.inference_mode()
def outcome(state: EditState, seconds: float = 0.0) -> EditOutcome:
    """Averages and results of a state, at its end or before."""
    plan, found, seen = state.plan, state.found, state.maps_seen
    adaptive = plan.adaptive
    word_steps = found.word_steps if found and adaptive and adaptive.temporal else plan.word_steps
    spatial_map = found.spatial_map if found and adaptive and adaptive.spatial else plan.spatial_map
    return EditOutcome(
        latents=state.latents,
        maps=None if state.map_sum is None else state.map_sum / seen,
        features=None if state.feature_sum is None else state.feature_sum / seen,
        word_steps=word_steps,
        spatial_map=spatial_map,
        steps=state.step_index,
        seconds=seconds,
        trajectory=torch.stack(state.trajectory) if state.trajectory else None,
    )


def _inputs(
    states: Sequence[EditState], latents: Tensor, layout: Layout, runner: Runner
) -> dict[str, Tensor]:
    sample = latents.index_select(0, layout.track_of_row)
    if any(state.tables.input_scale is not None for state in states):
        scales = [_or_ones(s.tables.input_scale, s.tables.timestep)[s.step_index] for s in states]
        sample = sample * join(scales).reshape(-1, 1, 1, 1)
    sample = sample.to(runner.dtype)
    if layout.conditioning_channels is not None:
        sample = torch.cat([sample, layout.conditioning_channels], dim=1)
    controls = layout.controls([state.tables.controls(state.step_index, state.found) for state in states])
    return {
        "sample": sample,
        "timestep": join([state.tables.timestep[state.step_index] for state in states]),
        **layout.prompt_at([state.step_index for state in states]),
        **controls.as_dict(),
    }


def _accumulate(state: EditState, outputs: dict[str, Tensor], first_row: int) -> EditState:
    if not state.plan.needs_maps:
        return state
    rows = state.tables.conditional_row + first_row
    maps = outputs["cross_attention_maps"].index_select(0, rows).float()
    features = outputs["visual_features"].index_select(0, rows).float()
    if state.map_sum is not None and state.feature_sum is not None:
        maps, features = state.map_sum + maps, state.feature_sum + features
    return replace(state, map_sum=maps, feature_sum=features, maps_seen=state.maps_seen + 1)


def findings(state: EditState) -> Found | None:
    """What FWT and DPS find where they look after the last step of a state; what it has where they don't."""
    adaptive = state.tables.adaptive
    if adaptive is None or not state.step_index or state.step_index % adaptive.update_every:
        return state.found
    assert state.map_sum is not None and state.feature_sum is not None
    maps, features = state.map_sum / state.maps_seen, state.feature_sum / state.maps_seen
    return observe(maps, features, adaptive, state.tables.source_track)


def _advance(state: EditState, latents: Tensor) -> EditState:
    steps_done = state.step_index + 1
    tables = state.tables.at(steps_done)
    trajectory = (*state.trajectory, latents) if state.plan.record else ()
    after = replace(state, tables=tables, latents=latents, step_index=steps_done, trajectory=trajectory)
    return replace(after, found=findings(after))


def _or_ones(table: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if table is None else table
