"""A step as one CUDA graph. Written for CUDA and not run on one yet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from adapedit_engine.runners import RunnerError

WARM_UP = 3
# One capture of a process at a time, whichever runner it is for, on a stream of each device that nothing else uses:
# PyTorch deals out streams in turns, but from another pool for those of high priority.
_CAPTURING = threading.Lock()
_STREAMS: dict[torch.device, Any] = {}


class CaptureError(RunnerError):
    """A step that can't be captured, or whose capture something else broke."""


class StepGraph:
    """What `step` launches on a device, captured once and launched by one call.

    step: waits for nothing, and reads and writes the same tensors at every call. It is run `WARM_UP` times first: what
    it works on is not what it was before.
    pool: memory that graphs have in common, since no two of them run at a time.
    Raises what `step` raises while it is warmed up, and `CaptureError` where the capture itself fails.
    """

    def __init__(self, step: Callable[[], None], pool: Any, device: torch.device) -> None:
        self._device = device
        with _CAPTURING, torch.cuda.device(device):
            stream = _STREAMS.setdefault(device, torch.cuda.Stream(device, priority=-1))
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            _forget_workspaces()
            try:
                # Around the capture, whose own end does not set the stream back where it fails. Other threads decode
                # and copy meanwhile, which is none of this graph's business.
                with (
                    torch.cuda.stream(stream),
                    torch.cuda.graph(
                        self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                    ),
                ):
                    step()
            except Exception as error:
                raise CaptureError(f"a step could not be captured as a CUDA graph: {error}") from error
            finally:
                _forget_workspaces()

    def replay(self) -> None:
        with torch.cuda.device(self._device):
            self._graph.replay()


def _forget_workspaces() -> None:
    """So that cuBLAS has one in this graph's own pool while it is captured, and none of it afterwards."""
    getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
