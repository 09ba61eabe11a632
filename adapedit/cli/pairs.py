"""`adapedit eval pairs`: its options, and what it does. Heavy imports are inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

PANEL = "Pairs of prompts"
CLIP, LPIPS = "clip", "lpips"

Pairs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help='One pair a line: {"source_prompt": "a red dog", "target_prompt": "a blue dog"}, with seed, name and '
        'knobs if wanted; or InstructPix2Pix\'s {"input", "edit", "output"}.',
        rich_help_panel=PANEL,
    ),
]
Metrics = Annotated[
    str, typer.Option(metavar="NAME,NAME", help="clip, lpips or both.", rich_help_panel=PANEL)
]
ClipModel = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|NAME",
        help="A CLIP checkpoint: a folder, or a hub name such as openai/clip-vit-large-patch14.",
        rich_help_panel=PANEL,
    ),
]
Lpips = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="LPIPS weights (safetensors), or package or package:vgg for those of the package lpips; by default the "
        "package where it is installed.",
        rich_help_panel=PANEL,
    ),
]
Pictures = Annotated[
    bool,
    typer.Option(
        "--pictures/--no-pictures",
        help="Keep all pictures: to look at, and to be measured by other metrics later without being made again.",
        rich_help_panel=PANEL,
    ),
]


def check_options(
    wanted: bool, pairs: Path | None, clip_model: str | None, lpips: str | None, half: bool
) -> None:
    """Raise `AdapEditError` for options of this suite with another one, and the reverse."""
    from adapedit_kernels.errors import AdapEditError

    given = {"--pairs": pairs, "--clip-model": clip_model, "--lpips": lpips}
    stray = next((name for name, value in given.items() if value is not None), None)
    if not wanted and stray:
        raise AdapEditError(f"{stray} belongs to the suite pairs: adapedit eval pairs {stray} ...")
    if wanted and pairs is None:
        raise AdapEditError("the suite pairs wants a file of them: --pairs FILE.jsonl")
    if wanted and half:
        raise AdapEditError("a file of pairs has no halves; leave --half out")


def evaluate_pairs(
    study: Any,
    *,
    named: bool,
    file: Path | None,
    metrics: str,
    clip_model: str | None,
    lpips: str | None,
    keep_pictures: bool,
    limit: int | None,
    steps: int,
    guidance: float | None,
    batch: int,
    load: Callable[[], Any],
    device: str,
    progress: Any,
    out: Path,
    json: bool,
) -> None:
    """Check everything that costs nothing, load the metrics and then the model, and run. Exit code 1: lines failed.

    named: whether somebody asked for these methods; else those that can't run with the model are left out.
    """
    from adapedit.cli import show
    from adapedit.evaluation.protocol.pairs import read_pairs
    from adapedit.result import check_output

    assert file is not None
    names = metric_names(metrics, clip_model)
    lines = read_pairs(file)[:limit]
    check_output(out)
    with progress:
        task = progress.add_task("Loading the metrics", total=None)
        from adapedit.evaluation.protocol.run import run_pairs
        from adapedit.evaluation.protocol.scores import Protocol

        measures = load_metrics(names, clip_model, lpips, device)
        progress.update(task, description="Loading the model")
        pipe = load()
        if not named:
            study = study.for_model(pipe.model)
        report = run_pairs(
            pipe,
            lines,
            Protocol(variants=study.variants, metrics=measures, steps=steps, guidance_scale=guidance),
            out,
            file=file.name,
            batch=batch,
            keep_pictures=keep_pictures,
            progress=lambda done, total: progress.update(
                task, description="Editing", completed=done, total=total
            ),
        )
    if json:
        show.print_json(report)
    else:
        _print(report, out)
    if report["failures"]:
        raise typer.Exit(1)


def metric_names(metrics: str, clip_model: str | None) -> list[str]:
    """The metrics asked for. Raises `AdapEditError` for unknown ones, and for CLIP without a checkpoint."""
    from adapedit_kernels.errors import AdapEditError

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    unknown = [name for name in names if name not in (CLIP, LPIPS)]
    if unknown or not names:
        raise AdapEditError(f"--metrics {metrics!r} is none that there are; use clip, lpips or clip,lpips")
    if CLIP in names and clip_model is None:
        raise AdapEditError(
            "CLIP's metrics want a checkpoint: --clip-model FOLDER or a hub name, for example "
            "openai/clip-vit-large-patch14; or leave them out with --metrics lpips"
        )
    return names


def load_metrics(names: list[str], clip_model: str | None, lpips: str | None, device: str) -> list[Any]:
    """LPIPS first, as in the paper's table."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found: list[Any] = []
    if LPIPS in names:
        from adapedit.metrics.lpips import load_lpips

        found.append(load_lpips(lpips, device=device))
    if CLIP in names:
        from adapedit.metrics.clip import load_clip

        assert clip_model is not None
        found.append(load_clip(clip_model, device=device))
    return found


def _print(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from adapedit.evaluation.protocol.page import heading
    from adapedit.metrics.pictures import COLUMNS

    columns = [COLUMNS[name] for name in report["columns"]]
    table = Table(title=f"{report['scored']} of {report['lines']} pairs, means with 95 % intervals")
    for title in ("", *(heading(column) for column in columns)):
        table.add_column(title, justify="right" if title else "left", no_wrap=not title)
    for variant, found in report["means"].items():
        cells = []
        for c in columns:
            value, low, high = (f"{found[c.name][part]:.{c.digits}f}" for part in ("value", "low", "high"))
            cells.append(f"{value}\n[dim]{low} to {high}[/dim]")
        table.add_row(variant, *cells)
    console = Console()
    console.print(table)
    if report["failures"]:
        first = report["failures"][0]
        console.print(
            f"{len(report['failures'])} left out, the first is line {first['line']}: {first['error']}; "
            f"see {out / 'failures.jsonl'}",
            markup=False,
        )
    print(out / "pairs.html")
