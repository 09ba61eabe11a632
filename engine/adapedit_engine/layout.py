"""A layout: the rows of several plans side by side in one UNet call, whatever step each of them is at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_engine.models.controls import SELF_NAMES, Controls
from adapedit_engine.plan import PlanError
from adapedit_engine.rows import RowTables
from adapedit_engine.runners import Runner


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """What stays the same while the same plans share the calls. Rows and tracks are numbered in the call."""

    tables: tuple[RowTables, ...]
    first_row: tuple[int, ...]
    first_track: tuple[int, ...]
    track_of_row: Tensor  # [B] int64
    guidance_rows: Tensor  # [K, G] int64; tracks with fewer guidance rows repeat one with weight 0
    guidance_weights: Tensor  # [K, G]
    prompt: dict[str, Tensor]  # [B, ...] each
    conditioning_channels: Tensor | None  # [B, E, h, w]
    own_rows: Tensor  # [L, B] int64, every row itself
    edit: dict[str, Tensor]  # source_row, token_map, own_weight; empty: no row is edited
    blank: tuple[
        tuple[Tensor, Tensor], ...
    ]  # per plan, spatial_weight and spatial_map of one that is not edited
    every_field: bool  # whether the runner wants all controls

    @classmethod
    def of(cls, tables: Sequence[RowTables], runner: Runner) -> Layout:
        """Join the tables of plans. Raises `PlanError` for plans whose shapes can't share a call."""
        kinds = {(*table.plan.latents.shape[1:], table.plan.tokens) for table in tables}
        if len(kinds) != 1:
            raise PlanError(
                f"plans with different (C, h, w, tokens) can't share a UNet call: {sorted(kinds)}"
            )
        first_row = (0, *accumulate(table.rows for table in tables))[:-1]
        first_track = (0, *accumulate(table.plan.tracks for table in tables))[:-1]
        guidance = max(table.plan.guidance for table in tables)
        extra = [table.conditioning_channels for table in tables if table.conditioning_channels is not None]
        rows = torch.arange(sum(table.rows for table in tables), device=runner.device)
        edited = runner.capabilities.all_controls or any(table.plan.edited for table in tables)
        return cls(
            tables=tuple(tables),
            first_row=first_row,
            first_track=first_track,
            track_of_row=join([t.track_of_row + k for t, k in zip(tables, first_track, strict=True)]),
            guidance_rows=join(
                [_guidance_rows(t, guidance) + r for t, r in zip(tables, first_row, strict=True)]
            ),
            guidance_weights=join(
                [F.pad(t.guidance_weights, (0, guidance - t.plan.guidance)) for t in tables]
            ),
            prompt={name: join([t.prompt[name] for t in tables]) for name in tables[0].prompt},
            conditioning_channels=join(extra) if extra else None,
            own_rows=rows.expand(len(runner.specs.self_layers), len(rows)),
            edit=_static_edit(tables, first_row) if edited else {},
            blank=tuple(_blank(table, runner) for table in tables),
            every_field=runner.capabilities.all_controls,
        )

    def controls(self, own: Sequence[Controls]) -> Controls:
        """Join what each plan says about its own rows at its own step."""
        joined: dict[str, Tensor] = {}
        for name in SELF_NAMES:
            rows = [getattr(controls, name) for controls in own]
            if any(table is not None for table in rows):
                joined[name] = join([self._shifted(i, table) for i, table in enumerate(rows)], dim=1)
            elif self.every_field:
                joined[name] = self.own_rows
        if self.edit:
            pairs = zip(own, self.blank, strict=True)
            edits = [(c.spatial_weight, c.spatial_map) if c.edited else blank for c, blank in pairs]
            joined |= self.edit
            joined["spatial_weight"] = join([weight for weight, _ in edits if weight is not None])
            joined["spatial_map"] = join([spatial for _, spatial in edits if spatial is not None])
        return Controls(**joined)

    def prompt_at(self, step_indices: Sequence[int]) -> dict[str, Tensor]:
        """The prompts' inputs, each plan at its own step."""
        changing = [(i, table) for i, table in enumerate(self.tables) if table.step_prompt]
        if not changing:
            return self.prompt
        rows = join([table.first_rows + self.first_row[i] for i, table in changing])
        prompt = dict(self.prompt)
        for name, value in self.prompt.items():
            now = [
                t.step_prompt[name][step_indices[i]].expand(t.plan.tracks, *value.shape[1:])
                for i, t in changing
            ]
            prompt[name] = value.index_copy(0, rows, join(now))
        return prompt

    def _shifted(self, index: int, rows: Tensor | None) -> Tensor:
        start = self.first_row[index]
        if rows is None:
            return self.own_rows[:, start : start + self.tables[index].rows]
        return rows + start if start else rows


def join(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _guidance_rows(table: RowTables, guidance: int) -> Tensor:
    own = torch.arange(table.rows, device=table.source_row.device).unflatten(0, (-1, table.plan.guidance))
    return torch.cat([own, own[:, -1:].expand(-1, guidance - own.shape[1])], dim=1)


def _static_edit(tables: Sequence[RowTables], first_row: Sequence[int]) -> dict[str, Tensor]:
    tokens = tables[0].plan.tokens
    token_maps, own_weights = [], []
    for table in tables:
        device = table.source_row.device
        blank_map, blank_weight = (table.rows, tokens, tokens), (table.rows, tokens)
        token_maps.append(
            torch.zeros(blank_map, device=device) if table.token_map is None else table.token_map
        )
        own_weights.append(
            torch.zeros(blank_weight, device=device) if table.own_weight is None else table.own_weight
        )
    return {
        "source_row": join([t.source_row + start for t, start in zip(tables, first_row, strict=True)]),
        "token_map": join(token_maps),
        "own_weight": join(own_weights),
    }


def _blank(table: RowTables, runner: Runner) -> tuple[Tensor, Tensor]:
    height, width = runner.specs.map_size(*table.plan.latents.shape[-2:])
    device = table.source_row.device
    weight = torch.zeros(table.rows, table.plan.tokens, device=device)
    return weight, torch.zeros(table.rows, height * width, device=device)
