"""The scheduler on a device of paper, over thousands of arrivals: `python -m benchmarks.simulate`.

The same code that serves edits, against static batching, at the size of Stable Diffusion v1.4. A call costs
`--call-seconds` and `--row-seconds` a row, padding included. The defaults are stated, not measured: 0.68 TFLOP a
row at a quarter of the 788 TFLOP/s that a matrix product reaches on an H200, and 4 ms for what does not grow with rows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

from adapedit_engine.scheduler import SLOT_SIZES, Passes, Scheduler
from benchmarks import common
from benchmarks.virtual_device import VirtualClock, VirtualExecutor, VirtualPlan

LOADS = (0.5, 0.7, 0.8, 0.9)


def main() -> None:
    parser = common.arguments(
        __doc__, arrivals=10_000, steps=50, max_rows=32, call_seconds=0.004, row_seconds=0.68 / 197
    )
    options = parser.parse_args()
    if options.quick:
        options.arrivals = 300
    start = time.perf_counter()
    capacity = {name: run(options, None, static)["edits_per_s"] for name, static in POLICIES.items()}
    loads = []
    for share in LOADS:
        rate = share * max(capacity.values())
        results = {name: run(options, rate, static) for name, static in POLICIES.items()}
        loads.append({"share_of_capacity": share, "arrivals_per_s": round(rate, 3), **results})
    p95 = {entry["share_of_capacity"]: _ratio(entry) for entry in loads}
    common.write(
        "simulate",
        options,
        {
            "capacity_edits_per_s": capacity,
            "loads": loads,
            "p95_over_static": p95,
            "seconds_to_simulate": round(time.perf_counter() - start, 1),
        },
    )


POLICIES = {"scheduler": False, "static": True}


def _ratio(entry: dict[str, Any]) -> float:
    return round(entry["scheduler"]["latency_s"]["p95"] / entry["static"]["latency_s"]["p95"], 3)


def edits(count: int, steps: int, seed: int = 0) -> Iterator[tuple[tuple[int, int], ...]]:
    """Passes of mixed edits: most faithful (two passes), some in one, some plain; steps from half to full."""
    random_ = random.Random(seed)
    for _ in range(count):
        length = random_.choice((steps // 2, steps, steps))
        yield random_.choice((((2, length), (4, length)),) * 3 + (((4, length),),))


def job(passes: tuple[tuple[int, int], ...]) -> Passes:
    """Passes one after the other."""
    for rows, steps in passes:
        yield [VirtualPlan(rows=rows, steps=steps)]


def run(options: Any, rate: float | None, static: bool) -> dict[str, Any]:
    """All arrivals, at `rate` a second or (None) all at once, which shows the capacity."""
    clock = VirtualClock()
    executor = VirtualExecutor(
        clock, lambda rows: options.call_seconds + options.row_seconds * rows, slot_sizes=SLOT_SIZES
    )
    scheduler = Scheduler(executor, max_rows=options.max_rows, join_running=not static, clock=clock)
    random_ = random.Random(1)
    arrivals, now = [], 0.0
    for passes in edits(options.arrivals, options.steps):
        now += 0.0 if rate is None else random_.expovariate(rate)
        arrivals.append((now, passes))
    latencies: list[float] = []
    began: dict[int, float] = {}
    place = 0
    while place < len(arrivals) or not scheduler.idle:
        if scheduler.idle and arrivals[place][0] > clock.now:
            clock.now = arrivals[place][0]
        while place < len(arrivals) and arrivals[place][0] <= clock.now:
            ticket = scheduler.submit(job(arrivals[place][1]))
            began[ticket.number] = arrivals[place][0]
            place += 1
        latencies += [clock.now - began.pop(ticket.number) for ticket in scheduler.step()]
    stats = scheduler.stats
    return {
        "edits_per_s": round(len(arrivals) / clock.now, 3),
        "latency_s": common.percentiles(latencies),
        "device_busy": round(executor.busy / clock.now, 3),
        "rows_a_call": round(stats.rows / stats.calls, 2),
        "padding": round(1 - stats.rows / stats.slot_rows, 3),
    }


if __name__ == "__main__":
    main()
