"""Unrelated edits through the scheduler, one by one and in static batches: `python -m benchmarks.throughput`.

First all at once (edits a second), then as they come, at 80 % of the capacity found (latencies). Before any time
counts, the pictures of all ways are compared.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import torch

from adapedit_engine import Controls
from benchmarks import common


def main() -> None:
    parser = common.arguments(__doc__, steps=8, edits=64, arrivals=48, max_rows=16, repeats=1, load=0.8)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.edits, options.arrivals = 2, 6, 6
    pipe = common.pipeline(options)
    requests = [common.request(place, options.steps) for place in range(options.edits)]
    gate = parity(pipe, requests[:6], options.max_rows)
    rows = row_times(pipe, (2, 4, 8, 16) if options.quick else (1, 2, 4, 6, 8, 12, 16, 24, 32), repeats=3)
    variants = {
        "one by one": lambda: [pipe.edit_batch([each]) for each in requests],
        "scheduler": lambda: list(pipe.stream(requests, max_rows=options.max_rows)),
    }
    sizes = (4,) if options.quick else (2, 4, 8)
    for size in sizes:
        variants[f"static batches of {size}"] = partial(static, pipe, requests, size)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: round(options.edits / min(times), 3) for name, times in seconds.items()}
    best_static = max((name for name in rates if "static" in name), key=lambda name: rates[name])
    size = int(best_static.rpartition(" ")[2])
    rate = options.load * rates["scheduler"]
    arriving = {
        "scheduler": arrive(pipe, options, rate, max_rows=options.max_rows),
        "static": arrive(pipe, options, rate, max_rows=4 * size, join_running=False),
    }
    common.write(
        "throughput",
        options,
        {
            "parity_grey_levels": gate,
            "row_times": rows,
            "edits_per_s": rates,
            "scheduler_over_one_by_one": round(rates["scheduler"] / rates["one by one"], 3),
            "scheduler_over_best_static": round(rates["scheduler"] / rates[best_static], 3),
            "arrivals": {"edits_per_s": round(rate, 3), "static_size": size, **arriving},
            "p95_over_static": round(
                arriving["scheduler"]["latency_s"]["p95"] / arriving["static"]["latency_s"]["p95"], 3
            ),
        },
    )


def static(pipe: Any, requests: Sequence[Any], size: int) -> list[Any]:
    """Batches of a fixed size, each waited for."""
    done = []
    for start in range(0, len(requests), size):
        done += pipe.edit_batch(requests[start : start + size])
    return done


def parity(pipe: Any, requests: Sequence[Any], max_rows: int) -> int:
    """The largest difference of pictures between the ways, in grey levels; more than one is no parity."""
    streamed = {item.place: item.result for item in pipe.stream(requests, max_rows=max_rows)}
    batched = pipe.edit_batch(requests)
    largest = 0
    for place, each in enumerate(requests):
        (alone,) = pipe.edit_batch([each])
        for other in (streamed[place], batched[place]):
            for name in ("source_image", "target_image"):
                one, two = (np.asarray(getattr(result, name), np.int16) for result in (alone, other))
                largest = max(largest, int(np.abs(one - two).max()))
    if largest > 1:
        raise SystemExit(f"parity: pictures differ by {largest} grey levels, wanted 1 at most: not timed")
    return largest


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


def arrive(pipe: Any, options: Any, rate: float, **server: Any) -> dict[str, Any]:
    """Edits at random times, `rate` a second on average; the same times whatever the server."""
    random_, now = random.Random(5), 0.0
    latencies: list[float] = []
    lock = threading.Lock()
    start = time.perf_counter()
    with pipe.serve(**server) as running:
        for place in range(options.arrivals):
            now += random_.expovariate(rate)
            time.sleep(max(0.0, start + now - time.perf_counter()))
            arrived = start + now

            def ended(_: Future[Any], arrived: float = arrived) -> None:
                with lock:
                    latencies.append(time.perf_counter() - arrived)

            running.submit(common.request(1000 + place, options.steps)).add_done_callback(ended)
    return {"latency_s": common.percentiles(latencies), "seconds": round(time.perf_counter() - start, 2)}


if __name__ == "__main__":
    main()
