"""A slot: buffers of one shape, the edits that sit in them, and the graph that advances these."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.caches import tensor_bytes
from adapedit_engine.layout import Layout
from adapedit_engine.loop import EditState, LoopError, Seat, findings
from adapedit_engine.runners import Runner
from adapedit_engine.static_steps.graph import StepGraph
from adapedit_engine.static_steps.inputs import PROMPT, found_on_rows, found_self_rows, gather
from adapedit_engine.static_steps.shape import StepShape
from adapedit_engine.static_steps.step import StepBuffers


class Slot:
    """Edits of one set at a time, and later of another.

    pool: where graphs have their memory; None: no graph. What is made of `states` that raises leaves them where they
    were.
    """

    def __init__(self, states: Sequence[EditState], runner: Runner, shape: StepShape, pool: Any) -> None:
        self.shape = shape
        layout, tensors = self._gathered(states, runner)
        self._buffers = StepBuffers(shape, runner, tensors)
        self._graph = None if pool is None else StepGraph(self._buffers.step, pool, shape.device)
        self._seat(states, layout, tensors)

    @property
    def bytes(self) -> int:
        """Of its buffers."""
        return tensor_bytes(self._buffers.tensors)

    def is_free_for(self, states: Sequence[EditState]) -> bool:
        """Whether nobody sits here but these."""
        theirs = {state.seat for state in states}
        return all(seat in theirs for seat in self._sitting if seat.slot is self)

    def seats(self, states: Sequence[EditState]) -> bool:
        """Whether these sit here already, alone and in this order."""
        return len(self._tables) == len(states) and all(
            state.tables is table() and state.seat.slot is self
            for state, table in zip(states, self._tables, strict=True)
        )

    def take(self, states: Sequence[EditState], runner: Runner) -> None:
        """Seat these, in place of those before, who are no longer here."""
        # What may fail for want of memory comes before the first write.
        layout, tensors = self._gathered(states, runner)
        self._seat(states, layout, tensors)

    def tick(self, states: Sequence[EditState]) -> list[EditState]:
        """One step of those who sit here.

        Where it raises they are where they were: all that may fail comes before the step, which fails as a whole, and
        could be done twice.
        """
        states = [self._with_findings(state, place) for place, state in enumerate(states)]
        self._refresh(states)
        kept = [torch.empty_like(newest(state).latents) if state.plan.record else None for state in states]
        if self._graph is None:
            self._buffers.step()
        else:
            self._graph.replay()
        for state in states:
            state.seat.step += 1
        return [_after(state, room) for state, room in zip(states, kept, strict=True)]

    def read(self, track: int, tracks: int) -> dict[str, Tensor]:
        """Latents, sums and history of some tracks, as views: the next step writes over them."""
        names = ("latents", "map_sum", "feature_sum", "history")
        tensors = self._buffers.tensors
        return {name: tensors[name][track : track + tracks] for name in names if name in tensors}

    # -- filling

    def _gathered(self, states: Sequence[EditState], runner: Runner) -> tuple[Layout, dict[str, Tensor]]:
        layout = Layout.of([state.tables for state in states], runner)
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

    def _with_findings(self, state: EditState, place: int) -> EditState:
        """What the single pass finds in the steps so far, written into the controls of those to come."""
        table = state.tables
        found = findings(newest(state))
        if found is state.found:
            return state
        tensors, first = self._buffers.tensors, self._first_row[place]
        rows = slice(first, first + table.rows)
        for name, value in found_on_rows(table, found).items():
            tensors[name][rows].copy_(value)
        for name, value in found_self_rows(table, found).items():
            tensors[name][: table.plan.steps, :, rows].copy_(value + first)
        return replace(state, found=found)

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


def _after(state: EditState, room: Tensor | None) -> EditState:
    steps_done = state.step_index + 1
    state = replace(
        state,
        tables=state.tables.at(steps_done),
        step_index=steps_done,
        maps_seen=state.maps_seen + state.plan.needs_maps,
    )
    if room is None:
        return state
    return replace(state, trajectory=(*state.trajectory, room.copy_(newest(state).latents)))


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
        seat=Seat(),
    )


def check_newest(state: EditState) -> None:
    """Raise `LoopError` for a state whose edit went on, or ended."""
    seat = state.seat
    if seat.slot is LEFT:
        raise LoopError("got a state of an edit that has left static steps: its outcome is all that there is")
    if seat.slot is not None and seat.step != state.step_index:
        raise LoopError(
            f"got an edit's state after {state.step_index} steps, static steps have run {seat.step} and keep the "
            "newest: go on with that"
        )


def leave(state: EditState) -> None:
    """The edit needs its place no more, however long its states are kept."""
    if state.seat.slot is not None:
        state.seat.slot = LEFT


LEFT = object()
