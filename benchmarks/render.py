"""Tables and plots for the README from what the benchmarks wrote: `python -m benchmarks.render`.

Writes `results/README.md` and an SVG beside it for each plot. Rows of quick runs are left out unless `--quick`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, file_name, table
from benchmarks.goals import goals
from benchmarks.render_serving import SERVING


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="render quick runs")
    options = parser.parse_args()
    parts = ["# Measured\n", *goals(lambda name, device: read(options, name, device)), ""]
    for name, section in SECTIONS.items():
        for device, title in (("cpu", name.capitalize()), ("cuda", f"{name.capitalize()}, on a GPU")):
            data = read(options, name, device)
            if data is not None:
                # Plots of both devices have the same names.
                folder = options.results / ("" if device == "cpu" else "gpu")
                folder.mkdir(parents=True, exist_ok=True)
                text = "\n".join(section(data, folder))
                text = text if device == "cpu" else text.replace("](", "](gpu/")
                parts += [f"## {title}\n", text, f"\n{origin(data)}\n"]
    (options.results / "README.md").write_text("\n".join(parts), encoding="utf-8")
    print(options.results / "README.md")


def read(options: argparse.Namespace, name: str, device: str) -> dict[str, Any] | None:
    """What a benchmark wrote; None where it has not been run there."""
    path = options.results / file_name(name, device, options.quick)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


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
        "other_way_over_edit": "in the other way of running steps it takes {} of the edit's time",
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
    **SERVING,
    "approximations": _approximations,
}

if __name__ == "__main__":
    main()
