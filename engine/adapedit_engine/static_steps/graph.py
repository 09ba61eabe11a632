"""A step as one CUDA graph. Written for CUDA and not run on one yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3


class StepGraph:
    """What `step` launches on a device, captured once and launched by one call.

    step: waits for nothing, and reads and writes the same tensors at every call. It is run `WARM_UP` times first: what
    it works on is not what it was before.
    pool: memory that graphs have in common, since no two of them run at a time.
    """

    def __init__(self, step: Callable[[], None], pool: Any, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads decode and copy meanwhile, which is none of this graph's business.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                step()

    def replay(self) -> None:
        with torch.cuda.device(self._device):
            self._graph.replay()
