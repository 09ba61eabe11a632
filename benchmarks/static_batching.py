"""Static batching, the way of serving that the scheduler is held against: a batch runs to its end before the next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from adapedit_engine.openmp import release_threads

Passes = Sequence[tuple[int, int]]
"""An edit on paper: (rows, steps) of each of its passes."""


def in_batches(pipe: Any, requests: Sequence[Any], size: int) -> list[Any]:
    """Batches of a fixed size, each waited for."""
    done = []
    for start in range(0, len(requests), size):
        done += pipe.edit_batch(requests[start : start + size])
    return done


class StaticServer:
    """Takes what waits, `size` edits at most, and nobody joins or leaves until the last of them is done.

    It does not wait for a batch to be full, and rows whose edit has taken its last step fall away: of the static
    ways the one with the shortest latencies.
    """

    def __init__(self, pipe: Any, size: int) -> None:
        self._pipe, self._size = pipe, size
        self._waiting: queue.Queue[tuple[Any, Future[Any]] | None] = queue.Queue()
        self._worker = threading.Thread(target=self._run, name="static", daemon=True)

    def submit(self, request: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.put((request, future))
        return future

    def __enter__(self) -> StaticServer:
        release_threads()  # as the scheduler's server does
        self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._worker.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._size and not self._waiting.empty():
                item = self._waiting.get()
                if item is None:
                    self._waiting.put(None)
                    break
                batch.append(item)
            try:
                results = self._pipe.edit_batch([request for request, _ in batch])
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)


def on_paper(
    arrivals: Sequence[tuple[float, Passes]], size: int, seconds: Callable[[int], float]
) -> tuple[float, float, list[float]]:
    """The same on a device whose call of so many rows takes `seconds`.

    arrivals: when, and what, in order. Returns when the last is done, how long the device was busy, and latencies.
    """
    now = busy = 0.0
    place, latencies = 0, []
    while place < len(arrivals):
        now = max(now, arrivals[place][0])
        batch: list[tuple[float, Passes]] = []
        while place < len(arrivals) and arrivals[place][0] <= now and len(batch) < size:
            batch.append(arrivals[place])
            place += 1
        observing = [passes[0] for _, passes in batch if len(passes) > 1]
        editing = [passes[-1] for _, passes in batch]
        for group in (observing, editing):
            for step in range(max((steps for _, steps in group), default=0)):
                took = seconds(sum(rows for rows, steps in group if steps > step))
                now, busy = now + took, busy + took
        latencies += [now - arrived for arrived, _ in batch]
    return now, busy, latencies


def burst_times(count: int, rate: float, size: int, random_: Any) -> list[float]:
    """When edits arrive that come `size` at a time, `rate` a second on average; size 1: a Poisson process."""
    times: list[float] = []
    now = 0.0
    while len(times) < count:
        now += random_.expovariate(rate / size)
        times += [now] * size
    return times[:count]
