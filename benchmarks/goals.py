"""What was to be shown, and what was measured: a table whose cells are empty where nothing was run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.common import table

Data = Mapping[str, Any]
Read = Callable[[str, str], Data | None]


class Goal(NamedTuple):
    """value: from the benchmark's data. cpu, gpu: the bound there, None where there is none; least: from below."""

    text: str
    benchmark: str
    value: Callable[[Data], float]
    cpu: float | None
    gpu: float | None
    least: bool = False


def over_mixed(data: Data) -> float:
    """The p95 of edits that come singly over that of the static batches that mix all kinds."""
    over: Mapping[str, Mapping[str, float]] = data["arrivals"]["singly"]["over"]
    return next(ratios["p95"] for name, ratios in over.items() if not name.endswith("of a kind"))


GOALS = (
    Goal("edit loop / plain loop", "overhead", lambda d: d["edit_over_plain_diffusers"], 1.05, 1.03),
    Goal("eager controller / edit loop", "overhead", lambda d: d["eager_over_edit"], None, 8, least=True),
    Goal("whole edit, faithful, s", "latency", lambda d: d["times"]["faithful"]["least_s"], 5, 0.9),
    Goal(
        "whole edit, the model's own knobs, s",
        "latency",
        lambda d: d["times"]["as the model is set"]["least_s"],
        5,
        None,
    ),
    Goal("whole edit, single pass, s", "latency", lambda d: d["times"]["single pass"]["least_s"], None, 0.6),
    Goal(
        "edits/s in batches",
        "throughput",
        lambda d: d["runs"]["scheduler"]["edits_per_s"],
        None,
        3,
        least=True,
    ),
    Goal("scheduler / one by one", "throughput", lambda d: d["scheduler_over_one_by_one"], 1.5, None, True),
    Goal("scheduler / best static", "throughput", lambda d: d["scheduler_over_best_static"], 1, None, True),
    Goal("p95 / best static's, at 80 %", "throughput", lambda d: d["p95_over_static"], 0.5, None),
    Goal("p95 / mixed static's, at 80 %", "throughput", over_mixed, 0.5, None),
    Goal(
        "8 edits of one source / 8 apart",
        "scaling",
        lambda d: d["eight_of_one_source_over_one_by_one"],
        0.6,
        None,
    ),
    Goal("R² of cost by steps", "scaling", lambda d: d["lines"]["steps"]["edit"]["r2"], None, None),
    Goal("R² of cost by edits", "scaling", lambda d: d["lines"]["edits"]["edit"]["r2"], None, None),
    Goal("growth, MiB in 1,000 edits", "memory", lambda d: d["growth_mib_per_1000_edits"], None, None),
    Goal("host waits between steps", "trace", lambda d: d["host_synchronisations"], None, 0),
)


def goals(read: Read) -> list[str]:
    """A table of all goals. The GPU's bounds are for Stable Diffusion v1.4's shape on an H200."""
    rows = []
    for goal in GOALS:
        cells: list[str] = []
        for device, bound in (("cpu", goal.cpu), ("cuda", goal.gpu)):
            data = read(goal.benchmark, device)
            wanted = "" if bound is None else f"{'≥' if goal.least else '≤'} {bound:g}"
            cells += [wanted, "" if data is None else found(goal, bound, data)]
        rows.append((goal.text, *cells))
    return [table(("", "CPU, goal", "CPU", "GPU, goal", "GPU"), rows)]


def found(goal: Goal, bound: float | None, data: Data) -> str:
    """The value, with a cross where it misses its bound."""
    value = goal.value(data)
    if value is None:
        return ""
    missed = bound is not None and (value < bound if goal.least else value > bound)
    return f"{value:.4g}{' ✗' if missed else ''}"
