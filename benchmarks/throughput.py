"""Unrelated edits through the scheduler, one by one and in static batches: `python -m benchmarks.throughput`.

First all at once (edits a second), then as they come, singly and in bursts, at 80 % of the capacity found (latencies):
that of a run long enough for its beginning and its end to weigh little. Static batches are of two kinds, see
`benchmarks.static_batching`; latencies are held against the best of each, by throughput, and first of all against the
best of all.
Each way has a process of its own, and they run in turn over short stretches, see `turns`: what the machine does
meanwhile falls on all of them. The edits have other prompts, seeds, methods and numbers of steps (`--steps` and an
eighth, a quarter, half of it). Beside them, for some of the edits: diffusers' plain loop, which edits nothing, and the
eager controller way. Before any time counts, the pictures of all ways of this project are compared, and the eager way's
loop with its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adapedit.checked import row_steps
from adapedit_engine.models.controls import Controls
from benchmarks import common, overhead, parity
from benchmarks.baselines.edits import ROWS
from benchmarks.serving_ways import KINDS, OTHERS, SUSTAINED, arriving, at_once, static, static_ways
from benchmarks.turns import in_turns

BURST = 8


def main() -> None:
    parser = common.arguments(
        __doc__,
        steps=16,
        edits=64,
        others=12,
        arrivals=1000,
        bursts=6,
        max_rows=32,
        load=0.8,
        sizes="2,4,8,16",
    )
    options = parser.parse_args()
    if options.quick:
        options.steps, options.edits, options.others, options.arrivals, options.bursts = 8, 6, 2, 6, 1
    sizes = (4,) if options.quick else tuple(int(size) for size in options.sizes.split(","))
    beforehand, at_ceiling = checked(options)
    ways = ("one by one", "scheduler", SUSTAINED, *static_ways(sizes), *OTHERS)
    runs = in_turns({name: (at_once, (options, name)) for name in ways})
    rates = {name: found["edits_per_s"] for name, found in runs.items()}
    capacity = runs.pop(SUSTAINED)["edits_per_s"]
    for name, run in runs.items():
        run["share_of_ceiling"] = round(at_ceiling[name if name in OTHERS else "ours"] / run["seconds"], 3)
    found = {**beforehand, "runs": runs, "capacity_edits_per_s": capacity}
    common.write("throughput", options, found, whole=False)
    best_of = {kind: max((static(size, kind) for size in sizes), key=rates.__getitem__) for kind in KINDS}
    best = max(best_of.values(), key=rates.__getitem__)
    rate = options.load * capacity
    patterns = {"singly": (options.arrivals, 1), f"in bursts of {BURST}": (options.bursts * BURST, BURST)}
    latencies = in_turns(
        {name: (arriving, (options, name, rate, patterns)) for name in ("scheduler", *best_of.values())}
    )
    arrivals = {name: together(count, name, latencies) for name, (count, _) in patterns.items()}
    common.write(
        "throughput",
        options,
        {
            **found,
            "scheduler_over_one_by_one": round(rates["scheduler"] / rates["one by one"], 3),
            "scheduler_over_best_static": round(rates["scheduler"] / rates[best], 3),
            "scheduler_over_eager": round(rates["scheduler"] / rates["eager, one by one"], 3),
            "best_static": best,
            "arrivals_per_s": round(rate, 3),
            "arrivals": arrivals,
            "p95_over_static": arrivals["singly"]["over"][best]["p95"],
        },
    )


def checked(options: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """What is known before the ways are timed, parity first; and the seconds that their UNet calls would take at the
    matrix ceiling, by `OTHERS` and "ours"."""
    pipe = common.pipeline(options)
    requests = common.unrelated(options.edits, options.steps)
    pipes = parity.pipelines(options, pipe)
    gate = parity.grey_levels(pipes, lambda each: apart(each, requests[:6], options.max_rows))
    gate |= overhead.same_latents(pipes, 3)
    rows = row_times(pipe, (2, 4, 8, 16) if options.quick else (1, 2, 4, 6, 8, 12, 16, 24, 32), repeats=3)
    ceiling = common.matrix_ceiling(options.device, options.dtype)
    flops = overhead.unet_flops(pipe, overhead.plans(pipe, 1)[0]) / 4
    steps = sum(each.num_inference_steps for each in requests[: options.others])
    seconds = {name: flops * ROWS[name.partition(",")[0]] * steps / ceiling for name in OTHERS}
    seconds["ours"] = flops * sum(row_steps(each, pipe.model) for each in requests) / ceiling
    return {"parity": gate, "row_times": rows, "ceiling_flops_per_s": ceiling}, seconds


def together(count: int, pattern: str, latencies: Any) -> dict[str, Any]:
    """One pattern's latencies by way, and the scheduler's over those of each static one."""
    ways = {name: found[pattern] for name, found in latencies.items()}
    ours = ways["scheduler"]["latency_s"]
    over = {
        name: {key: round(ours[key] / way["latency_s"][key], 3) for key in ("p95", "mean")}
        for name, way in ways.items()
        if name != "scheduler"
    }
    return {"edits": count, "ways": ways, "over": over}


def apart(pipe: Any, requests: Sequence[Any], max_rows: int) -> int:
    """The largest difference of pictures between the ways, in grey levels."""
    streamed = {item.place: item.result for item in pipe.stream(requests, max_rows=max_rows)}
    batched = pipe.edit_batch(requests)
    largest = 0
    for place, each in enumerate(requests):
        (alone,) = pipe.edit_batch([each])
        largest = max(largest, *(common.grey_levels(alone, o) for o in (streamed[place], batched[place])))
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


if __name__ == "__main__":
    main()
