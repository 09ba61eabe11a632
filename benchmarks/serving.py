"""Unrelated edits through the scheduler, one by one and in static batches: `python -m benchmarks.serving`.

All at once (edits a second), then as they come at 80 % of the scheduler's capacity (latencies). Static batching is the
same server with `join_running=False`: a batch begins when the one before has ended. The edits have other prompts,
seeds, methods and numbers of steps. Ways take turns. Before any time counts, the pictures of all ways are compared.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from benchmarks import common

LOAD = 0.8
"""Of the capacity that was found, at which edits arrive."""


def main() -> None:
    options = common.arguments(
        __doc__, steps=16, edits=64, arrivals=120, repeats=3, max_rows=32, static_rows=32
    ).parse_args()
    if options.quick:
        options.steps, options.edits, options.arrivals, options.repeats = 4, 6, 6, 1
    pipe = common.pipeline(options)
    asked = common.unrelated(options.edits, options.steps)
    ways = at_once(pipe, options, asked)
    apart = parity(ways)
    times = common.timed(ways, options.repeats, common.waiting(options.device))
    rates = {name: round(len(asked) / found["median_s"], 3) for name, found in times.items()}
    rate = LOAD * rates["scheduler"]
    data = {
        "parity": apart,
        "edits": len(asked),
        "times": times,
        "edits_per_s": rates,
        "arrivals_per_s": rate,
    }
    common.write("serving", options, data, whole=False)
    latencies = {
        name: arriving(pipe, options, rate, joins) for name, joins in (("scheduler", True), ("static", False))
    }
    ratios = {
        "scheduler over one by one": round(rates["scheduler"] / rates["one by one"], 3),
        "scheduler over static batches": round(rates["scheduler"] / rates["static batches"], 3),
        "p95 over static batches'": round(latencies["scheduler"]["p95"] / latencies["static"]["p95"], 3),
    }
    common.write("serving", options, {**data, "latency_s": latencies, "ratios": ratios})


def at_once(pipe: Any, options: Any, asked: list[Any]) -> dict[str, Callable[[], list[Any]]]:
    """All edits by each way; each returns results in order."""

    def streamed(**server: Any) -> list[Any]:
        finished = list(pipe.stream(asked, ahead=len(asked), **server))
        failed = [item.error for item in finished if item.error is not None]
        if failed:
            raise failed[0]
        return [item.result for item in sorted(finished, key=lambda item: item.place)]

    return {
        "one by one": lambda: [pipe.edit_batch([each])[0] for each in asked],
        "static batches": partial(streamed, max_rows=options.static_rows, join_running=False),
        "scheduler": partial(streamed, max_rows=options.max_rows),
    }


def parity(ways: dict[str, Callable[[], list[Any]]]) -> dict[str, int]:
    """Grey levels between each way's pictures and those made one by one. Raises `SystemExit` above 1."""
    results = {name: run() for name, run in ways.items()}
    wanted = results["one by one"]
    return {
        name: common.gate(max(common.grey_levels(a, b) for a, b in zip(wanted, found, strict=True)))
        for name, found in results.items()
    }


def arriving(pipe: Any, options: Any, rate: float, joins: bool) -> dict[str, float]:
    """Latencies of edits that come at random times, `rate` a second on average; the same times whatever the server."""
    latencies: list[float] = []
    lock = threading.Lock()

    def ended(_: Future[Any], arrived: float) -> None:
        with lock:
            latencies.append(time.monotonic() - arrived)

    gaps, moment = random.Random(5), 0.0
    with pipe.serve(max_rows=options.max_rows, join_running=joins) as server:
        start = time.monotonic()
        for each in common.unrelated(options.arrivals, options.steps, first=1000):
            moment += gaps.expovariate(rate)
            time.sleep(max(0.0, start + moment - time.monotonic()))
            server.submit(each).add_done_callback(partial(ended, arrived=start + moment))
    return common.percentiles(latencies)


if __name__ == "__main__":
    main()
