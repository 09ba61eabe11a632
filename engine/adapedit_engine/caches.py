"""Caches bounded in bytes, whose hit rates can be read."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from adapedit_engine.runners import Runner
from adapedit_engine.specs import ModelSpecs

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """hits and misses since the beginning; entries and bytes held now."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int

    @property
    def hit_rate(self) -> float:
        """Share of look-ups that were answered; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)


class ByteCache(Generic[Value]):
    """Least recently used goes first. Values larger than the whole cache are never kept. Thread-safe."""

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        self.max_bytes = max_bytes
        self._size_of = size_of
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = self._evictions = self._bytes = 0

    def find(self, key: Hashable) -> Value | None:
        """The value of `key`, or None. Counts as a look-up."""
        with self._lock:
            if key not in self._values:
                self._misses += 1
                return None
            self._hits += 1
            self._values.move_to_end(key)
            return self._values[key][0]

    def keep(self, key: Hashable, value: Value) -> None:
        """Keep a value for later, where it fits."""
        size = self._size_of(value)
        with self._lock:
            if size > self.max_bytes or key in self._values:
                return
            self._values[key] = (value, size)
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, (_, freed) = self._values.popitem(last=False)
                self._bytes -= freed
                self._evictions += 1

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
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                entries=len(self._values),
                bytes=self._bytes,
            )


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
    content.update(torch.empty(flat.shape, dtype=flat.dtype).copy_(flat).view(torch.uint8).numpy().data)
    return content.digest()


class CachedRunner:
    """A runner that projects each prompt once, however many edits and rows use it.

    Every row is projected alone, found in the cache or not, so an edit never depends on what came before it.
    """

    def __init__(self, runner: Runner, max_bytes: int) -> None:
        self.runner = runner
        self.prompts: ByteCache[dict[str, Tensor]] = ByteCache(max_bytes, tensor_bytes)

    @property
    def specs(self) -> ModelSpecs:
        return self.runner.specs

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def dtype(self) -> torch.dtype:
        return self.runner.dtype

    @property
    def needs_all_controls(self) -> bool:
        return self.runner.needs_all_controls

    @property
    def slot_sizes(self) -> Sequence[int] | None:
        return getattr(self.runner, "slot_sizes", None)

    def __enter__(self) -> CachedRunner:
        self.runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.runner.__exit__(kind, error, traceback)

    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        """See `Runner.condition`."""
        rows = [
            self.prompts.get(digest(row), lambda row=row: self.runner.condition(row[None]))  # type: ignore[misc]
            for row in encoder_hidden_states
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def infer(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Runner.infer`."""
        return self.runner.infer(inputs, outputs)
