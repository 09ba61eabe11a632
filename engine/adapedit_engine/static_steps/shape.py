"""What a step over static buffers computes at all: sizes, and the parts that some edit in it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from adapedit_engine.controls import SELF_NAMES
from adapedit_engine.loop import EditState
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner

LEAST_STEPS = 64
"""Steps that per-step tables hold at least, so that edits of other lengths rarely ask for larger ones."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """Everything about a step that is not data: a slot's buffers and its graph are of one shape for good.

    rows, tracks: B and K of the call, padding counted. steps: of the longest trajectory that the tables can hold.
    guidance:     rows of a track at most.
    size:         channels, height and width of the latents, and tokens.
    map_size, features, layers: height and width of maps, channels of visual features, self-attention layers.
    device, dtype: the runner's.
    edited:       some row may take maps from another. selves: the self-attention tables that are there.
    maps:         averages are summed up. blend_grow: widest growth of a local blend; -1: there is none.
    noise, looks_back, scaled: some schedule adds noise or known latents, keeps something, or scales its input.
    """

    rows: int
    tracks: int
    steps: int
    guidance: int
    size: tuple[int, int, int, int]
    map_size: tuple[int, int]
    features: int
    layers: int
    device: torch.device
    dtype: torch.dtype
    edited: bool
    selves: frozenset[str]
    maps: bool
    blend_grow: int
    noise: bool
    looks_back: bool
    scaled: bool

    @property
    def pixels(self) -> int:
        """P, of a map."""
        return self.map_size[0] * self.map_size[1]

    @classmethod
    def of(cls, states: Sequence[EditState], runner: Runner, slot: Callable[[int], int] | None) -> StepShape:
        """The smallest that these edits fit. slot: rows that a call of so many is padded to; None: no padding."""
        tables = [state.tables for state in states]
        plans = [table.plan for table in tables]
        rows, tracks = sum(table.rows for table in tables), sum(plan.tracks for plan in plans)
        longest = max(plan.steps for plan in plans)
        if slot is not None:
            # As many tracks as rows: in a call without guidance every row is a track.
            rows = tracks = slot(rows)
            longest = max(LEAST_STEPS, 1 << (longest - 1).bit_length())
        every, selves = runner.needs_all_controls, set()
        for table in tables:
            selves |= set(table.self_rows)
            selves |= set(SELF_NAMES[:2]) if table.adaptive_layers is not None else set()
        return cls(
            rows=rows,
            tracks=tracks,
            steps=longest,
            guidance=max(plan.guidance for plan in plans),
            size=_size(plans[0]),
            map_size=runner.specs.map_size(*plans[0].latents.shape[-2:]),
            features=runner.specs.feature_channels,
            layers=len(runner.specs.self_layers),
            device=runner.device,
            dtype=runner.dtype,
            edited=every or any(plan.edited for plan in plans),
            selves=frozenset(SELF_NAMES if every else selves),
            maps=any(plan.needs_maps for plan in plans),
            blend_grow=max(-1 if p.local_blend is None else p.local_blend.grow for p in plans),
            noise=any(table.noise is not None for table in tables),
            looks_back=any(table.history is not None for table in tables),
            scaled=any(table.input_scale is not None for table in tables),
        )

    def covers(self, other: StepShape) -> bool:
        """Whether edits of the other shape can run in a slot of this one."""
        return self == other.with_parts_of(self)

    def with_parts_of(self, other: StepShape) -> StepShape:
        """The same rows and tracks with all that either shape computes; itself where the other is about another model's
        or another size's edits."""
        if any(
            getattr(self, name) != getattr(other, name) for name in ("size", "map_size", "device", "dtype")
        ):
            return self
        larger = {
            name: max(getattr(self, name), getattr(other, name))
            for name in ("steps", "guidance", "edited", "maps", "blend_grow", "noise", "looks_back", "scaled")
        }
        return replace(self, selves=self.selves | other.selves, **larger)


def _size(plan: EditPlan) -> tuple[int, int, int, int]:
    _, channels, height, width = plan.latents.shape
    return channels, height, width, plan.tokens
