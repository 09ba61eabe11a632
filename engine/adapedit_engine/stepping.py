"""From a prediction to the next latents: guidance, the schedule's weights, what it keeps, and local blend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapedit_engine.blend import LocalBlend, blend_mask, word_places
from adapedit_engine.layout import Layout, join
from adapedit_engine.rows import RowTables
from adapedit_engine.runners import Runner
from adapedit_kernels import guided_step

if TYPE_CHECKING:
    from adapedit_engine.loop import EditState


def step(
    states: Sequence[EditState], latents: Tensor, noise_pred: Tensor, layout: Layout, runner: Runner
) -> Tensor:
    """Guidance, scheduler and local blend for all tracks at once; latents [tracks, C, h, w]."""
    at = [(state.tables, state.step_index) for state in states]
    noise = noise_weight = mask = source = None
    if any(state.tables.noise is not None or state.history is not None for state in states):
        added = [_added(state) for state in states]
        noise, noise_weight = join([value for value, _ in added]), join([weight for _, weight in added])
    if any(_blends(state) for state in states):
        mask = join([_mask(state, runner) for state in states])
        source = join([_blend_source(s) + k for s, k in zip(states, layout.first_track, strict=True)])
    return guided_step(
        noise_pred,
        latents,
        layout.guidance_rows,
        layout.guidance_weights,
        join([table.sample_weight[i] for table, i in at]),
        join([table.output_weight[i] for table, i in at]),
        noise,
        noise_weight,
        mask,
        source,
        check_values=False,
    )


def look_back(
    states: Sequence[EditState], latents: Tensor, noise_pred: Tensor, layout: Layout
) -> list[Tensor | None]:
    """What each edit's next step adds to its latents: None for schedules that keep nothing.

    latents: before the step.
    """
    weights = [None if s.tables.history is None else s.tables.history[s.step_index] for s in states]
    if all(pair is None for pair in weights):
        return [None] * len(states)
    nothing = [s.tables.sample_weight.new_zeros(2, s.plan.tracks) for s in states]
    sample_weight, output_weight = join(
        [none if pair is None else pair for pair, none in zip(weights, nothing, strict=True)], dim=1
    )
    kept = guided_step(
        noise_pred,
        latents,
        layout.guidance_rows,
        layout.guidance_weights,
        sample_weight.contiguous(),
        output_weight.contiguous(),
        check_values=False,
    )
    parts = kept.split([state.plan.tracks for state in states])
    return [None if pair is None else part for pair, part in zip(weights, parts, strict=True)]


def _added(state: EditState) -> tuple[Tensor, Tensor]:
    """What a step adds to an edit's latents, [K1, C, h, w], with its weight [K1]: noise, what was kept, or nothing."""
    tables, i = state.tables, state.step_index
    if tables.noise is None or tables.noise_weight is None:
        value = torch.zeros_like(state.latents) if state.history is None else state.history
        like = tables.sample_weight[i]
        return value, torch.zeros_like(like) if state.history is None else torch.ones_like(like)
    if state.history is None:
        return tables.noise[i], tables.noise_weight[i]
    noise = tables.noise[i] * tables.noise_weight[i].reshape(-1, 1, 1, 1)
    return noise + state.history, torch.ones_like(tables.noise_weight[i])


def _blends(state: EditState) -> bool:
    blend = state.plan.local_blend
    return blend is not None and blend.active(state.step_index, state.plan.steps)


def _blend_source(state: EditState) -> Tensor:
    # A track that blends with itself is left as it is, bit for bit, whatever its mask.
    tracks = torch.arange(state.plan.tracks, device=state.latents.device)
    return state.tables.source_track if _blends(state) else tracks


def _mask(state: EditState, runner: Runner) -> Tensor:
    blend, (height, width) = state.plan.local_blend, state.latents.shape[-2:]
    if blend is None or not _blends(state):
        return torch.ones(state.plan.tracks, 1, height, width, device=state.latents.device)
    map_size = runner.specs.map_size(height, width)
    return acting_mask(state.tables, blend, state.map_sum, map_size=map_size, latent_size=(height, width))


def acting_mask(
    tables: RowTables,
    blend: LocalBlend,
    map_sum: Tensor | None,
    *,
    map_size: tuple[int, int],
    latent_size: tuple[int, int],
) -> Tensor:
    """The mask [K1, 1, h, w], 0 and 1, of a plan's local blend while it acts.

    map_sum [K1, P, N]: of the plan's tracks so far; None where the places are known beforehand.
    """
    places = tables.blend_places
    if places is None:
        assert map_sum is not None and tables.blend_tokens is not None
        places = word_places(map_sum, tables.blend_tokens)
    return blend_mask(
        places,
        tables.source_track,
        map_size=map_size,
        latent_size=latent_size,
        threshold=blend.threshold,
        grow=blend.grow,
    )
