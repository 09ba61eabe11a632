"""What a slot is filled with: everything that a step of some edits reads, all of their steps included, by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_engine.adaptive import Found
from adapedit_engine.controls import SELF_NAMES
from adapedit_engine.layout import Layout, join
from adapedit_engine.loop import EditState
from adapedit_engine.rows import RowTables
from adapedit_engine.static_steps.shape import StepShape

PROMPT = "prompt."


def gather(states: Sequence[EditState], layout: Layout, shape: StepShape) -> dict[str, Tensor]:
    """The tensors of these edits, padded to the shape; each a copy, or nothing that a step changes.

    Waits for nothing: every table lies on the device already, and numbers are filled in there.
    A padding row takes from itself alone and a padding track stays at zero.
    """
    parts = _rows(states, layout, shape) | _tracks(states, layout, shape)
    parts["latents"] = _pad(join([state.latents for state in states]), shape.tracks, 0)
    parts["step"] = _numbers(states, [state.step_index for state in states], shape, torch.int64)
    if shape.maps:
        sums = [
            (s.map_sum, s.feature_sum)
            if s.map_sum is not None and s.feature_sum is not None
            else (
                s.latents.new_zeros(s.plan.tracks, shape.pixels, shape.size[-1]),
                s.latents.new_zeros(s.plan.tracks, shape.pixels, shape.features),
            )
            for s in states
        ]
        for name, total in zip(("map_sum", "feature_sum"), zip(*sums, strict=True), strict=True):
            parts[name] = _pad(join(total), shape.tracks, 0)
    return parts


def _rows(states: Sequence[EditState], layout: Layout, shape: StepShape) -> dict[str, Tensor]:
    tables, rows = layout.tables, shape.rows
    own = torch.arange(rows, device=layout.track_of_row.device)
    parts = {
        "track_of_row": _repeated(layout.track_of_row, rows, 0),
        "timestep": _repeated(join([_long(table.timestep, shape) for table in tables], 1), rows, 1),
    }
    parts |= {PROMPT + name: _repeated(value, rows, 0) for name, value in layout.prompt.items()}
    if layout.conditioning_channels is not None:
        parts["conditioning_channels"] = _repeated(layout.conditioning_channels, rows, 0)
    if shape.scaled:
        scales = [torch.ones_like(t.timestep) if t.input_scale is None else t.input_scale for t in tables]
        parts["input_scale"] = _repeated(join([_long(scale, shape) for scale in scales], 1), rows, 1)
    for name in SELF_NAMES:
        if name in shape.selves:
            selves = [_self_rows(name, s, r, shape) for s, r in zip(states, layout.first_row, strict=True)]
            at_all_steps = join(selves, 2)
            extra = own[at_all_steps.shape[2] :].expand(*at_all_steps.shape[:2], -1)
            parts[name] = join([at_all_steps, extra], 2)
    if not shape.edited:
        return parts
    edit = [_edit(state, shape) for state in states]
    sources = join([t.source_row + first for t, first in zip(tables, layout.first_row, strict=True)])
    parts["source_row"] = join([sources, own[len(sources) :]])
    for place, name in enumerate(("token_map", "own_weight", "word_steps", "strength", "spatial_map")):
        parts[name] = _pad(join([tensors[place] for tensors in edit]), rows, 0)
    lengths = [t.timestep.new_full((t.rows, 1), t.plan.steps) for t in tables]
    parts["steps"] = _repeated(join(lengths), rows, 0)
    return parts


def _tracks(states: Sequence[EditState], layout: Layout, shape: StepShape) -> dict[str, Tensor]:
    tables, tracks = layout.tables, shape.tracks
    guidance_rows = layout.guidance_rows
    wider = (0, shape.guidance - guidance_rows.shape[1])
    guidance_rows = torch.cat([guidance_rows, guidance_rows[:, -1:].expand(-1, wider[1])], 1)
    parts = {
        "guidance_rows": _repeated(guidance_rows, tracks, 0),
        "guidance_weights": _pad(F.pad(layout.guidance_weights, wider), tracks, 0),
        "sample_weight": _pad(join([_long(t.sample_weight, shape) for t in tables], 1), tracks, 1, 1),
        "output_weight": _pad(join([_long(t.output_weight, shape) for t in tables], 1), tracks, 1),
        "conditional_row": _repeated(
            join([t.conditional_row + first for t, first in zip(tables, layout.first_row, strict=True)]),
            tracks,
            0,
        ),
    }
    if shape.noise:
        none = [torch.zeros_like(t.sample_weight) for t in tables]
        weights = [z if t.noise_weight is None else t.noise_weight for t, z in zip(tables, none, strict=True)]
        parts["noise_weight"] = _pad(join([_long(weight, shape) for weight in weights], 1), tracks, 1)
        parts["noise"] = layout.guidance_weights.new_zeros(tracks, *shape.size[:3])
    if shape.looks_back:
        pairs = [
            t.sample_weight.new_zeros(t.plan.steps, 2, t.plan.tracks) if t.history is None else t.history
            for t in tables
        ]
        parts["history_weights"] = _pad(join([_long(pair, shape) for pair in pairs], 2), tracks, 2)
        kept = [torch.zeros_like(s.latents) if s.history is None else s.history for s in states]
        parts["history"] = _pad(join(kept), tracks, 0)
    if shape.blend_grow >= 0:
        parts |= _blends(states, layout, shape)
    return parts


def _blends(states: Sequence[EditState], layout: Layout, shape: StepShape) -> dict[str, Tensor]:
    tables, tracks, never = layout.tables, shape.tracks, shape.steps + 1
    own = torch.arange(tracks, device=layout.track_of_row.device)
    blends = [table.plan.local_blend for table in tables]
    tokens, places, sources = [], [], []
    for table, blend, first in zip(tables, blends, layout.first_track, strict=True):
        count, like = table.plan.tracks, table.sample_weight
        tokens.append(like.new_zeros(count, shape.size[-1]) if blend is None else table.blend_tokens)
        known = None if blend is None else table.blend_places
        places.append(like.new_zeros(count, shape.pixels) if known is None else known)
        sources.append(own[first : first + count] if blend is None else table.source_track + first)
    joined = join(sources)
    starts = [
        never if blend is None else int(blend.start * table.plan.steps)
        for table, blend in zip(tables, blends, strict=True)
    ]
    thresholds = [1.0 if blend is None else blend.threshold for blend in blends]
    known_places = [table.blend_places is not None for table in tables]
    return {
        "blend_start": _numbers(states, starts, shape, torch.int64, never),
        "blend_known": _numbers(states, known_places, shape, torch.bool),
        "blend_threshold": _numbers(states, thresholds, shape, torch.float32),
        "blend_grow": _numbers(states, [0 if b is None else b.grow for b in blends], shape, torch.int64),
        "blend_tokens": _pad(join([value for value in tokens if value is not None]), tracks, 0),
        "blend_places": _pad(join(places), tracks, 0),
        "blend_source": join([joined, own[joined.shape[0] :]]),
    }


def _self_rows(name: str, state: EditState, first_row: int, shape: StepShape) -> Tensor:
    """[T, L, B] of one edit's rows at all of its steps, numbered in the call."""
    table = state.tables
    rows = found_self_rows(table, state.found).get(name, table.self_rows.get(name))
    if rows is None:
        own = torch.arange(table.rows, device=table.source_row.device)
        rows = own.expand(table.plan.steps, shape.layers, -1)
    return _long(rows + first_row, shape)


def found_self_rows(table: RowTables, found: Found | None) -> dict[str, Tensor]:
    """The self-attention rows [T, L, B] of all steps by what the single pass has found; empty where it says nothing."""
    if found is None or table.adaptive is None or not table.adaptive.temporal:
        return {}
    steps = torch.arange(table.plan.steps, device=table.source_row.device).reshape(-1, 1, 1)
    return table.found_self_rows(steps, found.self_share)


def found_on_rows(table: RowTables, found: Found | None) -> dict[str, Tensor]:
    """The same of `word_steps` [B, N] and `spatial_map` [B, P]."""
    if found is None or table.adaptive is None:
        return {}
    on_rows = {}
    if table.adaptive.temporal:
        on_rows["word_steps"] = found.word_steps.index_select(0, table.track_of_row)
    if table.adaptive.spatial:
        on_rows["spatial_map"] = found.spatial_map.index_select(0, table.track_of_row)
    return on_rows


def _edit(state: EditState, shape: StepShape) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows of token_map, own_weight, word_steps, strength and spatial_map; without weight for an edit that is none."""
    table, rows, tokens = state.tables, state.tables.rows, state.plan.tokens
    if table.token_map is None:
        zeros = table.timestep.new_zeros
        return (
            zeros(rows, tokens, tokens),
            zeros(rows, tokens),
            zeros(rows, tokens),
            zeros(rows),
            zeros(rows, shape.pixels),
        )
    found = found_on_rows(table, state.found)
    assert table.own_weight is not None and table.word_steps is not None
    assert table.strength is not None and table.spatial_map is not None
    return (
        table.token_map,
        table.own_weight,
        found.get("word_steps", table.word_steps),
        table.strength,
        found.get("spatial_map", table.spatial_map),
    )


def _numbers(
    states: Sequence[EditState],
    values: Sequence[float],
    shape: StepShape,
    dtype: torch.dtype,
    padding: float = 0,
) -> Tensor:
    """A number of each edit on its tracks, [K]; made on the device, for a copy from the host would wait."""
    parts = [
        torch.full((state.plan.tracks,), value, dtype=dtype, device=shape.device)
        for state, value in zip(states, values, strict=True)
    ]
    return _pad(join(parts), shape.tracks, 0, padding)


def _long(table: Tensor, shape: StepShape) -> Tensor:
    """A table of all steps [T, ...] as long as the slot's: the last step again, which nobody reaches."""
    return _repeated(table, shape.steps, 0)


def _repeated(tensor: Tensor, size: int, dim: int) -> Tensor:
    missing = size - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.narrow(dim, -1, 1).expand(shape)], dim)


def _pad(tensor: Tensor, size: int, dim: int, value: float = 0) -> Tensor:
    missing = size - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_full(shape, value)], dim)
