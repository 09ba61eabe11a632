"""A CUDA stream of its own for a library that runs graphs beside PyTorch.

PyTorch's usual stream is CUDA's default one, whose handle is 0: ONNX Runtime takes that for "none given" and makes one
of its own, which nothing waits for, and no work on it can be captured as a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class OwnStream:
    """Work on `stream` begins after what PyTorch has queued, and what PyTorch queues next begins after it.

    Nothing waits on the host. cuda: `torch.cuda`, or what stands in for it.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self.stream = cuda.Stream(device)

    @property
    def handle(self) -> int:
        """What the library is given."""
        return int(self.stream.cuda_stream)

    @contextmanager
    def taking_turns(self) -> Iterator[None]:
        """The library queues its work within the block."""
        current = self._cuda.current_stream(self._device)
        self.stream.wait_stream(current)
        try:
            yield
        finally:
            # Memory that PyTorch gives away after the block is written by what it queues after the library's work, too.
            current.wait_stream(self.stream)
