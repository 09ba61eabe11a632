"""The command `adapedit eval`: how well do the methods edit? Heavy imports are inside, as in the other commands."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from adapedit.cli import drawn as d
from adapedit.cli import options as o
from adapedit.cli import pairs as p
from adapedit.cli.bundle import app

__all__ = ["app"]


class Suite(str, Enum):
    """What is evaluated."""

    scenes = "scenes"
    ablation = "ablation"
    knobs = "knobs"
    variants = "variants"
    pairs = "pairs"
    inversion = "inversion"


LIMIT = 308
"""Scenes by default. Half of them, by six methods at 20 steps, took 19 minutes on one core from a bundle."""


class Half(str, Enum):
    """Of the suite: one for choosing defaults, one for reporting."""

    development = "development"
    test = "test"
    both = "both"


@app.command(
    name="eval",
    epilog="\n\n".join(
        [
            "[dim]Examples:[/dim]",
            "adapedit eval scenes",
            "adapedit eval scenes --methods adapedit,plain --limit 1000 --half test --name two-methods",
            "adapedit eval scenes --sources rendered --inversion direct --half test",
            "adapedit eval inversion --limit 24",
            "adapedit eval knobs --limit 70 --half development --set adapedit.alpha_tau=0.2",
            "adapedit eval ablation --parts dps,mask --limit 1000 --name two-parts",
            "adapedit eval pairs --pairs pairs.jsonl --model ./stable-diffusion-v1-4 --clip-model ./clip "
            "--lpips lpips-alex.safetensors",
        ]
    ),
)
def evaluate(
    suite: Annotated[
        Suite,
        typer.Argument(
            help="scenes: all methods on scenes; pairs: all on pairs of prompts from a file; inversion: what is lost "
            "of drawn scenes without an edit; the others are studies of adapedit alone."
        ),
    ] = Suite.scenes,
    methods: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Of the suites scenes and pairs; by default all.")
    ] = None,
    knobs: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Of the suite knobs, to sweep; by default all.")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Of the suite ablation, to go without: fwt, dps, mask; by default these and what is not the paper's.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Only so many edits, balanced over the kinds (the first, of pairs); by default {LIMIT} scenes, or "
            "all pairs.",
            show_default=False,
        ),
    ] = None,
    half: Annotated[Half, typer.Option(help="Of the suite.")] = Half.both,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,KIND",
            help="Of edits: pose, size, colour, kind, place, insertion, two words; by default all. The report is then "
            "named for them.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="Of the report's files, where a folder holds several; by default the suite's, with the kinds.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps; by default 30, of pairs 50.", show_default=False),
    ] = None,
    guidance: o.Guidance = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.KNOB=VALUE", help="A method's knob; may be repeated."),
    ] = None,
    sources: d.From = d.Sources.generated,
    inversion: d.Inversion = None,
    inversion_set: d.InversionSet = None,
    pairs: p.Pairs = None,
    metrics: p.Metrics = "clip,lpips",
    clip_model: p.ClipModel = None,
    lpips: p.Lpips = None,
    pictures: p.Pictures = True,
    batch: Annotated[int, typer.Option(min=1, help="Cases that are edited together.")] = 4,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.float32,
    out: o.Out = Path("out/eval"),
    json: o.Json = False,
) -> None:
    """Score edits of the scene suite against the truth; a run that was stopped goes on where it was.

    Writes scores.jsonl, SUITE.json and SUITE.html. Of the suite pairs the truth is not known: they are measured by
    LPIPS and CLIP; lines that can't be used are listed in failures.jsonl, and the exit code is then 1.
    """
    from adapedit.evaluation.studies import make_study
    from adapedit_kernels.errors import AdapEditError

    chosen, only = _names(methods), _names(kinds)
    of_pairs = suite is Suite.pairs
    for option, value in (("--kinds", only), ("--name", name)):
        if value and suite in (Suite.inversion, Suite.pairs):
            raise AdapEditError(f"{option} is of edits of the scene suite; leave it out of {suite.value}")
    if name is not None and not re.fullmatch(r"\w[\w-]*", name):
        raise AdapEditError(f"--name is {name!r}; give letters, digits and hyphens, a file is called so")
    if suite is Suite.inversion:
        given = {
            "--methods": chosen,
            "--knobs": knobs,
            "--parts": parts,
            "--set": set_,
            "--sources": sources is d.Sources.rendered,
        }
        for option, there in given.items():
            if there:
                raise AdapEditError(f"{option} is of edits, and inversion makes none: leave it out")
        d.evaluate_inversions(
            inversion,
            inversion_set,
            half=None if half is Half.both else half.value,
            limit=limit or LIMIT,
            steps=steps or 30,
            guidance=guidance,
            batch=batch,
            load=lambda: _load(model, runner, device, dtype.value),
            progress=_progress(),
            out=out,
            json=json,
        )
        return
    if of_pairs and sources is d.Sources.rendered:
        raise AdapEditError("--sources rendered is of the scene suite, pairs have none to draw: leave it out")
    drawn = d.sources_of(sources, inversion, inversion_set)
    p.check_options(of_pairs, pairs, clip_model, lpips, half is not Half.both)
    study = make_study(
        "scenes" if of_pairs else suite.value, chosen, _per_method(set_), _names(knobs), _names(parts)
    )
    if of_pairs:
        p.evaluate_pairs(
            study,
            named=chosen is not None,
            file=pairs,
            metrics=metrics,
            clip_model=clip_model,
            lpips=lpips,
            keep_pictures=pictures,
            limit=limit,
            steps=steps or 50,
            guidance=guidance,
            batch=batch,
            load=lambda: _load(model, runner, device, dtype.value),
            device=device,
            progress=_progress(),
            out=out,
            json=json,
        )
        return
    from adapedit.cli import show
    from adapedit.evaluation.run import run_study
    from adapedit.evaluation.suite import scene_suite
    from adapedit.result import check_output

    check_output(out)
    cases = scene_suite(None if half is Half.both else half.value, limit or LIMIT, only)
    study = replace(study, name=name or "-".join([study.name, *(only or [])]).replace(" ", "-"))
    with _progress() as progress:
        task = progress.add_task("Loading the model", total=None)
        pipe = _load(model, runner, device, dtype.value)
        report = run_study(
            pipe,
            study if chosen else study.for_model(pipe.model),
            cases,
            out,
            num_inference_steps=steps or 30,
            guidance_scale=guidance,
            batch=batch,
            sources=drawn,
            progress=lambda done, total: progress.update(
                task, description="Editing", completed=done, total=total
            ),
        )
    if json:
        show.print_json(report)
    else:
        _print(report, out, study.name)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _load(model: str, runner: str | None, device: str, dtype: str) -> Any:
    import torch

    from adapedit.bundle import load_any
    from adapedit.pipeline import AdapEditPipeline

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"device": device, "torch_dtype": getattr(torch, dtype)}
    return AdapEditPipeline(load_any(model, runner=runner, **options))


def _per_method(assignments: list[str] | None) -> dict[str, dict[str, Any]]:
    from adapedit.cli.knobs import parse
    from adapedit_kernels.errors import AdapEditError

    knobs: dict[str, dict[str, Any]] = {}
    for name, value in parse(assignments).items():
        method, dot, knob = name.rpartition(".")
        if not dot:
            raise AdapEditError(f"--set {name} names no method; write it as --set METHOD.KNOB=VALUE")
        knobs.setdefault(method, {})[knob] = value
    return knobs


def _print(report: dict[str, Any], out: Path, name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    first = next(iter(report["groups"]["all"]["means"].values()))
    metrics = ("success", "kept", "background", "product", *(["truth_ssim"] if "truth_ssim" in first else []))
    table = Table(title=f"{report['usable']} of {report['cases']} edits, means with 95 % intervals")
    for column in ("", *metrics, "rows a step"):
        table.add_column(column, justify="left" if not column else "right")
    for variant, found in report["groups"]["all"]["means"].items():
        cells = [
            f"{found[m]['value']:.3f} [dim]{found[m]['low']:.3f} to {found[m]['high']:.3f}[/dim]"
            for m in metrics
        ]
        table.add_row(variant, *cells, f"{report['rows of a step'][variant]:g}")
    console = Console()
    console.print(table)
    for curve in report["curves"]:
        rho = curve["success"]["rank correlation"]
        console.print(
            f"{curve['knob']}: rank correlation with success {rho['value']:+.2f} "
            f"({rho['low']:+.2f} to {rho['high']:+.2f}), expected {'+' if curve['expected sign'] > 0 else '-'}"
        )
    print(out / f"{name}.html")
