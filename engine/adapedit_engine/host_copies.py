"""Results on their way to the host while the device goes on with the next steps. On the CPU nothing happens here.

Written for CUDA and not run on one yet; what is said to streams and events is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.loop import EditOutcome


@dataclass(frozen=True, kw_only=True, eq=False)
class HostCopy:
    """An outcome that is on its way. source: the one on the device, which has to live until it is there."""

    source: EditOutcome
    copy: EditOutcome
    done: Any = None

    def get(self) -> EditOutcome:
        """The outcome on the host, once it is there: waits for nothing that was asked of the device since."""
        if self.done is not None:
            self.done.synchronize()
        return self.copy


class HostCopies:
    """Copies outcomes into pinned memory on a stream of its own, so that only who wants one waits for it.

    A plain copy would wait for all that the loop has handed to the device since, which is all it had at hand.
    cuda: `torch.cuda`, or a stand-in.
    """

    def __init__(self, device: torch.device, *, cuda: Any = torch.cuda) -> None:
        self._cuda, self._device = cuda, device
        self._stream = cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, outcome: EditOutcome) -> HostCopy:
        """Called where the outcome was computed, on the loop's stream. Does not wait."""
        if self._stream is None:
            return HostCopy(source=outcome, copy=outcome)
        computed = self._cuda.Event()
        # Streams are a device's own, and the current device need not be this one.
        computed.record(self._cuda.current_stream(self._device))
        self._stream.wait_event(computed)
        with self._cuda.stream(self._stream):
            copy = _each(outcome, lambda value: self._pinned(value).copy_(value, non_blocking=True))
            done = self._cuda.Event()
            done.record(self._stream)
        return HostCopy(source=outcome, copy=copy, done=done)

    def beside(self) -> AbstractContextManager[Any]:
        """Work in the block (decoding) is queued behind the copies, and not behind the loop's next steps."""
        return nullcontext() if self._stream is None else self._cuda.stream(self._stream)

    def _pinned(self, value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True)


def _each(outcome: EditOutcome, copied: Callable[[Tensor], Tensor]) -> EditOutcome:
    values = {entry.name: getattr(outcome, entry.name) for entry in fields(outcome)}
    moved: dict[str, Any] = {
        name: copied(value) for name, value in values.items() if isinstance(value, Tensor)
    }
    return replace(outcome, **moved)
