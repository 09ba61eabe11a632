"""The scheduler on a device of paper, over thousands of arrivals: `python -m benchmarks.simulate`.

The same code that serves edits, against static batching, at the size of Stable Diffusion v1.4 in slots. There a call
costs `--call-seconds` and `--row-seconds` a row, padding included. The defaults are stated, not measured: 0.68 TFLOP a
row at a quarter of the 788 TFLOP/s that a matrix product reaches on an H200, and 4 ms for what does not grow with rows.
Where `benchmarks.throughput` has left its times of this machine's rows, the same is simulated with those, too, with its
rows in flight and without slots.
"""

from __future__ import annotations

import json
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapedit_engine.scheduler import Passes, Scheduler, slot_for
from benchmarks import common
from benchmarks.static_batching import Passes as Paper
from benchmarks.static_batching import burst_times, on_paper
from benchmarks.virtual_device import VirtualClock, VirtualExecutor, VirtualPlan

LOADS = (0.5, 0.7, 0.8, 0.9)
STATIC = (2, 4, 8, 16)
RULES: dict[str, dict[str, Any]] = {
    "static, mixed": {},
    "static, of a kind": {"kind": tuple},
    "static, to the end": {"leave": False},
}
"""Ways of static batching, with what they want of `on_paper`: edits with the same passes and steps are of a kind."""

Cost = Callable[[int], float]


def main() -> None:
    parser = common.arguments(
        __doc__, arrivals=10_000, steps=50, max_rows=32, call_seconds=0.004, row_seconds=0.68 / 197
    )
    options = parser.parse_args()
    if options.quick:
        options.arrivals = 300
    devices: dict[str, tuple[Cost, Sequence[int] | None, int, int]] = {
        "SD v1.4, stated": (
            lambda rows: options.call_seconds + options.row_seconds * rows,
            (1, 2, 4, 8, 16, 32),
            options.max_rows,
            options.steps,
        )
    }
    measured = options.results / common.file_name("throughput", options.device, options.quick)
    if measured.exists():
        found = json.loads(measured.read_text(encoding="utf-8"))
        devices["built-in model, measured"] = (
            between(found["row_times"]),
            None,
            int(found["options"]["max_rows"]),
            int(found["options"]["steps"]),
        )
    start = time.perf_counter()
    results = {name: simulated(options, *device) for name, device in devices.items()}
    took = round(time.perf_counter() - start, 1)
    common.write("simulate", options, {"devices": results, "seconds_to_simulate": took})


def between(row_times: Mapping[str, Mapping[str, float]]) -> Cost:
    """Seconds of a call by its rows: straight lines between those measured."""
    sizes = sorted(int(rows) for rows in row_times)
    seconds = [size * row_times[str(size)]["ms_a_row"] / 1000 for size in sizes]

    def cost(rows: int) -> float:
        place = min(max(1, bisect_left(sizes, rows)), len(sizes) - 1)
        slope = (seconds[place] - seconds[place - 1]) / (sizes[place] - sizes[place - 1])
        return seconds[place - 1] + slope * (rows - sizes[place - 1])

    return cost


def simulated(
    options: Any, cost: Cost, slots: Sequence[int] | None, max_rows: int, steps: int
) -> dict[str, Any]:
    """Capacity of both ways, and their latencies at shares of the scheduler's."""
    at_once = arrivals(min(options.arrivals, 1000), steps, None)
    capacity = {"scheduler": ours(at_once, cost, slots, max_rows)["edits_per_s"]}
    # Edits take four rows each, and batches of them have to fit the largest slot.
    sizes = [size for size in STATIC if slots is None or 4 * size <= max(slots)]
    best_of = {}
    for name, rule in RULES.items():
        rates = {size: theirs(at_once, cost, slots, size, **rule)["edits_per_s"] for size in sizes}
        best_of[name] = max(sizes, key=rates.__getitem__)
        capacity |= {f"{name}, {size}": rate for size, rate in rates.items()}
    loads = []
    for share in LOADS:
        rate = share * capacity["scheduler"]
        coming = arrivals(options.arrivals, steps, rate)
        ways = {"scheduler": ours(coming, cost, slots, max_rows)}
        for name, rule in RULES.items():
            ways[name] = theirs(coming, cost, slots, best_of[name], **rule)
        loads.append({"share_of_capacity": share, "arrivals_per_s": round(rate, 3), "ways": ways})
    return {"capacity_edits_per_s": capacity, "static_sizes": best_of, "most_steps": steps, "loads": loads}


def arrivals(count: int, steps: int, rate: float | None) -> list[tuple[float, Paper]]:
    """Mixed edits, half of them in two passes as in the paper; `rate` a second, or (None) at once."""
    random_ = random.Random(1)
    times = [0.0] * count if rate is None else burst_times(count, rate, 1, random_)
    edits: list[tuple[float, Paper]] = []
    for moment in times:
        length = random_.choice(common.lengths(steps))
        one_pass: Paper = ((4, length),)
        edits.append((moment, random_.choice((((2, length), (4, length)), one_pass))))
    return edits


def ours(
    coming: Sequence[tuple[float, Paper]], cost: Cost, slots: Sequence[int] | None, max_rows: int
) -> dict[str, Any]:
    """Through the scheduler."""
    clock = VirtualClock()
    executor = VirtualExecutor(clock, cost, slot_sizes=slots)
    scheduler = Scheduler(executor, max_rows=max_rows, clock=clock)
    latencies: list[float] = []
    began: dict[int, float] = {}
    place = 0
    while place < len(coming) or not scheduler.idle:
        if scheduler.idle and coming[place][0] > clock.now:
            clock.now = coming[place][0]
        while place < len(coming) and coming[place][0] <= clock.now:
            ticket = scheduler.submit(job(coming[place][1]))
            began[ticket.number] = coming[place][0]
            place += 1
        latencies += [clock.now - began.pop(ticket.number) for ticket in scheduler.step()]
    stats = scheduler.stats
    return {
        **told(len(coming), clock.now, executor.busy, latencies),
        "rows_a_call": round(stats.rows / stats.calls, 2),
        "padding": round(1 - stats.rows / stats.slot_rows, 3),
    }


def job(passes: Paper) -> Passes:
    """Passes one after the other."""
    for rows, steps in passes:
        yield [VirtualPlan(rows=rows, steps=steps)]


def theirs(
    coming: Sequence[tuple[float, Paper]], cost: Cost, slots: Sequence[int] | None, size: int, **rule: Any
) -> dict[str, Any]:
    """Through static batches of at most `size`."""
    return told(len(coming), *on_paper(coming, size, lambda rows: cost(slot_for(rows, slots)), **rule))


def told(count: int, ended: float, busy: float, latencies: Sequence[float]) -> dict[str, Any]:
    """A run in numbers."""
    return {
        "edits_per_s": round(count / ended, 3),
        "latency_s": common.percentiles(latencies),
        "device_busy": round(busy / ended, 3),
    }


if __name__ == "__main__":
    main()
