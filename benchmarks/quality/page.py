"""A report as files: one JSON and one HTML page that needs nothing else; and the tables of many reports in Markdown."""

from __future__ import annotations

import base64
import io
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.common import environment
from benchmarks.quality.report import COLUMNS
from benchmarks.quality.store import write_whole

TEMPLATES = Environment(
    loader=PackageLoader("benchmarks.quality", "templates"), autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
CURVES = ("success", "moved", "background", "product")


def write_report(
    folder: Path, report: Mapping[str, Any], sheets: Mapping[str, Image.Image], device: str
) -> dict[str, Any]:
    """Write NAME.json and NAME.html, NAME the report's `study`; `sheets` are shown under their titles.

    Returns the report with the command, the commit and the machine.
    """
    command = shlex.join(["python", "-m", "benchmarks.quality", *sys.argv[1:]])
    report = {**environment(Namespace(device=device)), "command": command, **report}
    plots = [svg(plot) for plot in plots_of(report).values()]
    pictures = {title: _jpeg(picture) for title, picture in sheets.items()}
    template = TEMPLATES.get_template("page.html")
    page = template.render(
        report=report, plots=plots, sheets=pictures, columns=COLUMNS, curves=CURVES, best=_best
    )
    write_whole(folder / f"{report['study']}.json", json.dumps(report, indent=1) + "\n")
    write_whole(folder / f"{report['study']}.html", page)
    return report


def write_tables(results: Path) -> Path:
    """Write README.md, with plots beside it, of all reports in `results`, and return its path."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    plots: dict[str, list[str]] = {}
    for report in reports:
        found = plots_of(report) if report["curves"] else {}
        plots[report["study"]] = list(found)
        for name, plot in found.items():
            write_whole(results / name, svg(plot))
    template = TEMPLATES.get_template("tables.md")
    text = template.render(reports=reports, plots=plots, columns=COLUMNS, curves=CURVES)
    write_whole(results / "README.md", text)
    return results / "README.md"


def plots_of(report: Mapping[str, Any]) -> dict[str, Figure]:
    """The curves of the knobs, or else the variants by success and background, by the names of their files."""
    study, means = report["study"], report["groups"]["all"]["means"]
    if report["curves"]:
        return {f"{study}-{curve['knob']}.svg": _curve(curve) for curve in report["curves"]}
    if "success" not in report["columns"]:
        return {}
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for variant, found in means.items():
        x, y = found["success"], found["background"]
        axes.errorbar(
            x["value"], y["value"], xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
            yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]], fmt="o", label=variant,
        )  # fmt: skip
    axes.set(xlabel="success", ylabel="background (SSIM)", xlim=(0, 1))
    figure.legend(loc="outside right upper")
    return {f"{study}.svg": figure}


def _curve(curve: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in CURVES:
        means = curve[name]["means"]
        below, above = zip(*((m["value"] - m["low"], m["high"] - m["value"]) for m in means), strict=True)
        axes.errorbar(curve["values"], [m["value"] for m in means], yerr=[below, above], fmt="o-", label=name)
    axes.set(xlabel=curve["knob"], ylim=(0, 1))
    figure.legend(loc="outside right upper")
    return figure


def svg(figure: Figure) -> str:
    """A plot as text: the same for the same numbers, so that it can be kept in a repository."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "adapedit", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    found = text.getvalue()
    return found[found.index("<svg") :]


def _best(means: Mapping[str, Any], name: str) -> float | None:
    """The best mean of a column, where more or less is better."""
    values = [found[name]["value"] for found in means.values()]
    return {1: max(values), 0: None, -1: min(values)}[COLUMNS[name].better]


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()


def _number(value: float, name: str, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.{COLUMNS[name].digits}f}"


def _interval(found: Mapping[str, float], name: str, signed: bool = False) -> str:
    """A value with the ends of its interval."""
    value, low, high = (_number(found[part], name, signed) for part in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


TEMPLATES.filters |= {"interval": _interval, "number": _number}
