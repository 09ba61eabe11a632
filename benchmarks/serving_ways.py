"""Ways of serving unrelated edits, each made to run in a process of its own: see `benchmarks.turns`."""

from __future__ import annotations

import random
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from benchmarks import common
from benchmarks.baselines.edits import OtherWays, one_by_one
from benchmarks.static_batching import Kind, StaticServer, burst_times, in_batches, mixed, of_a_kind
from benchmarks.turns import Clock

OTHERS = ("plain, one by one", "eager, one by one")
"""Of others, and slower: they are given fewer of the edits."""

WARM_UP = 4
"""Edits that are run before any time counts."""


SUSTAINED = "scheduler, sustained"
"""Through the scheduler, too, and so many edits that beginning and end of the run weigh little."""

SUSTAINED_EDITS = 4
"""How many times as many."""

OF_A_KIND = " of a kind"
KINDS: dict[str, Kind] = {"": mixed, OF_A_KIND: of_a_kind}
"""Static batches by what their names end with."""


def static(size: int, kind: str = "") -> str:
    """The name of the way that takes batches of so many."""
    return f"static batches of {size}{kind}"


def static_ways(sizes: Sequence[int]) -> list[str]:
    """All of them."""
    return [static(size, kind) for kind in KINDS for size in sizes]


def batches(name: str) -> tuple[int, Kind]:
    """What `static` has named so."""
    kind = OF_A_KIND if name.endswith(OF_A_KIND) else ""
    return int(name.removesuffix(kind).rpartition(" ")[2]), KINDS[kind]


def at_once(clock: Clock, options: Namespace, name: str) -> dict[str, Any]:
    """All edits at once by the way of that name: edits a second, and the share of all cores' time that was used."""
    pipe = common.pipeline(options)
    run, wait = _way(pipe, options, name), common.waiting(options.device)
    others = {**dict.fromkeys(OTHERS, options.others), SUSTAINED: SUSTAINED_EDITS * options.edits}
    edits = common.unrelated(others.get(name, options.edits), options.steps)
    run(edits[:WARM_UP])
    wait()
    clock.begin()
    used, start = time.process_time(), clock()
    run(edits)
    wait()
    seconds, used = clock() - start, time.process_time() - used
    return {
        "edits_per_s": round(len(edits) / seconds, 3),
        "seconds": round(seconds, 3),
        "cores_busy": round(used / seconds / torch.get_num_threads(), 3),
    }


def _way(pipe: Any, options: Namespace, name: str) -> Callable[[list[Any]], Any]:
    if name == "one by one":
        return lambda edits: [pipe.edit_batch([each]) for each in edits]
    if name in ("scheduler", SUSTAINED):
        return lambda edits: list(pipe.stream(edits, ahead=options.edits, max_rows=options.max_rows))
    if name in OTHERS:
        others = OtherWays(pipe)
        return partial(one_by_one, others.plain if name.startswith("plain") else others.eager)
    size, kind = batches(name)
    return partial(in_batches, pipe, size=size, kind=kind)


def arriving(
    clock: Clock, options: Namespace, name: str, rate: float, patterns: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """Latencies of edits that come at random times, `rate` a second on average; the same times whatever the server.

    name: "scheduler", or one of the static ways. patterns: by name, how many come, and how many of them at a time.
    """
    pipe = common.pipeline(options)
    pipe.edit_batch(common.unrelated(WARM_UP, options.steps))
    clock.begin()
    found = {}
    for pattern, (count, burst) in patterns.items():
        ours = name == "scheduler"
        server = pipe.serve(max_rows=options.max_rows) if ours else StaticServer(pipe, *batches(name))
        found[pattern] = _arrive(clock, server, options.steps, rate, count, burst)
    return found


def _arrive(clock: Clock, server: Any, steps: int, rate: float, count: int, burst: int) -> dict[str, Any]:
    latencies: list[float] = []
    lock = threading.Lock()

    def ended(_: Future[Any], arrived: float) -> None:
        with lock:
            latencies.append(clock() - arrived)

    edits = common.unrelated(count, steps, first=1000)
    times = burst_times(count, rate, burst, random.Random(5))
    with server as running:
        start = clock()
        for each, moment in zip(edits, times, strict=True):
            clock.sleep_until(start + moment)
            running.submit(each).add_done_callback(partial(ended, arrived=start + moment))
    return {"latency_s": common.percentiles(latencies), "seconds": round(clock() - start, 2)}
