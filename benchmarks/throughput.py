"""Unrelated edits through the scheduler, one by one and in static batches: `python -m benchmarks.throughput`.

First all at once (edits a second), then as they come, singly and in bursts, at 80 % of the capacity found (latencies).
By default 32 rows are in flight, on a CPU 24: above that glibc maps the built-in model's tensors anew at each call.
The edits have other prompts, seeds, methods and numbers of steps (`--steps` and an eighth, a quarter, half of it).
Beside them, for some of the edits: diffusers' plain loop, which edits nothing, and the eager controller way. Before any
time counts, the pictures of all ways of this project are compared, and the eager way's loop with its own.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from adapedit.checked import row_steps
from adapedit_engine import Controls
from benchmarks import common, overhead
from benchmarks.baselines.edits import ROWS, OtherWays, one_by_one
from benchmarks.static_batching import StaticServer, burst_times, in_batches, sleep_until

BURST = 8


def main() -> None:
    parser = common.arguments(
        __doc__, steps=16, edits=64, others=12, arrivals=240, bursts=6, max_rows=0, repeats=2, load=0.8
    )
    options = parser.parse_args()
    options.max_rows = options.max_rows or (24 if options.device == "cpu" else 32)
    if options.quick:
        options.steps, options.edits, options.others, options.arrivals, options.bursts = 8, 6, 2, 6, 1
    pipe = common.pipeline(options)
    requests = common.unrelated(options.edits, options.steps)
    gate = parity(pipe, requests[:6], options.max_rows)
    loops = overhead.check(overhead.loops(pipe, overhead.plans(pipe, 3)[0], 3)[1]())
    rows = row_times(pipe, (2, 4, 8, 16) if options.quick else (1, 2, 4, 6, 8, 12, 16, 24, 32), repeats=3)
    sizes = (4,) if options.quick else (2, 4, 8, 16)
    ways: dict[str, Callable[[], Any]] = {
        "one by one": lambda: [pipe.edit_batch([each]) for each in requests],
        "scheduler": lambda: list(pipe.stream(requests, ahead=options.edits, max_rows=options.max_rows)),
        **{f"static batches of {size}": partial(in_batches, pipe, requests, size) for size in sizes},
    }
    ceiling = common.matrix_ceiling(options.device, options.dtype)
    flops = overhead.unet_flops(pipe, overhead.plans(pipe, 1)[0]) / 4
    work = sum(row_steps(each, pipe.model) for each in requests)
    runs: dict[str, dict[str, Any]] = {}
    for _ in range(options.repeats):
        for name, run in ways.items():
            keep_best(runs, name, measured(run, options, len(requests), flops * work / ceiling))
    other, some = OtherWays(pipe), requests[: options.others]
    steps = sum(each.num_inference_steps for each in some)
    for name, way in (("plain", other.plain), ("eager", other.eager)):
        share = flops * ROWS[name] * steps / ceiling
        runs[f"{name}, one by one"] = measured(partial(one_by_one, way, some), options, len(some), share)
    rates = {name: found["edits_per_s"] for name, found in runs.items()}
    best = max((name for name in rates if "static" in name), key=lambda name: rates[name])
    rate = options.load * rates["scheduler"]
    patterns = {"singly": (options.arrivals, 1), f"in bursts of {BURST}": (options.bursts * BURST, BURST)}
    arrivals = {
        name: both(pipe, options, rate, int(best.rpartition(" ")[2]), *pattern)
        for name, pattern in patterns.items()
    }
    common.write(
        "throughput",
        options,
        {
            "parity": {"grey_levels": gate, **loops},
            "row_times": rows,
            "runs": runs,
            "scheduler_over_one_by_one": round(rates["scheduler"] / rates["one by one"], 3),
            "scheduler_over_best_static": round(rates["scheduler"] / rates[best], 3),
            "scheduler_over_eager": round(rates["scheduler"] / rates["eager, one by one"], 3),
            "best_static": best,
            "arrivals_per_s": round(rate, 3),
            "arrivals": arrivals,
            "p95_over_static": arrivals["singly"]["p95_over_static"],
            "ceiling_flops_per_s": ceiling,
        },
    )


def measured(run: Callable[[], Any], options: Any, edits: int, at_ceiling: float) -> dict[str, Any]:
    """Edits a second, with what of the device they used: the share of all cores' time, and of the ceiling by the
    UNet's arithmetic alone, which would take `at_ceiling` seconds there."""
    wait = common.waiting(options.device)
    wait()
    used, start = time.process_time(), time.perf_counter()
    run()
    wait()
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {
        "edits_per_s": round(edits / seconds, 3),
        "seconds": round(seconds, 3),
        "cores_busy": round(used / seconds / torch.get_num_threads(), 3),
        "share_of_ceiling": round(at_ceiling / seconds, 3),
    }


def keep_best(runs: dict[str, dict[str, Any]], name: str, found: dict[str, Any]) -> None:
    """Keep the fastest run of each way."""
    if name not in runs or found["edits_per_s"] > runs[name]["edits_per_s"]:
        runs[name] = found


def parity(pipe: Any, requests: Sequence[Any], max_rows: int) -> int:
    """The largest difference of pictures between the ways, in grey levels."""
    streamed = {item.place: item.result for item in pipe.stream(requests, max_rows=max_rows)}
    batched = pipe.edit_batch(requests)
    largest = 0
    for place, each in enumerate(requests):
        (alone,) = pipe.edit_batch([each])
        largest = max(largest, *(common.grey_levels(alone, o) for o in (streamed[place], batched[place])))
    return common.gate(largest)


def row_times(pipe: Any, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Milliseconds a row by the number of rows in a call, edited and with maps: what batching can give at all."""
    model, specs = pipe.model, pipe.model.runner.specs
    side, device = model.latent_size, model.device
    with model.runner as runner, torch.inference_mode():
        calls = {}
        for rows in sizes:
            height, width = specs.map_size(side, side)
            controls = Controls.identity(
                batch=rows,
                tokens=model.max_tokens,
                pixels=height * width,
                layers=len(specs.self_layers),
                device=device,
            )
            inputs = {
                "sample": torch.randn(rows, specs.in_channels, side, side, device=device, dtype=runner.dtype),
                "timestep": torch.full((rows,), 500.0, device=device),
                **runner.condition(torch.randn(rows, model.max_tokens, specs.text_channels)),
                **controls.as_dict(),
            }
            calls[str(rows)] = lambda inputs=inputs: runner.infer(inputs)
        times = common.timed(calls, repeats, common.waiting(str(device)))
    return {
        rows: {
            "ms_a_row": round(1000 * time_["least_s"] / int(rows), 3),
            "processor_ms_a_row": round(1000 * time_["processor_s"] / int(rows), 3),
        }
        for rows, time_ in times.items()
    }


def both(pipe: Any, options: Any, rate: float, size: int, count: int, burst: int) -> dict[str, Any]:
    """The same arrivals through the scheduler and through static batching, one after the other."""
    ours = arrive(pipe.serve(max_rows=options.max_rows), options, rate, count, burst)
    static = arrive(StaticServer(pipe, size), options, rate, count, burst)
    ratio = round(ours["latency_s"]["p95"] / static["latency_s"]["p95"], 3)
    mean = round(ours["latency_s"]["mean"] / static["latency_s"]["mean"], 3)
    return {
        "edits": count,
        "scheduler": ours,
        "static": static,
        "p95_over_static": ratio,
        "mean_over_static": mean,
    }


def arrive(server: Any, options: Any, rate: float, count: int, burst: int) -> dict[str, Any]:
    """Edits at random times, `rate` a second on average; the same times whatever the server."""
    latencies: list[float] = []
    lock = threading.Lock()

    def ended(_: Future[Any], arrived: float) -> None:
        with lock:
            latencies.append(time.perf_counter() - arrived)

    edits = common.unrelated(count, options.steps, first=1000)
    times = burst_times(count, rate, burst, random.Random(5))
    with server as running:
        start = time.perf_counter()
        for each, moment in zip(edits, times, strict=True):
            sleep_until(start + moment)
            running.submit(each).add_done_callback(partial(ended, arrived=start + moment))
    return {"latency_s": common.percentiles(latencies), "seconds": round(time.perf_counter() - start, 2)}


if __name__ == "__main__":
    main()
