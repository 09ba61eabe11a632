"""The slots of one runner: which edits sit where, and when a new slot is made."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from adapedit_engine.caches import CacheStats
from adapedit_engine.loop import EditState
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner
from adapedit_engine.static_steps.shape import StepShape
from adapedit_engine.static_steps.slot import Slot, check_newest

MOST_BYTES = 2 * 2**30
"""Of the buffers of slots that stay. At the size of Stable Diffusion v1.4 a slot of 32 rows has 0.2 GiB, and twice that
where all kinds of edits have been in it; all six numbers of rows together have twice as much as the largest."""


class StaticSteps:
    """Advances edits in buffers that stay where they are: on CUDA a step is one graph, replayed without the host.

    On CUDA, and for runners that want few shapes, calls are padded to powers of two in rows, and slots stay with their
    graphs when edits leave, for the next that need no more than they have. On the CPU the same steps are run without
    padding or graphs. Thread-safe.

    Slots that stay are bounded in bytes of their buffers: beyond `max_bytes` those go that are free for longest. What a
    call takes while it runs comes on top, once for all graphs, as large as the largest call's.

    Every edit runs here but those that record or replay a source, or reuse what other steps computed: these are other
    UNet calls, see `takes`.

    runner: open while it is used; what wraps others is looked through. padded: None: where it is wanted.
    """

    def __init__(self, runner: Runner, *, padded: bool | None = None, max_bytes: int = MOST_BYTES) -> None:
        self._runner, self._padded, self.max_bytes = innermost(runner), padded, max_bytes
        self._slots: list[Slot] = []
        self._hits = self._misses = self._evictions = 0
        self._pool: Any = None
        parameters = list(self._runner.controlled.parameters())
        self._watched, self._weights = (parameters[0], parameters[-1]), ()
        self._lock = threading.RLock()

    @staticmethod
    def of(runner: Runner) -> StaticSteps | None:
        """Those of a runner, made once and kept with it; None where it runs its steps in the loop."""
        if not getattr(runner, "static_steps", False):
            return None
        inner: Any = innermost(runner)
        if inner.kept_steps is None:
            inner.kept_steps = StaticSteps(inner)
        steps: StaticSteps = inner.kept_steps
        return steps

    @staticmethod
    def takes(plan: EditPlan) -> bool:
        """Whether a plan's steps are all of one kind."""
        return plan.trace is None and not plan.reuses

    @property
    def padded(self) -> bool:
        """Whether calls are padded, and slots stay."""
        few_shapes = self._graphs or getattr(self._runner, "few_shapes", False)
        return few_shapes if self._padded is None else self._padded

    @property
    def _graphs(self) -> bool:
        return bool(self._runner.device.type == "cuda")

    def slot(self, rows: int) -> int:
        """Rows that a call of so many really takes."""
        return 1 << (rows - 1).bit_length() if self.padded else rows

    @torch.inference_mode()
    def tick(self, states: Sequence[EditState]) -> list[EditState]:
        """Advance every state by one step with one UNet call, as `loop.tick` does.

        The newest state of an edit alone can be ticked again, or its outcome taken; one whose tick failed is still the
        newest. Raises `LoopError` for an older one, and `PlanError` for plans that can't share a call.
        """
        with self._lock:
            for state in states:
                check_newest(state)
            self._drop_old_weights()
            return self._slot_for(states).tick(states)

    def _slot_for(self, states: Sequence[EditState]) -> Slot:
        here = states[0].seat.slot
        if here is not None and here.seats(states) and (here in self._slots or not self.padded):
            return self._used(here)
        if not self.padded:  # it goes with its edits
            self._misses += 1
            return Slot(states, self._runner, StepShape.of(states, self._runner, None), None)
        shape = StepShape.of(states, self._runner, self.slot)
        for slot in self._slots:
            if slot.shape.covers(shape) and slot.is_free_for(states):
                slot.take(states)
                return self._used(slot)
        self._misses += 1
        for slot in self._slots:  # what was needed once will be needed again
            shape = shape.with_parts_of(slot.shape)
        if self._graphs:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
        slot = Slot(states, self._runner, shape, self._pool)
        self._slots.append(slot)
        self._make_room(slot)
        return slot

    def _used(self, slot: Slot) -> Slot:
        self._hits += 1
        if self.padded:
            self._slots = [*(other for other in self._slots if other is not slot), slot]
        return slot

    def _make_room(self, new: Slot) -> None:
        """Let go of slots that the new one can stand in for, and of those that are one too many."""
        free = [slot for slot in self._slots if slot is not new and slot.is_free_for(())]
        held = sum(slot.bytes for slot in self._slots)
        for slot in free:
            if new.shape.covers(slot.shape) or held > self.max_bytes:
                self._slots.remove(slot)
                self._evictions += 1
                held -= slot.bytes

    @property
    def stats(self) -> CacheStats:
        """hits: calls whose slot was there; bytes: of buffers."""
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                entries=len(self._slots),
                bytes=sum(slot.bytes for slot in self._slots),
            )

    def _drop_old_weights(self) -> None:
        """Graphs read weights where these lay when they were captured."""
        weights = tuple(weight.data_ptr() for weight in self._watched)
        if weights != self._weights:
            self._slots, self._weights = [], weights


def innermost(runner: Any) -> Any:
    """The runner itself, behind what caches prompts for it or pads its calls."""
    while hasattr(runner, "runner"):
        runner = runner.runner
    return runner
