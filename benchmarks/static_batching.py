"""Static batching, the way of serving that the scheduler is held against: a batch runs to its end before the next.

Two kinds of it. *Mixed* batches take whatever waits, and rows whose edit has taken its last step fall away: that needs
an engine whose rows may be at different steps, as this one's may. Batches *of a kind* take what one call of a pipeline
takes everywhere: edits of one method and one number of steps, which begin and end together.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

Passes = Sequence[tuple[int, int]]
"""An edit on paper: (rows, steps) of each of its passes."""


Item = TypeVar("Item")
Kind = Callable[[Any], Hashable]


def mixed(_: Any) -> Hashable:
    """Whatever waits may share a batch."""
    return None


def of_a_kind(request: Any) -> Hashable:
    """What edits have in common that one call of a pipeline takes together."""
    return request.num_inference_steps, request.method


def next_batch(waiting: list[Item], size: int, kind: Callable[[Item], Hashable]) -> list[Item]:
    """Remove the first that waits, and up to `size` with those that may share its batch, in their order."""
    wanted = kind(waiting[0])
    places = [place for place, item in enumerate(waiting) if kind(item) == wanted][:size]
    batch = [waiting[place] for place in places]
    for place in reversed(places):
        del waiting[place]
    return batch


def in_batches(pipe: Any, requests: Sequence[Any], size: int, kind: Kind = mixed) -> list[Any]:
    """Batches of at most `size`, each waited for. Returns results in the order in which they were made."""
    waiting, done = list(requests), []
    while waiting:
        done += pipe.edit_batch(next_batch(waiting, size, kind))
    return done


class StaticServer:
    """Takes what waits, `size` edits at most, and nobody joins or leaves until the last of them is done.

    It does not wait for a batch to be full: of the static ways the one with the shortest latencies.
    """

    def __init__(self, pipe: Any, size: int, kind: Kind = mixed) -> None:
        self._pipe, self._size, self._kind = pipe, size, kind
        self._arrived: queue.Queue[tuple[Any, Future[Any]] | None] = queue.Queue()
        self._worker = threading.Thread(target=self._run, name="static", daemon=True)

    def submit(self, request: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._arrived.put((request, future))
        return future

    def __enter__(self) -> StaticServer:
        self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._arrived.put(None)
        self._worker.join()

    def _run(self) -> None:
        waiting: list[tuple[Any, Future[Any]]] = []
        ended = False
        while True:
            while not ended and not (waiting and self._arrived.empty()):
                item = self._arrived.get()
                if item is None:
                    ended = True
                else:
                    waiting.append(item)
            if not waiting:
                return
            batch = next_batch(waiting, self._size, lambda item: self._kind(item[0]))
            try:
                results = self._pipe.edit_batch([request for request, _ in batch])
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)


def on_paper(
    arrivals: Sequence[tuple[float, Passes]],
    size: int,
    seconds: Callable[[int], float],
    *,
    kind: Kind = mixed,
    leave: bool = True,
) -> tuple[float, float, list[float]]:
    """The same on a device whose call of so many rows takes `seconds`.

    arrivals: when, and what, in order. kind: of an edit's passes. leave: False computes the rows of those that are done
    until the last of their batch is, as batching by request does with language models. Returns when the last is done,
    how long the device was busy, and latencies.
    """
    now = busy = 0.0
    place, latencies = 0, []
    waiting: list[tuple[float, Passes]] = []
    while place < len(arrivals) or waiting:
        if not waiting:
            now = max(now, arrivals[place][0])
        while place < len(arrivals) and arrivals[place][0] <= now:
            waiting.append(arrivals[place])
            place += 1
        batch = next_batch(waiting, size, lambda item: kind(item[1]))
        observing = [passes[0] for _, passes in batch if len(passes) > 1]
        editing = [passes[-1] for _, passes in batch]
        for group in (observing, editing):
            for step in range(max((steps for _, steps in group), default=0)):
                took = seconds(sum(rows for rows, steps in group if steps > step or not leave))
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
