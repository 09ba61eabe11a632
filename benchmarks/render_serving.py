"""Tables and plots of what was measured of many edits: throughput, scaling, simulation, memory, soak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.plot import Series, chart

Data = Mapping[str, Any]
LATENCY = ("mean", "p50", "p95", "p99")
KEEPS_UP = 0.97
"""Share of what comes that has to be done in the same time; the last edits of a run have nobody behind them."""


def throughput(data: Data, results: Path) -> list[str]:
    rows = [
        (name, run["edits_per_s"], f"{run['cores_busy']:.0%}", f"{run['share_of_ceiling']:.0%}")
        for name, run in data["runs"].items()
    ]
    arrivals = [
        (pattern, way, *(found["latency_s"][key] for key in LATENCY))
        for pattern, came in data["arrivals"].items()
        for way, found in came["ways"].items()
    ]
    times = data["row_times"]
    plot = Series("ms a row", [int(n) for n in times], [t["ms_a_row"] for t in times.values()])
    chart(results / "rows.svg", "Cost of a row", "rows in a call", "ms a row", [plot])
    over = [
        (pattern, way, ratios["p95"], ratios["mean"])
        for pattern, came in data["arrivals"].items()
        for way, ratios in came["over"].items()
    ]
    return [
        table(("", "edits/s", "cores busy", "of the matrix ceiling"), rows),
        "",
        table(("edits that come, s", "", *LATENCY), arrivals),
        "",
        f"The scheduler makes {data['scheduler_over_one_by_one']} times the edits of one by one, "
        f"{data['scheduler_over_best_static']} times those of the best static batches ({data['best_static']}) and "
        f"{data['scheduler_over_eager']} times those of the eager way. So long a run that its end weighs little makes "
        f"{data['capacity_edits_per_s']} edits a second: its capacity, of which {data['arrivals_per_s']} arrivals a "
        "second are the share above. The scheduler's latencies over theirs:",
        "",
        table(("edits that come", "", "p95", "mean"), over),
        "",
        "![Cost of a row](rows.svg)",
    ]


def scaling(data: Data, results: Path) -> list[str]:
    rows = [
        (axis, way, f"{fit['slope']:.4g}", f"{fit['intercept']:.3g}", f"{fit['r2']:.4f}")
        for axis, ways in data["lines"].items()
        for way, fit in ways.items()
    ]
    pictures = []
    for axis in ("steps", "edits", "edits of one source"):
        series = [
            Series(way, [int(n) for n in times], [t["least_s"] for t in times.values()])
            for way, times in data["times"][axis].items()
        ]
        file = f"{axis.replace(' ', '-')}.svg"
        chart(results / file, f"Cost by {axis}", axis, "seconds", series)
        pictures.append(f"![Cost by {axis}]({file})")
    done = data["arithmetic"]
    return [
        table(("cost by", "way", "slope, s", "intercept, s", "R²"), rows),
        "",
        f"Eight edits of one source cost {data['eight_of_one_source_over_one_by_one']} of eight one by one, "
        f"{data['eight_of_one_source_over_one_batch']} of the eight in one batch. The UNet's arithmetic: "
        f"{done['flops_per_s'] / 1e9:.0f} GFLOP/s, {done['share_of_ceiling']:.0%} of the matrix ceiling.",
        "",
        " ".join(pictures),
    ]


def simulate(data: Data, results: Path) -> list[str]:
    parts: list[str] = []
    for device, found in data["devices"].items():
        rows = [
            (
                load["share_of_capacity"],
                way,
                load["ways"][way]["edits_per_s"],
                *(load["ways"][way]["latency_s"][key] for key in LATENCY),
                f"{load['ways'][way]['device_busy']:.0%}",
            )
            for load in found["loads"]
            for way in load["ways"]
        ]
        name = device.lower().replace(" ", "-").replace(",", "").replace(".", "-")
        pictures = []
        for key, title, unit in (
            ("p95", "Tail latency", "p95, s"),
            ("edits_per_s", "Throughput", "edits/s"),
        ):
            series = [
                Series(way, [x for x, _ in points], [y for _, y in points])
                for way in found["loads"][0]["ways"]
                if (points := _points(found["loads"], way, key))
            ]
            file = f"{key.replace('_', '-')}-{name}.svg"
            chart(results / file, f"{title}: {device}", "arrivals / capacity", unit, series)
            pictures.append(f"![{title}]({file})")
        capacity = "; ".join(f"{way} {rate}" for way, rate in found["capacity_edits_per_s"].items())
        sizes = ", ".join(f"{size} ({way})" for way, size in found["static_sizes"].items())
        parts += [
            f"### {device}\n",
            f"Capacity, edits/s: {capacity}.\n\nStatic batches below take at most so many: {sizes}.\n",
            table(("load", "", "edits/s", *(f"{key} s" for key in LATENCY), "busy"), rows),
            "",
            " ".join(pictures),
            "",
        ]
    return parts


def _points(loads: Sequence[Data], way: str, key: str) -> list[tuple[float, float]]:
    """By load, throughput or latency; the latter only where the way keeps up: beyond that it is the run's length."""
    points = []
    for load in loads:
        run = load["ways"][way]
        if key in run:
            points.append((load["share_of_capacity"], run[key]))
        elif run["edits_per_s"] >= KEEPS_UP * load["arrivals_per_s"]:
            points.append((load["share_of_capacity"], run["latency_s"][key]))
    return points


def memory(data: Data, results: Path) -> list[str]:
    lines = [Series(name, data["done"], data[key]) for name, key in
             (("resident", "resident_mib"), ("in use", "in_use_mib"))]  # fmt: skip
    chart(results / "memory.svg", "Memory", "edits done", "MiB", lines)
    rows = [
        (name, cache["bytes"], cache["bound"], cache["evictions"], f"{cache['hit_rate']:.0%}")
        for name, cache in data["caches"].items()
    ]
    return [
        f"Over the second half of {data['edits']} edits the memory in use grows by {data['growth_mib_per_1000_edits']} "
        f"MiB in 1,000. It was known beforehand that edits in flight and a call take "
        f"{data['known_beforehand_mib']} MiB at most; the process was never more than "
        f"{data['largest_over_before_mib']} MiB above what it was before the first.",
        "",
        table(("cache", "bytes", "bound", "evictions", "hit rate"), rows),
        "",
        f'A budget that no edit fits in: "{data["refused"]}". One that one edit fits in keeps '
        f"{data['most_rows_with_that_budget']} rows in flight, and the others wait.",
        "",
        "![Memory](memory.svg)",
    ]


def soak(data: Data, _: Path) -> list[str]:
    names = ("edits", "outcomes", "faults_raised", "calls_tried_again", "survivors_compared",
             "largest_difference_grey_levels", "growth_mib_second_half")  # fmt: skip
    rows = [(name.replace("_", " "), data[name]) for name in names]
    again = data["restarts"]
    rows += [(f"batch: {name.replace('_', ' ')}", value) for name, value in again.items() if name != "wrong"]
    rows.append(("went wrong", len(data["wrong"]) + len(again["wrong"])))
    return [table(("", ""), rows)]


def neighbours(data: Data, _: Path) -> list[str]:
    rows = [
        (dtype, found["largest"], found["mean"], f"{found['share_over_one']:.2%}")
        for dtype, found in data["dtypes"].items()
    ]
    head = ("weights", "largest, grey levels", "mean", "values more than one apart")
    return [
        f"{data['edits']} unrelated edits of up to {data['steps']} steps, alone and in one batch:\n",
        table(head, rows),
    ]


SERVING: dict[str, Callable[[Data, Path], list[str]]] = {
    "throughput": throughput,
    "scaling": scaling,
    "simulate": simulate,
    "memory": memory,
    "soak": soak,
    "neighbours": neighbours,
}
