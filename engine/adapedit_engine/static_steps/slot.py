"""A slot: buffers of one shape, the edits that sit in them, and the graph that advances these."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.adaptive import observe
from adapedit_engine.caches import tensor_bytes
from adapedit_engine.layout import Layout
from adapedit_engine.loop import EditState, LoopError, Seat
from adapedit_engine.rows import RowTables
from adapedit_engine.runners import Runner
from adapedit_engine.static_steps.graph import StepGraph
from adapedit_engine.static_steps.inputs import PROMPT, found_on_rows, found_self_rows, gather
from adapedit_engine.static_steps.shape import StepShape
from adapedit_engine.static_steps.step import StepBuffers


class GraphWarning(UserWarning):
    """A step could not be captured as a CUDA graph: it is launched kernel by kernel."""


class Slot:
    """Edits of one set at a time, and later of another.

    pool: where graphs have their memory; None: no graphs.
    """

    def __init__(self, states: Sequence[EditState], runner: Runner, shape: StepShape, pool: Any) -> None:
        self.shape, self._runner = shape, runner
        layout, tensors = self._gathered(states)
        self._buffers = StepBuffers(shape, runner, tensors)
        self._graph = None if pool is None else self._captured(pool)
        self._seat(states, layout, tensors)

    def is_free_for(self, states: Sequence[EditState]) -> bool:
        """Whether nobody sits here but these."""
        theirs = {state.seat for state in states}
        return all(seat in theirs for seat in self._sitting if seat.slot is self)

    @property
    def bytes(self) -> int:
        """Of its buffers."""
        return tensor_bytes(self._buffers.tensors)

    def seats(self, states: Sequence[EditState]) -> bool:
        """Whether these sit here already, alone and in this order."""
        return len(self._tables) == len(states) and all(
            state.tables is table() and state.seat.slot is self
            for state, table in zip(states, self._tables, strict=True)
        )

    def take(self, states: Sequence[EditState]) -> None:
        """Seat these, in place of those before, who are no longer here."""
        # What may fail for want of memory comes before the first write.
        layout, tensors = self._gathered(states)
        self._seat(states, layout, tensors)

    def tick(self, states: Sequence[EditState]) -> list[EditState]:
        """One step of those who sit here."""
        self._refresh(states)
        if self._graph is None:
            self._buffers.step()
        else:
            self._graph.replay()
        return [self._after(state, place) for place, state in enumerate(states)]

    def read(self, track: int, tracks: int) -> dict[str, Tensor]:
        """Latents, sums and history of some tracks, as views: the next step writes over them."""
        names = ("latents", "map_sum", "feature_sum", "history")
        tensors = self._buffers.tensors
        return {name: tensors[name][track : track + tracks] for name in names if name in tensors}

    # -- filling

    def _gathered(self, states: Sequence[EditState]) -> tuple[Layout, dict[str, Tensor]]:
        layout = Layout.of([state.tables for state in states], self._runner)
        return layout, gather([newest(state) for state in states], layout, self.shape)

    def _seat(self, states: Sequence[EditState], layout: Layout, tensors: dict[str, Tensor]) -> None:
        self._buffers.load(tensors)
        # The edits' tables are theirs: a slot that stays when they leave holds none of them.
        self._tables = tuple(weakref.ref(table) for table in layout.tables)
        self._first_row, self._first_track = layout.first_row, layout.first_track
        self._sitting: weakref.WeakSet[Seat] = weakref.WeakSet()
        for state, track in zip(states, layout.first_track, strict=True):
            state.seat.sit(self, track, state.step_index)
            self._sitting.add(state.seat)

    def _refresh(self, states: Sequence[EditState]) -> None:
        """What is too large to lie here for all steps: noise, and prompts that change. Copied, and not waited for."""
        tensors = self._buffers.tensors
        for state, row, track in zip(states, self._first_row, self._first_track, strict=True):
            table, step = state.tables, state.step_index
            if table.noise is not None:
                tensors["noise"][track : track + table.plan.tracks].copy_(table.noise[step])
            for name, value in table.step_prompt.items():
                now = value[step].expand(table.plan.tracks, *value.shape[2:])
                tensors[PROMPT + name].index_copy_(0, table.first_rows + row, now)

    # -- what a step leaves

    def _after(self, state: EditState, place: int) -> EditState:
        steps_done, table, plan = state.step_index + 1, state.tables, state.plan
        state.seat.step = steps_done
        state = replace(
            state,
            tables=table.at(steps_done),
            step_index=steps_done,
            maps_seen=state.maps_seen + plan.needs_maps,
        )
        now = newest(state)
        if plan.record:
            state = replace(state, trajectory=(*state.trajectory, now.latents.clone()))
        adaptive = table.adaptive
        if adaptive is not None and steps_done % adaptive.update_every == 0:
            assert now.map_sum is not None and now.feature_sum is not None
            maps, features = now.map_sum / state.maps_seen, now.feature_sum / state.maps_seen
            state = replace(state, found=observe(maps, features, adaptive, table.source_track))
            self._apply(state, table, place)
        return state

    def _apply(self, state: EditState, table: RowTables, place: int) -> None:
        """Write what the single pass has found into the controls of the steps to come."""
        tensors, first = self._buffers.tensors, self._first_row[place]
        rows = slice(first, first + table.rows)
        for name, value in found_on_rows(table, state.found).items():
            tensors[name][rows].copy_(value)
        for name, value in found_self_rows(table, state.found).items():
            tensors[name][: table.plan.steps, :, rows].copy_(value + first)

    def _captured(self, pool: Any) -> StepGraph | None:
        try:
            return StepGraph(self._buffers.step, pool, self.shape.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            message = f"a step of {self.shape.rows} rows is launched kernel by kernel, for its capture failed: {error}"
            warnings.warn(message, GraphWarning, stacklevel=2)
            return None


def newest(state: EditState) -> EditState:
    """A state with the tensors that its seat has, which the next step writes over; itself where it sits nowhere.

    Raises `LoopError` for one whose edit went on.
    """
    seat = state.seat
    if seat.slot is None:
        return state
    check_newest(state)
    tensors = seat.slot.read(seat.track, state.plan.tracks)
    has_maps, looks_back = state.maps_seen > 0, state.tables.history is not None
    return replace(
        state,
        latents=tensors["latents"],
        map_sum=tensors["map_sum"] if has_maps else None,
        feature_sum=tensors["feature_sum"] if has_maps else None,
        history=tensors["history"] if looks_back else None,
    )


def check_newest(state: EditState) -> None:
    """Raise `LoopError` for a state whose edit went on."""
    if state.seat.slot is not None and state.seat.step != state.step_index:
        raise LoopError(
            f"got an edit's state after {state.step_index} steps, static steps have run {state.seat.step} and keep the "
            "newest: go on with that"
        )
