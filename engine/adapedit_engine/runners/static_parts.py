"""What of a step depends on earlier ones, in buffers that stay where they are: local blends, and the single pass."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit_engine.adaptive import Found, observe
from adapedit_engine.layout import Layout
from adapedit_engine.rows import RowTables
from adapedit_engine.stepping import acting_mask


class StaticBlends:
    """Local blends of plans that begin together: a mask at every step, of ones where none acts yet.

    latent_size, map_size: heights and widths.
    """

    def __init__(
        self, layout: Layout, steps: int, *, latent_size: tuple[int, int], map_size: tuple[int, int]
    ) -> None:
        self._tables, self._first = layout.tables, layout.first_track
        self._latent_size, self._map_size = latent_size, map_size
        device = layout.track_of_row.device
        # [T, K]: whether each track's blend acts after a step.
        self.active = torch.tensor(
            [
                [_acts(table, step, steps) for table in self._tables for _ in range(table.plan.tracks)]
                for step in range(steps)
            ],
            device=device,
        )
        # A track that blends with itself is left as it is.
        self.source = torch.cat(
            [
                start
                + (
                    table.source_track
                    if table.plan.local_blend
                    else torch.arange(table.plan.tracks, device=device)
                )
                for table, start in zip(self._tables, self._first, strict=True)
            ]
        )

    def mask(self, active: Tensor, map_sum: Tensor) -> Tensor:
        """[K, 1, h, w], 1 where a track keeps its own latents. active [K], of this step; map_sum [K, P, N], so far."""
        masks = []
        for table, start in zip(self._tables, self._first, strict=True):
            blend, tracks = table.plan.local_blend, table.plan.tracks
            if blend is None:
                masks.append(map_sum.new_ones(tracks, 1, *self._latent_size))
                continue
            mask = acting_mask(
                table,
                blend,
                map_sum[start : start + tracks],
                map_size=self._map_size,
                latent_size=self._latent_size,
            )
            now = active[start : start + tracks].reshape(-1, 1, 1, 1)
            masks.append(torch.where(now, mask, torch.ones_like(mask)))
        return torch.cat(masks)


def _acts(table: RowTables, step: int, steps: int) -> bool:
    blend = table.plan.local_blend
    return blend is not None and blend.active(step, steps)


class StaticFindings:
    """What FWT and DPS of one plan in a single pass have found so far, and the controls that follow from it."""

    def __init__(self, table: RowTables, first_row: int, first_track: int, pixels: int) -> None:
        assert table.adaptive is not None
        self._table, self._adaptive, self._first_row = table, table.adaptive, first_row
        self._rows = slice(first_row, first_row + table.rows)
        tracks, device = table.plan.tracks, table.source_row.device
        self._tracks = slice(first_track, first_track + tracks)
        self._found = Found(
            torch.zeros(tracks, table.plan.tokens, device=device),
            torch.zeros(tracks, pixels, device=device),
            torch.zeros(tracks, device=device),
        )

    def apply(self, controls: dict[str, Tensor], step: Tensor) -> None:
        """Put them into this plan's rows of a step's controls, once something has been found. step [1] int64."""
        table, adaptive, found = self._table, self._adaptive, self._found
        known = step >= adaptive.update_every
        if adaptive.temporal:
            weight = table.found_weight(step, found.word_steps)
            self._put(controls["spatial_weight"], weight, known)
            for name, rows in table.found_self_rows(step, found.self_share).items():
                here = controls[name][:, self._rows]
                controls[name][:, self._rows] = torch.where(known, rows + self._first_row, here)
        if adaptive.spatial:
            self._put(controls["spatial_map"], found.spatial_map.index_select(0, table.track_of_row), known)

    def update(self, map_sum: Tensor, feature_sum: Tensor, step: Tensor) -> None:
        """Look again, after a step: sums [K, P, N] and [K, P, V] of all tracks so far."""
        seen = step + 1
        maps, features = map_sum[self._tracks] / seen, feature_sum[self._tracks] / seen
        found = observe(maps, features, self._adaptive, self._table.source_track)
        due = seen % self._adaptive.update_every == 0
        for kept, new in zip(self._found, found, strict=True):
            kept.copy_(torch.where(due, new, kept))

    def _put(self, control: Tensor, value: Tensor, known: Tensor) -> None:
        control[self._rows] = torch.where(known, value.to(control.dtype), control[self._rows])
