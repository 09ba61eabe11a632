"""Steps as CUDA graphs, captured once for a number of rows and replayed for whatever edits; and how many are queued."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from adapedit_engine.batch import Batch, Call, Seat
from adapedit_engine.step import run, step

WARM_UP = 2
RUN_AHEAD = 2
"""Steps that are with the device at most: with more, an edit that arrives would wait behind them."""
# One capture of a process at a time, whichever runner it is for.
_CAPTURING = threading.Lock()


class GraphWarning(UserWarning):
    """A step could not be captured as a CUDA graph: steps are launched kernel by kernel."""


class RunAhead:
    """How far the host is ahead of a device. On the CPU it never is. cuda: `torch.cuda`, or a stand-in."""

    def __init__(self, device: torch.device, *, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self._steps: deque[Any] = deque()

    def launched(self) -> None:
        """Note a step that was launched, and wait until another may be: step n when step n - 2 has ended."""
        if self._device.type != "cuda":
            return
        step = self._cuda.Event(blocking=True)
        step.record(self._cuda.current_stream(self._device))
        self._steps.append(step)
        if len(self._steps) >= RUN_AHEAD:
            self._steps.popleft().synchronize()


class CapturedSteps:
    """Steps of a batch whose buffers are all there (`Batch(whole=True)`), on CUDA.

    A graph reads and writes buffers, so it holds for all edits that come after. Where a capture fails, that is said
    once, and steps are launched kernel by kernel from then on.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._graphs: dict[Any, Any] = {}
        self._pool: Any = None
        self._version = batch.version
        self._failed = False

    def step(self, seats: Sequence[Seat]) -> None:
        """Advance neighbouring edits by one step. Where they are not all of the batch they are not replayed."""
        with torch.cuda.device(self.batch.runner.device):
            if self._failed or len(seats) < len(self.batch.seats):
                step(self.batch, seats)
            else:
                self._replay(seats)

    @torch.inference_mode()
    def _replay(self, seats: Sequence[Seat]) -> None:
        batch = self.batch
        call = batch.call(seats)
        if self._version != batch.version:  # buffers lie elsewhere
            self._graphs, self._pool, self._version = {}, None, batch.version
        if call.key not in self._graphs and not self._captured(call):
            return step(batch, seats)
        batch.feed(seats)
        self._graphs[call.key].replay()
        batch.stepped(seats)

    def _captured(self, call: Call) -> bool:
        """Capture a step, and leave the edits in it as they were: the warm-up runs on them."""
        kept = {name: value.clone() for name, value in self.batch.tracks.items()}
        try:
            with _CAPTURING:
                self._graphs[call.key] = self._capture(call)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._failed = True
            self._graphs, self._pool = {}, None
            warnings.warn(
                f"a step of {call.size} rows could not be captured as a CUDA graph ({error}): steps are launched "
                "kernel by kernel",
                GraphWarning,
                stacklevel=5,
            )
            return False
        finally:
            for name, value in kept.items():
                self.batch.tracks[name].copy_(value)
        return True

    def _capture(self, call: Call) -> Any:
        cudnn, before = torch.backends.cudnn, torch.backends.cudnn.benchmark
        # Convolutions are tried out in the warm-up, and what was fastest is captured.
        cudnn.benchmark = True
        try:
            return self._recorded(call)
        finally:
            cudnn.benchmark = before

    def _recorded(self, call: Call) -> Any:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run(call)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # Other threads decode and copy meanwhile, which is none of this graph's business.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            run(call)
        return graph
