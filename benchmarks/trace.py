"""A profiler's trace of an edit's steps: `python -m benchmarks.trace --out trace.json`.

The trace opens in chrome://tracing or Perfetto. On CUDA the calls in which the host waits for the device between the
first step and the last are counted: the loop is written to have none. On the CPU there is nothing to wait for, and the
operators that take longest are what it tells. Written for CUDA, and not run on one yet.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from adapedit_engine.loop import begin
from adapedit_engine.ticker import Ticker
from benchmarks import common, overhead

LOOP = "adapedit.loop"
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Runtime calls that return when the device is done; cudaMemcpyAsync waits only for pageable memory of the host, and
then a cudaStreamSynchronize follows it."""
TOP = 15


def main() -> None:
    parser = common.arguments(__doc__, steps=10)
    parser.add_argument("--out", type=Path, help="where to write the trace, a JSON of chrome's format")
    options = parser.parse_args()
    if options.quick:
        options.steps = 3
    pipe = common.pipeline(options)
    plan, _ = overhead.plans(pipe, options.steps)
    waiting = common.waiting(options.device)
    with pipe.model.runner as runner:
        run(plan, runner)  # what is done once, such as compiling kernels, is not of interest
        waiting()
        activities = [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CUDA] if options.device.startswith("cuda") else []
        with profile(activities=activities) as profiler:
            run(plan, runner)
            waiting()
    if options.out is not None:
        profiler.export_chrome_trace(str(options.out))
        print(f"trace written to {options.out}", file=sys.stderr)
    common.write("trace", options, {"steps": options.steps, **report(profiler, options.device)})


@torch.inference_mode()
def run(plan: Any, runner: Any) -> None:
    """One edit, its steps in a range of their own."""
    state, ticker = begin(plan, runner), Ticker(runner)
    with record_function(LOOP):
        while not state.done:
            (state,) = ticker.tick([state])


def report(profiler: Any, device: str) -> dict[str, Any]:
    """Waits by name (None on the CPU), and the operators with most time of their own."""
    on_cuda = device.startswith("cuda")
    waits = waits_inside(profiler.events()) if on_cuda else None
    own = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    operators = sorted(profiler.key_averages(), key=lambda average: -getattr(average, own))
    top = [
        {"name": average.key, "calls": average.count, "ms": round(getattr(average, own) / 1000, 3)}
        for average in operators
        if average.key != LOOP
    ]
    total = None if waits is None else sum(waits.values())
    return {"host_synchronisations": total, "waits": waits, "operators": top[:TOP]}


def waits_inside(events: Iterable[Any]) -> dict[str, int]:
    """How often each of `WAITS` was called between the loop's begin and end."""
    events = list(events)
    loop = next(event.time_range for event in events if event.name == LOOP)
    inside = [e.name for e in events if e.name in WAITS and loop.start <= e.time_range.start < loop.end]
    return dict(Counter(inside))


if __name__ == "__main__":
    main()
