"""Tables and plots for the README from what the benchmarks wrote: `python -m benchmarks.render`.

Writes `results/README.md` and an SVG beside it for each plot. Rows of quick runs are left out unless `--quick`. What
`adapedit eval` wrote is looked for in `results/evaluation`; `--evaluation DIR` copies it there first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.plot import Series, chart
from benchmarks.render_evaluation import table, take, write_page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="render quick runs")
    parser.add_argument(
        "--evaluation", type=Path, help="a folder of `adapedit eval`: its reports are copied first"
    )
    options = parser.parse_args()
    if options.evaluation is not None:
        take(options.evaluation, options.results / "evaluation")
    write_page(options.results / "evaluation")
    parts = ["# Measured\n"]
    for name, section in SECTIONS.items():
        path = options.results / f"{name}{'.quick' if options.quick else ''}.json"
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            parts += [f"## {name.capitalize()}\n", *section(data, options.results), f"\n{origin(data)}\n"]
    (options.results / "README.md").write_text("\n".join(parts), encoding="utf-8")
    print(options.results / "README.md")


def origin(data: Mapping[str, Any]) -> str:
    """Machine, versions, commit and date in a line."""
    machine, versions = data["machine"], data["versions"]
    where = (
        machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    )
    changed = ", tree changed" if data["dirty"] else ""
    packages = f"torch {versions['torch']}, diffusers {versions['diffusers']}"
    return f"*{where}; {packages}; commit {data['commit']}{changed}; {data['date']}.*"


def _times(data: Mapping[str, Any], _: Path) -> list[str]:
    rows = [
        (
            name,
            f"{t['least_s']:.3f}",
            f"{t['median_s']:.3f}",
            f"{t['flops_per_s'] / 1e9:.0f}",
            f"{t['share_of_ceiling']:.0%}",
        )
        for name, t in data["times"].items()
    ]
    head = ("", "least s", "median s", "GFLOP/s", "of the matrix ceiling")
    said = {
        "edit_over_plain_diffusers": "The edit loop costs {} of diffusers' plain loop on the same rows",
        "edit_over_plain_same_runner": "and {} of the plain loop through the same runner",
        "eager_over_edit": "the eager controller way takes {} times the edit loop",
        "eager_over_faithful": "The eager controller way takes {} times the faithful edit",
    }
    facts = [text.format(data[name]) for name, text in said.items() if name in data]
    stages = (
        [
            table(
                ("stages, s", *next(iter(data["stages_s"].values()))),
                [(n, *s.values()) for n, s in data["stages_s"].items()],
            )
        ]
        if data.get("stages_s")
        else []
    )
    return [table(head, rows), "", *stages, "", "; ".join(facts) + "."]


def _throughput(data: Mapping[str, Any], results: Path) -> list[str]:
    rows = [(name, rate) for name, rate in data["edits_per_s"].items()]
    arrivals = [(name, *data["arrivals"][name]["latency_s"].values()) for name in ("scheduler", "static")]
    times = data["row_times"]
    plot = Series("ms a row", [int(n) for n in times], [t["ms_a_row"] for t in times.values()])
    chart(results / "rows.svg", "Cost of a row", "rows in a call", "ms a row", [plot])
    return [
        table(("", "edits/s"), rows),
        "",
        table(("at random times, latency in s", "mean", "p50", "p95", "p99"), arrivals),
        "",
        f"The scheduler makes {data['scheduler_over_one_by_one']} times the edits of one by one and "
        f"{data['scheduler_over_best_static']} times those of the best static batches; at "
        f"{data['arrivals']['edits_per_s']} arrivals a second "
        f"its p95 is {data['p95_over_static']} of static batching's.",
        "",
        "![Cost of a row](rows.svg)",
    ]


def _scaling(data: Mapping[str, Any], results: Path) -> list[str]:
    rows = [
        (name, f"{fit['slope']:.4g}", f"{fit['intercept']:.3g}", f"{fit['r2']:.4f}")
        for name, fit in data["lines"].items()
    ]
    for name in ("steps", "edits"):
        times = data["times"][name]
        series = Series(name, [int(n) for n in times], [t["least_s"] for t in times.values()])
        chart(results / f"{name}.svg", f"Cost by {name}", name, "seconds", [series])
    return [
        table(("cost by", "slope, s", "intercept, s", "R²"), rows),
        "",
        f"Eight edits of one source cost {data['eight_of_one_source_over_one_by_one']} of eight one by one, "
        f"{data['eight_of_one_source_over_one_batch']} of the eight in one batch.",
        "",
        "![Cost by steps](steps.svg) ![Cost by edits](edits.svg)",
    ]


def _simulate(data: Mapping[str, Any], results: Path) -> list[str]:
    rows = []
    for load in data["loads"]:
        for name in ("scheduler", "static"):
            latency, run = load[name]["latency_s"], load[name]
            rows.append(
                (
                    load["share_of_capacity"],
                    name,
                    run["edits_per_s"],
                    latency["p50"],
                    latency["p95"],
                    latency["p99"],
                    f"{run['device_busy']:.0%}",
                )
            )
    shares = [load["share_of_capacity"] for load in data["loads"]]
    series = [
        Series(n, shares, [load[n]["latency_s"]["p95"] for load in data["loads"]])
        for n in ("scheduler", "static")
    ]
    chart(results / "tail.svg", "Tail latency, simulated", "arrivals / capacity", "p95, s", series)
    return [
        table(("load", "", "edits/s", "p50 s", "p95 s", "p99 s", "busy"), rows),
        "",
        f"Capacity, edits/s: {data['capacity_edits_per_s']}.",
        "",
        "![Tail latency](tail.svg)",
    ]


def _soak(data: Mapping[str, Any], _: Path) -> list[str]:
    names = ("edits", "outcomes", "faults_raised", "calls_tried_again", "survivors_compared",
             "largest_difference_grey_levels", "growth_mib_second_half")  # fmt: skip
    return [table(("", ""), [(name.replace("_", " "), data[name]) for name in names])]


def _approximations(data: Mapping[str, Any], _: Path) -> list[str]:
    rows = []
    for name, found in data["approximations"].items():
        loss, apart = found["loss"], found["grey_levels"]
        shown = "" if loss is None else f"{loss['value']:.3f} ({loss['low']:.3f} to {loss['high']:.3f})"
        product = "" if found["product"] is None else f"{found['product']:.3f}"
        grey = f"{apart['mean']:.2f} / {apart['largest']}"
        rows.append((name, found["speed_up"], product, shown, grey, f"{found['usable']} of {data['cases']}"))
    head = ("", "speed-up", "product", "loss (95 %)", "grey levels, mean / largest", "usable sources")
    return [table(head, rows)]


SECTIONS: dict[str, Callable[[Mapping[str, Any], Path], list[str]]] = {
    "latency": _times,
    "overhead": _times,
    "throughput": _throughput,
    "scaling": _scaling,
    "simulate": _simulate,
    "soak": _soak,
    "approximations": _approximations,
}

if __name__ == "__main__":
    main()
