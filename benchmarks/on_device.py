"""Times on a CUDA device, between two events: without the host, whose share is many times a small kernel's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

ROUNDS, CALLS = 7, 10


def median_seconds(run: Callable[[], Any], calls: int = CALLS, rounds: int = ROUNDS) -> float:
    """Of one call, where the device takes longer than the host that hands it over: `calls` at a time, the median."""
    found = []
    run()
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()  # while it runs, those that are timed are queued behind it
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / calls / 1e3)
    return statistics.median(found)


def captured(run: Callable[[], Any], calls: int = CALLS) -> Callable[[], None]:
    """So many calls in a row as one CUDA graph; returns what replays it. `run` must not wait for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()  # compiled, and with its workspaces, before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay  # type: ignore[no-any-return]


def host_seconds(run: Callable[[], Any], calls: int = CALLS, rounds: int = ROUNDS) -> float:
    """What handing one call over takes of the host, the device idle before: the median."""
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        found.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return statistics.median(found)
