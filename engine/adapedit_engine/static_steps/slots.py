"""The slots of one runner: which edits sit where, and when a new slot is made."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from adapedit_engine.caches import CacheStats
from adapedit_engine.loop import EditState, check_states
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner
from adapedit_engine.static_steps.graph import CaptureError
from adapedit_engine.static_steps.shape import StepShape
from adapedit_engine.static_steps.slot import Slot, check_newest

MOST_BYTES = 2 * 2**30
"""Of the buffers of slots that stay. At the size of Stable Diffusion v1.4 a slot of 32 rows has 0.2 GiB, and twice that
where all kinds of edits have been in it; all six numbers of rows together have twice as much as the largest."""
MOST_FAILURES = 2
"""Captures that fail before no more are tried: what keeps one from working keeps the others, too."""
_MAKING = threading.Lock()


class GraphWarning(UserWarning):
    """A step could not be captured as a CUDA graph: it is launched kernel by kernel."""


class StaticSteps:
    """Advances edits in buffers that stay where they are: on CUDA a step is one graph, replayed without the host.

    On CUDA, and for runners that want few shapes, calls are padded to powers of two in rows, and slots stay with their
    graphs when edits leave, for the next that need no more than they have. On the CPU the same steps are run without
    padding or graphs. Thread-safe; on CUDA, calls from several streams run one after the other.

    Slots that stay are bounded in bytes of their buffers: beyond `max_bytes` those go that are free for longest, and
    all free ones where memory runs out, or the runner's weights lie elsewhere when it is opened. What a call takes
    while it runs comes on top, once for all graphs, as large as the largest call's.

    Every edit runs here but those that record or replay a source, or reuse what other steps computed: these are other
    UNet calls, see `takes`.

    runner: open while it is used; what wraps others is looked through. padded: None: where it is wanted.
    """

    def __init__(self, runner: Runner, *, padded: bool | None = None, max_bytes: int = MOST_BYTES) -> None:
        # The runner keeps this, and is not to be kept by it.
        self._runner_ref: Callable[[], Any] = weakref.ref(innermost(runner))
        self._padded, self.max_bytes = padded, max_bytes
        self._slots: list[Slot] = []
        self._pool: Any = None
        self._weights: tuple[tuple[int, int], ...] = ()
        self._failures = self._hits = self._misses = self._evictions = 0
        self._last: tuple[Any, Any] | None = None
        self._lock = threading.RLock()

    @staticmethod
    def of(runner: Runner) -> StaticSteps | None:
        """Those of a runner, made once and kept with it; None where it runs its steps in the loop."""
        if not getattr(runner, "static_steps", False):
            return None
        inner: Any = innermost(runner)
        with _MAKING:
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

    def slot(self, rows: int) -> int:
        """Rows that a call of so many really takes."""
        return 1 << (rows - 1).bit_length() if self.padded else rows

    @torch.inference_mode()
    def tick(self, states: Sequence[EditState]) -> list[EditState]:
        """Advance every state by one step with one UNet call, as `loop.tick` does.

        The newest state of an edit alone can be ticked again, or its outcome taken; one whose tick failed is still the
        newest. Raises `LoopError` for an older one, and where there is nothing to do, and `PlanError` for plans that
        can't share a call.
        """
        check_states(states)
        with self._lock:
            for state in states:
                check_newest(state)
            self._runner.check_open()
            self._in_turn()
            after = self._slot_for(states).tick(states)
            self._done()
            return after

    def clear(self) -> None:
        """Let go of all slots. Edits that are under way go on in new ones."""
        with self._lock:
            self._slots, self._pool = [], None

    def reopened(self) -> None:
        """The runner was opened: graphs read weights where these lay when they were captured."""
        with self._lock:
            weights = _places(self._runner)
            if weights != self._weights:
                self.clear()
                self._weights = weights

    @property
    def stats(self) -> CacheStats:
        """hits: calls whose slot was there; bytes: of buffers. Waits for nothing."""
        slots = self._slots
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            entries=len(slots),
            bytes=sum(slot.bytes for slot in slots),
        )

    # -- seating

    def _slot_for(self, states: Sequence[EditState]) -> Slot:
        here = states[0].seat.slot
        if here is not None and here.seats(states) and (here in self._slots or not self.padded):
            return self._used(here)
        if not self.padded:  # it goes with its edits
            self._misses += 1
            return Slot(states, self._runner, StepShape.of(states, self._runner, None), None)
        try:
            return self._seated(states)
        except torch.OutOfMemoryError:
            # What idle slots hold may be what it wants for. Beyond that, it is for whoever can run fewer edits.
            if not self._drop([slot for slot in self._slots if slot.is_free_for(())]):
                raise
        if self._graphs:
            torch.cuda.empty_cache()
        return self._seated(states)

    def _seated(self, states: Sequence[EditState]) -> Slot:
        shape = StepShape.of(states, self._runner, self.slot)
        for slot in self._slots:
            if slot.shape.covers(shape) and slot.is_free_for(states):
                slot.take(states, self._runner)
                return self._used(slot)
        self._misses += 1
        for slot in self._slots:  # what was needed once will be needed again
            shape = shape.with_parts_of(slot.shape)
        slot = self._made(states, shape)
        self._slots = [*self._slots, slot]
        self._make_room(slot)
        return slot

    def _made(self, states: Sequence[EditState], shape: StepShape) -> Slot:
        self._weights = _places(self._runner)
        if not self._graphs or self._failures >= MOST_FAILURES:
            return Slot(states, self._runner, shape, None)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            return Slot(states, self._runner, shape, self._pool)
        except CaptureError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise error.__cause__ from None
            self._failures, self._pool = self._failures + 1, None
            message = f"{error}; a step of {shape.rows} rows is launched kernel by kernel"
            warnings.warn(message, GraphWarning, stacklevel=2)
        return Slot(states, self._runner, shape, None)

    def _used(self, slot: Slot) -> Slot:
        self._hits += 1
        if self.padded:
            self._slots = [*(other for other in self._slots if other is not slot), slot]
        return slot

    def _make_room(self, new: Slot) -> None:
        """Let go of slots that the new one can stand in for, and of those that are one too many."""
        free = [slot for slot in self._slots if slot is not new and slot.is_free_for(())]
        gone = [slot for slot in free if new.shape.covers(slot.shape)]
        held = sum(slot.bytes for slot in self._slots if slot not in gone)
        for slot in free:
            if slot not in gone and held > self.max_bytes:
                gone.append(slot)
                held -= slot.bytes
        self._drop(gone)

    def _drop(self, gone: Sequence[Slot]) -> int:
        self._slots = [slot for slot in self._slots if slot not in gone]
        self._evictions += len(gone)
        if not self._slots:
            self._pool = None  # a pool ends with its last graph
        return len(gone)

    # -- the device

    @property
    def _runner(self) -> Any:
        runner = self._runner_ref()
        assert runner is not None
        return runner

    @property
    def _graphs(self) -> bool:
        return bool(self._runner.device.type == "cuda")

    def _in_turn(self) -> None:
        """What this call launches comes behind what the last one did, from whatever stream that was."""
        if self._last is None:
            return
        stream, event = self._last
        now = torch.cuda.current_stream(self._runner.device)
        if now != stream:
            now.wait_event(event)

    def _done(self) -> None:
        if self._graphs:
            stream = torch.cuda.current_stream(self._runner.device)
            self._last = stream, stream.record_event()


def _places(runner: Any) -> tuple[tuple[int, int], ...]:
    """Where all weights lie, and whose they are."""
    return tuple((id(weight), weight.data_ptr()) for weight in runner.controlled.parameters())


def innermost(runner: Any) -> Any:
    """The runner itself, behind what caches prompts for it or pads its calls."""
    while hasattr(runner, "runner"):
        runner = runner.runner
    return runner
