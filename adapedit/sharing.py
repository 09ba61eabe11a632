"""Edits of one source share its track: K edits take 2 (1 + K) rows of the UNet instead of 4 K.

Plans are compared as data, bit for bit: where two begin with the same track (latents, prompt, guidance, schedule) that
track is run once. It takes nothing from the others, so each edit is what it would have been alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.adaptive import Adaptive
from adapedit_engine.blend import LocalBlend
from adapedit_engine.cache import digest
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan, plan_rows
from adapedit_engine.schedule import Schedule

# What a track has that takes nothing from another, in a plan whose other tracks do.
_UNEDITED = {
    "token_map": 0.0,
    "own_weight": 0.0,
    "word_steps": 0.0,
    "strength": 1.0,
    "spatial_map": 1.0,
    "self_all_rows": False,
}
_TABLES = ("self_query", "self_key", "self_value")


def share(plans: Sequence[EditPlan], *, max_rows: int | None = None) -> list[tuple[int, ...]]:
    """Places of the plans that `merge` can make one of, each place once, in the order of their first ones.

    max_rows: the rows that a merged plan takes at most.
    """
    groups: list[tuple[int, list[int]]] = []
    for place, plan in enumerate(plans):
        more = plan_rows(plan) - plan.guidance
        for i, (rows, members) in enumerate(groups):
            if (max_rows is None or rows + more <= max_rows) and _compatible(plans[members[0]], plan):
                groups[i] = (rows + more, [*members, place])
                break
        else:
            groups.append((plan_rows(plan), [place]))
    return [tuple(members) for _, members in groups]


def merge(plans: Sequence[EditPlan]) -> EditPlan:
    """One plan: the first track of all, then every other track of each. For plans that `share` put together."""
    first = plans[0]
    if len(plans) == 1:
        return first
    sources, start = [0], 1
    for plan in plans:
        sources += [0 if source == 0 else source + start - 1 for source in plan.source_track[1:]]
        start += plan.tracks - 1
    tensors: dict[str, Any] = {
        name: _behind_first([getattr(plan, name) for plan in plans])
        for name in ("latents", "encoder_hidden_states", "guidance_weights")
    }
    tensors |= {name: _joined(plans, name, value) for name, value in _UNEDITED.items()}
    tensors |= {name: _joined(plans, name, False, tracks_last=True) for name in _TABLES}
    return replace(
        first,
        source_track=tuple(sources),
        local_blend=_merged_blend(plans),
        adaptive=_merged_adaptive(plans),
        **tensors,
    )


def split(outcome: EditOutcome, plans: Sequence[EditPlan]) -> list[EditOutcome]:
    """The outcome of `merge(plans)` as one for each of them, with the shared track first in each."""
    parts, start = [], 1
    for plan in plans:
        tracks = [0, *range(start, start + plan.tracks - 1)]
        start += plan.tracks - 1
        found = plan.adaptive is not None
        parts.append(
            replace(
                outcome,
                latents=outcome.latents[tracks],
                maps=None if outcome.maps is None else outcome.maps[tracks],
                features=None if outcome.features is None else outcome.features[tracks],
                trajectory=None if outcome.trajectory is None else outcome.trajectory[:, tracks],
                word_steps=_own(outcome.word_steps, tracks, found or plan.word_steps is not None),
                spatial_map=_own(outcome.spatial_map, tracks, found or plan.spatial_map is not None),
            )
        )
    return parts


def alike_passes(plans: Mapping[int, EditPlan]) -> list[tuple[int, ...]]:
    """Places whose plans are one and the same pass, which need be run once, in the order of their first ones."""
    if len(plans) < 2:
        return [(place,) for place in plans]  # nothing to digest for
    groups: dict[Hashable, list[int]] = {}
    for place, plan in plans.items():
        key = observation_key(plan)
        groups.setdefault(place if key is None else key, []).append(place)
    return [tuple(places) for places in groups.values()]


def observation_key(plan: EditPlan) -> Hashable | None:
    """A first pass by its content: another knob of the same edit finds it again. None: not to be kept.

    Only plain generation is; what a plan of another kind depends on is its method's business.
    """
    if plan.edited or plan.adaptive or plan.local_blend or plan.conditioning_channels is not None:
        return None
    schedule = (getattr(plan.schedule, field.name) for field in fields(plan.schedule))
    values = (
        plan.latents,
        plan.encoder_hidden_states,
        plan.guidance_weights,
        plan.noise,
        plan.unconditional_steps,
        plan.source_latents,
        *schedule,
    )
    return (
        plan.collect,
        plan.record,
        plan.guidance_until,
        *(digest(value) if isinstance(value, Tensor) else value for value in values),
    )


def _own(values: Tensor | None, tracks: list[int], wanted: bool) -> Tensor | None:
    return values[tracks] if wanted and values is not None else None


def _compatible(one: EditPlan, other: EditPlan) -> bool:
    """Whether both begin with the same track and what holds for a plan as a whole is the same."""
    return (
        one.latents.shape[1:] == other.latents.shape[1:]
        and all(
            _first_equal(one, other, name)
            for name in ("latents", "encoder_hidden_states", "guidance_weights")
        )
        and _same_schedule(one.schedule, other.schedule)
        and _same(one.noise, other.noise)
        and (one.noise is None or one.noise.ndim == 4)
        and one.conditioning_channels is None
        and other.conditioning_channels is None
        and one.source_track[0] == 0
        and other.source_track[0] == 0
        and one.collect == other.collect
        and one.guidance_until == other.guidance_until
        and one.record == other.record
        and _same(one.unconditional_steps, other.unconditional_steps)
        and _same(one.source_latents, other.source_latents)
        and _same_blend(one.local_blend, other.local_blend)
        and _same_adaptive(one.adaptive, other.adaptive)
    )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def _first_equal(one: EditPlan, other: EditPlan, name: str) -> bool:
    return _same(getattr(one, name)[0], getattr(other, name)[0])


def _same_schedule(one: Schedule, other: Schedule) -> bool:
    values = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Schedule)]
    return all(_same(a, b) if isinstance(a, Tensor) else a == b for a, b in values)


def _same_blend(one: LocalBlend | None, other: LocalBlend | None) -> bool:
    if one is None or other is None:
        return one is other
    # The source's own words open the mask of every target, so they have to be the same ones. Places that are known
    # beforehand are empty for the source: see `AdapEditMethod`.
    return (
        (one.threshold, one.start, one.grow) == (other.threshold, other.start, other.grow)
        and (one.places is None) == (other.places is None)
        and _same(one.token_weights[0], other.token_weights[0])
    )


def _same_adaptive(one: Adaptive | None, other: Adaptive | None) -> bool:
    if one is None or other is None:
        return one is other
    if (one.self_layers is None) != (other.self_layers is None):
        return False
    # What is looked for in the source goes into the spatial map of every target.
    if (one.joined or other.joined) and not torch.equal(one.key_tokens[0], other.key_tokens[0]):
        return False
    # Their maps are of one size, as their latents are.
    names = (
        "temporal",
        "spatial",
        "relation",
        "lambda_tau",
        "lambda_spatial",
        "joined",
        "update_every",
    )
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _behind_first(values: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The first track of the first, then all others of each, along `dim`."""
    others = [value.narrow(dim, 1, value.shape[dim] - 1) for value in values]
    return torch.cat([values[0].narrow(dim, 0, 1), *others], dim)


def _joined(
    plans: Sequence[EditPlan], name: str, default: float | bool, *, tracks_last: bool = False
) -> Tensor | None:
    values: list[Tensor | None] = [getattr(plan, name) for plan in plans]
    like = next((value for value in values if value is not None), None)
    if like is None:
        return None
    dim = like.ndim - 1 if tracks_last else 0
    filled = []
    for plan, value in zip(plans, values, strict=True):
        shape = list(like.shape)
        shape[dim] = plan.tracks
        filled.append(like.new_full(shape, default) if value is None else value)
    return _behind_first(filled, dim)


def _merged_blend(plans: Sequence[EditPlan]) -> LocalBlend | None:
    blends = [plan.local_blend for plan in plans if plan.local_blend is not None]
    if not blends:
        return None
    known = [blend.places for blend in blends if blend.places is not None]
    return replace(
        blends[0],
        token_weights=_behind_first([blend.token_weights for blend in blends]),
        places=_behind_first(known) if known else None,
    )


def _merged_adaptive(plans: Sequence[EditPlan]) -> Adaptive | None:
    parts = [plan.adaptive for plan in plans if plan.adaptive is not None]
    if not parts:
        return None
    layers = [part.self_layers for part in parts if part.self_layers is not None]
    grown = [part.spatial_grow or (0,) * len(part.key_tokens) for part in parts]
    return replace(
        parts[0],
        key_tokens=_behind_first([part.key_tokens for part in parts]),
        word_of_token=_behind_first([part.word_of_token for part in parts]),
        self_layers=_behind_first(layers, 1) if layers else None,
        spatial_grow=grown[0][:1] + tuple(cells for one in grown for cells in one[1:]),
    )
