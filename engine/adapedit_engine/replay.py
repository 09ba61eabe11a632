"""Which plans have a source in common with earlier ones, what they look at in it, and what that takes in bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.caches import digest
from adapedit_engine.layers import LayerSpec
from adapedit_engine.plan import EditPlan
from adapedit_engine.recording import Reach
from adapedit_engine.specs import ModelSpecs

# What a plan says of its other tracks, or of what is made of the predictions: nothing that the source's rows see.
OTHERS = {
    "source_track",
    "token_map",
    "own_weight",
    "word_steps",
    "strength",
    "spatial_map",
    "self_query",
    "self_key",
    "self_value",
    "self_all_rows",
    "local_blend",
    "adaptive",
    "collect",
    "record",
    "trace",
}
PER_TRACK = {"latents", "encoder_hidden_states", "guidance_weights", "conditioning_channels"}
WHOLE = {"schedule", "noise", "guidance_until", "unconditional_steps", "source_latents"}


def reach_of(plan: EditPlan, layers: int) -> Reach:
    """What a plan's other tracks look at in the first, at some step. layers: of self-attention."""
    if not plan.edited:
        return Reach(cross=False, self_rows=(0,) * layers, maps=plan.needs_maps)
    others = slice(1, None)
    rows = torch.zeros(layers, dtype=torch.int64)
    every = plan.guidance if plan.self_all_rows is not None and bool(plan.self_all_rows.any()) else 1
    for table in (plan.self_query, plan.self_key, plan.self_value):
        if table is not None:
            rows = torch.maximum(rows, table[:, :, others].cpu().any(2).any(0) * every)
    if plan.adaptive is not None and plan.adaptive.self_layers is not None:
        rows = torch.maximum(rows, plan.adaptive.self_layers[:, others].cpu().any(1).long())
    assert plan.own_weight is not None
    return Reach(
        cross=bool((plan.own_weight[others] != 1).any()),
        self_rows=tuple(rows.tolist()),
        maps=plan.needs_maps,
    )


def source_key(plan: EditPlan) -> Hashable | None:
    """What a plan's first track depends on, as a value: plans of one key have one source. None: no such track.

    The first track has to be its own source and that of the others, or they be unedited. A plan that has settings of
    a kind not known here is left alone.
    """
    if plan.tracks < 2 or any(source not in (0, track) for track, source in enumerate(plan.source_track)):
        return None
    content = hashlib.blake2b(digest_size=16)
    for entry in fields(plan):
        value = getattr(plan, entry.name)
        if entry.name in OTHERS:
            continue
        if entry.name in PER_TRACK:
            value = None if value is None else value[0]
        elif entry.name == "noise":
            value = value[:, 0] if value is not None and value.ndim == 5 else value
        elif entry.name not in WHOLE and value != entry.default:
            return None
        _write(content, entry.name, value)
    return content.digest()


def _write(content: Any, name: str, value: Any) -> None:
    content.update(name.encode())
    if isinstance(value, Tensor):
        content.update(digest(value))
    elif is_dataclass(value):
        for entry in fields(value):
            _write(content, entry.name, getattr(value, entry.name))
    else:
        content.update(repr(value).encode())


def recording_bytes(plan: EditPlan, reach: Reach, specs: ModelSpecs, dtype: torch.dtype) -> int:
    """Bytes of a recording, from shapes alone: an upper bound where guidance ends early."""
    item = torch.empty(0, dtype=dtype).element_size()
    _, channels, height, width = plan.latents.shape
    map_height, map_width = specs.map_size(height, width)

    def values(layer: LayerSpec) -> int:
        side = specs.size_at(layer.level, height, width)
        return side[0] * side[1] * layer.channels

    numbers = plan.guidance * channels * height * width
    if reach.cross:
        numbers += sum(values(layer) for layer in specs.cross_layers)
    numbers += sum(
        rows * values(layer) for rows, layer in zip(reach.self_rows, specs.self_layers, strict=True)
    )
    step = item * numbers
    if reach.maps:
        step += map_height * map_width * (4 * plan.tokens + item * specs.feature_channels)
    return plan.steps * step
