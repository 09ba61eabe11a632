"""Caches bounded in bytes, whose hit rates can be read; digests; and tensors on their way to the device and back."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from adapedit_engine.runners.base import Runner

Value = TypeVar("Value")


@dataclass(kw_only=True)
class CacheStats:
    """hits, misses and evictions since the beginning; entries and bytes held now."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    entries: int = 0
    bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of look-ups that were answered; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)


class ByteCache(Generic[Value]):
    """Least recently used goes first. Values larger than the whole cache are never kept. Thread-safe.

    cachetools has neither locks nor counts of what was found.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        self.max_bytes = max_bytes
        self._size_of = size_of
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._stats = CacheStats()

    def find(self, key: Hashable) -> Value | None:
        """The value of `key`, or None. Counts as a look-up."""
        with self._lock:
            if key not in self._values:
                self._stats.misses += 1
                return None
            self._stats.hits += 1
            self._values.move_to_end(key)
            return self._values[key][0]

    def keep(self, key: Hashable, value: Value) -> None:
        """Keep a value for later, where it fits."""
        size = self._size_of(value)
        with self._lock:
            if size > self.max_bytes or key in self._values:
                return
            self._values[key] = (value, size)
            self._stats.bytes += size
            while self._stats.bytes > self.max_bytes:
                _, (_, freed) = self._values.popitem(last=False)
                self._stats.bytes -= freed
                self._stats.evictions += 1

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made and kept if it is not there. `make` may raise, and may run twice for two threads."""
        value = self.find(key)
        if value is None:
            value = make()
            self.keep(key, value)
        return value

    @property
    def stats(self) -> CacheStats:
        with self._lock:
            return replace(self._stats, entries=len(self._values))


def tensor_bytes(values: Mapping[str, Tensor] | Sequence[Tensor] | Tensor) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    if isinstance(values, Tensor):
        values = [values]
    tensors = values.values() if isinstance(values, Mapping) else values
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def digest(tensor: Tensor) -> bytes:
    """A tensor's content, shape and dtype in 16 bytes. Waits for the device that the tensor is on."""
    content = hashlib.blake2b(f"{tuple(tensor.shape)}{tensor.dtype}".encode(), digest_size=16)
    flat = tensor.detach().cpu().flatten()
    # A copy: a view of one element may keep a stride that can't be viewed as bytes.
    content.update(
        torch.empty(flat.shape, dtype=flat.dtype, device="cpu").copy_(flat).view(torch.uint8).numpy().data
    )
    return content.digest()


class ProjectionCache:
    """What a runner makes of prompts, once for each prompt, however many edits and rows use it.

    Every row is projected alone, found in the cache or not, so an edit never depends on what came before it.
    """

    def __init__(self, runner: Runner, max_bytes: int) -> None:
        self._runner = runner
        self._rows: ByteCache[dict[str, Tensor]] = ByteCache(max_bytes, tensor_bytes)

    def condition(self, encoder_hidden_states: Tensor, known_as: Tensor | None = None) -> dict[str, Tensor]:
        """As `Runner.condition`: the prompt's inputs by name, [rows, ...] each.

        known_as: the same in host memory, where reading it waits for nothing.
        """
        host = encoder_hidden_states if known_as is None else known_as
        rows = [self._row(*pair) for pair in zip(encoder_hidden_states, host, strict=True)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @property
    def stats(self) -> CacheStats:
        return self._rows.stats

    def _row(self, row: Tensor, host: Tensor) -> dict[str, Tensor]:
        return self._rows.get(digest(host), lambda: self._runner.condition(row[None]))


ALIGNMENT = 64
"""Bytes: at a multiple of so many each tensor of a packed copy begins."""


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on a device, those in host memory by one copy out of pinned memory, which waits for nothing.

    What is copied shares one storage. Tensors that lie elsewhere, or have no values ("meta"), are given as they are.
    """
    if device.type == "cpu":
        return dict(tensors)
    starts, size = dict[str, int](), 0
    for name, tensor in tensors.items():
        if tensor.device.type == "cpu":
            starts[name], size = size, size + -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    packed = _pinned((size,), dtype=torch.uint8)

    def place(storage: Tensor, name: str) -> Tensor:
        like = tensors[name]
        return storage[starts[name] :][: like.nbytes].view(like.dtype).view(like.shape)

    for name in starts:
        place(packed, name).copy_(tensors[name])
    there = packed.to(device, non_blocking=True)
    return {name: place(there, name) if name in starts else tensor for name, tensor in tensors.items()}


def _pinned(shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=torch.cuda.is_available())


@dataclass(frozen=True, kw_only=True, eq=False)
class HostCopy(Generic[Value]):
    """An outcome on its way to the host. source: the one on the device, which has to live until it is there."""

    source: Value
    copy: Value
    done: Any = None

    def get(self) -> Value:
        """The outcome on the host, once it is there: waits for nothing that was asked of the device since."""
        if self.done is not None:
            self.done.synchronize()
        return self.copy


class HostCopies:
    """Copies outcomes into pinned memory on a stream of its own, so that only who wants one waits for it.

    A plain copy would wait for all that was handed to the device since. On the CPU nothing happens.
    cuda: `torch.cuda`, or a stand-in.
    """

    def __init__(self, device: torch.device, *, cuda: Any = torch.cuda) -> None:
        self._cuda, self._device = cuda, device
        self._stream = cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, outcome: Value) -> HostCopy[Value]:
        """outcome: a dataclass, computed on the current stream; its tensors are copied. Does not wait."""
        if self._stream is None:
            return HostCopy(source=outcome, copy=outcome)
        computed = self._cuda.Event()
        # Streams are a device's own, and the current device need not be this one.
        computed.record(self._cuda.current_stream(self._device))
        self._stream.wait_event(computed)
        with self._cuda.stream(self._stream):
            given: Any = outcome
            values = {entry.name: getattr(given, entry.name) for entry in fields(given)}
            tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
            pinned = {
                n: _pinned(t.shape, dtype=t.dtype).copy_(t, non_blocking=True) for n, t in tensors.items()
            }
            copy = replace(given, **pinned)
            done = self._cuda.Event()
            done.record(self._stream)
        return HostCopy(source=outcome, copy=copy, done=done)

    def beside(self) -> AbstractContextManager[Any]:
        """Work in the block (decoding) is queued behind the copies, and not behind the loop's next steps."""
        return nullcontext() if self._stream is None else self._cuda.stream(self._stream)
