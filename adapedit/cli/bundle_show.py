"""Bundles, plans and findings as tables or JSON."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from adapedit_engine.bundle import Bundle
from adapedit_engine.manifest import Manifest, TensorSpec
from adapedit_engine.plan_files import PlanRecord, is_stale, read_records


@contextmanager
def status(first: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(first) as shown:
        yield shown.update


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for one phase after another."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total or None
        )


def bundle(found: Bundle, json: bool) -> None:
    """What a bundle holds."""
    manifest, records = found.manifest, read_records(found)
    if json:
        plans_there = [_plan(found, record) for record in records]
        _print({"folder": str(found.folder), **json_module.loads(manifest.to_json()), "plans": plans_there})
        return
    console = Console()
    rows = "any number of rows" if manifest.rows is None else f"{manifest.rows} rows"
    console.print(
        f"[bold]{escape(str(found.folder))}[/bold]: {manifest.model}, {manifest.precision}, {rows}, latents of "
        f"{manifest.height} x {manifest.width}, maps of {manifest.map_size[0]} x {manifest.map_size[1]}, "
        f"{manifest.tokens} tokens, {manifest.scheduler}",
        highlight=False,
    )
    table = Table("graph", "inputs", "outputs", "nodes", "MB", title=f"Graphs, opset {_opsets(manifest)}")
    for name, graph in manifest.graphs.items():
        size = sum(spec.bytes for file, spec in manifest.files.items() if file.startswith(graph.file))
        shown = ["\n".join(map(_tensor, tensors)) for tensors in (graph.inputs, graph.outputs)]
        table.add_row(name, *shown, str(graph.nodes), f"{size / 1e6:.1f}")
    console.print(table)
    parity = Table(
        "stage", "output", "largest", "mean", "error / value", title="ONNX Runtime against PyTorch"
    )
    for stage, outputs in manifest.parity.items():
        for output, p in outputs.items():
            parity.add_row(stage, output, f"{p.largest:.2g}", f"{p.mean:.2g}", f"{p.ratio:.2g}")
    console.print(parity)
    if records:
        console.print(_plan_table(found, records))
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    console.print(
        f"Made with {versions}; {len(manifest.files)} files, all as the manifest says", highlight=False
    )


def plans(found: Bundle, records: Sequence[PlanRecord], json: bool) -> None:
    """Plans that were built, or that are there."""
    if json:
        _print({"folder": str(found.folder), "plans": [_plan(found, record) for record in records]})
    else:
        Console().print(_plan_table(found, records))


def findings(found: Sequence[Any], reasons: Mapping[str, str], json: bool) -> None:
    """What a check found, and which runners it left out and why."""
    if json:
        rows = [{**asdict(finding), "passed": finding.passed} for finding in found]
        _print({"findings": rows, "not_run": dict(reasons)})
        return
    console = Console()
    for runner in dict.fromkeys(f.runner for f in found):
        table = _table("stage", "output", "largest", "mean", "ratio", "limit", "", title=runner)
        for f in found:
            if f.runner == runner:
                mark = "[green]ok[/green]" if f.passed else "[red]differs[/red]"
                numbers = [f"{value:.2g}" for value in (f.largest, f.mean, f.ratio)]
                table.add_row(f.stage, f.output, *numbers, f"{f.measure} {f.limit:.0e}", mark)
        console.print(table)
    for name, reason in reasons.items():
        console.print(f"{name}: not run: {reason}", style="dim", highlight=False, markup=False)


def _plan(found: Bundle, record: PlanRecord) -> dict[str, Any]:
    return {**asdict(record), "name": record.file_name, "stale": is_stale(found, record)}


def _plan_table(found: Bundle, records: Sequence[PlanRecord]) -> Table:
    libraries = sorted({f"{record.key.family} {record.key.version}" for record in records})
    title = f"Plans of {', '.join(libraries)}"
    table = _table("graph", "for", "workload", "layers", "MB", "act. MB", "built s", "", title=title)
    for record in records:
        key = record.key
        table.add_row(
            key.graph,
            key.compute_capability,
            key.workload + (", refit" if key.refit else ""),
            str(record.layers),
            f"{record.file.bytes / 1e6:.1f}",
            f"{record.activation_bytes / 1e6:.1f}",
            f"{record.build_seconds:.1f}",
            "[red]stale[/red]" if is_stale(found, record) else "",
        )
    return table


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _opsets(manifest: Manifest) -> str:
    return ", ".join(str(opset) for opset in sorted({graph.opset for graph in manifest.graphs.values()}))


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"


def _print(values: dict[str, Any]) -> None:
    print(json_module.dumps(values, indent=2))
