"""`adapedit batch`: many unrelated edits from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapedit.approximations import parse as approximations
from adapedit.cli import options as o

EXAMPLES = (
    "adapedit batch requests.jsonl --out out/batch",
    "adapedit batch requests.jsonl --out out/batch --shard 2/4",
)


def batch(
    requests: Annotated[
        Path,
        typer.Argument(
            help='A file with one request a line: {"source_prompt": "a red dog", "target_prompt": "a blue dog", '
            '"seed": 3, "method": "adapedit", "id": "blue"}.',
            show_default=False,
        ),
    ],
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: every n-th line from the i-th, for several machines.", metavar="I/N"),
    ] = None,
    approximate: o.Approximate = None,
    model: o.Model = "builtin",
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.float32,
    runner: o.Runner = None,
    max_rows: o.MaxRows = 32,
    out: o.Out = Path("out"),
    json: o.Json = False,
) -> None:
    """Many unrelated edits, a folder each. Run it again after a crash: what is finished is not done again.

    --approximate holds for every line that does not say otherwise. Failures are listed in failures.jsonl and the rest
    goes on; the exit code is then 1.
    """
    from adapedit.result import check_output
    from adapedit.serving.batch import read_lines, run_batch, shard_of

    lines = shard_of(read_lines(requests, approximations(approximate)), shard)
    check_output(out)
    import sys

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from adapedit.bundle import load_any
    from adapedit.pipeline import AdapEditPipeline

    console = Console(stderr=True)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = "failures" if shard is None else f"failures-{shard.replace('/', '-of-')}"
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Loading the model", total=len(lines))
        loaded = load_any(model, runner=runner, device=device, torch_dtype=getattr(torch, dtype.value))
        pipe = AdapEditPipeline(loaded)
        progress.update(task, description="Editing")
        with pipe.serve(max_rows=max_rows) as server:
            report = run_batch(
                server,
                lines,
                out,
                name=name,
                callback=lambda r: progress.update(task, completed=r.done + r.skipped + len(r.failures)),
            )
    if json:
        import json as encoder

        print(encoder.dumps({"done": report.done, "skipped": report.skipped, "failures": report.failures}))
    else:
        failed = f", {len(report.failures)} failed: see {out / name}.jsonl" if report.failures else ""
        print(f"{report.done} edits done, {report.skipped} were there already{failed}", file=sys.stderr)
    if report.failures:
        raise typer.Exit(1)
