"""How well do the methods edit? Studies on the scene suite, inversions, and the paper's protocol over pairs of prompts.

A run that was stopped goes on where it was. Each writes NAME.json and NAME.html into --out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from adapedit import AdapEditError
from adapedit.cli.options import Runtime, unfolded
from adapedit.cli.show import load_pipeline
from benchmarks.common import RESULTS
from benchmarks.quality.inversions import run_inversions
from benchmarks.quality.lpips import load_lpips
from benchmarks.quality.metrics import PictureMetric, load_clip
from benchmarks.quality.page import write_tables
from benchmarks.quality.pairs import read_pairs
from benchmarks.quality.protocol import Protocol, run_pairs
from benchmarks.quality.run import Setup, run_study
from benchmarks.quality.studies import TITLES, make_study
from benchmarks.quality.suite import Case, scene_suite

LIMIT = 308  # scenes by default

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Only = Annotated[str | None, typer.Option(metavar="LABEL,LABEL", help="Of what is compared; by default all.")]
Knobs = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="METHOD.KNOB=VALUE", help="A method's knob, as JSON or a word; may be repeated."
    ),
]
Half = Annotated[str | None, typer.Option(help="Of the suite: development (to choose) or test (to report).")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many edits, balanced over the kinds.")]
Out = Annotated[Path, typer.Option(help="Folder of scores and reports.")]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How edits are made: options of every study."""

    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; by default the model's own.")] = None
    batch: Annotated[int, typer.Option(min=1, help="Cases that are edited together.")] = 4

    def setup(self, **more: Any) -> Setup:
        return Setup(num_inference_steps=self.steps, guidance_scale=self.guidance, batch=self.batch, **more)


@dataclass(frozen=True, kw_only=True)
class LongerSampling(Sampling):
    """As the paper's protocol has it."""

    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50


def _study(name: str) -> Callable[..., None]:
    @unfolded
    def run(
        *,
        only: Only = None,
        set_: Knobs = None,
        half: Half = None,
        limit: Limit = LIMIT,
        kinds: Annotated[
            str | None, typer.Option(metavar="KIND,KIND", help="Of edits; by default all.")
        ] = None,
        report: Annotated[
            str | None, typer.Option("--name", help="Of the report; by default the study's.")
        ] = None,
        inversion: Annotated[
            str | None, typer.Option(help="Draw the sources, and hand them over through this inversion.")
        ] = None,
        sampling: Sampling,
        runtime: Runtime,
        out: Out = Path("out/quality"),
    ) -> None:
        study = make_study(name, _names(only), _knobs(set_))
        cases = _cases(half, limit, _names(kinds))
        setup, pipe = sampling.setup(inversion=inversion), load_pipeline(runtime)
        study = replace(study, name=report or "-".join([name, *(_names(kinds) or [])]).replace(" ", "-"))
        _print(run_study(pipe, study, cases, out, setup=setup, progress=_progress), out)

    return run


for title in TITLES:
    app.command(title, help=TITLES[title])(_study(title))


@app.command()
@unfolded
def inversions(
    *,
    only: Only = None,
    half: Half = None,
    limit: Limit = LIMIT,
    sampling: Sampling,
    runtime: Runtime,
    out: Out = Path("out/quality"),
) -> None:
    """What inversions lose of drawn scenes without an edit."""
    cases, setup = _cases(half, limit, None), sampling.setup()
    report = run_inversions(
        load_pipeline(runtime), cases, out, setup=setup, only=_names(only), progress=_progress
    )
    _print(report, out)


@app.command()
@unfolded
def pairs(
    *,
    file: Annotated[Path, typer.Argument(help="One JSON object a line.")],
    clip_model: Annotated[str | None, typer.Option(help="Folder or hub name of a CLIP checkpoint.")] = None,
    lpips: Annotated[str | None, typer.Option(help="Safetensors file of LPIPS weights.")] = None,
    only: Only = None,
    set_: Knobs = None,
    limit: Limit = None,
    sampling: LongerSampling,
    runtime: Runtime,
    out: Out = Path("out/pairs"),
) -> None:
    """LPIPS and CLIP over pairs of prompts. Lines that can't be used are in the report; the exit code is then 1."""
    lines = read_pairs(file)[:limit]
    variants = make_study("scenes", _names(only), _knobs(set_)).variants
    device = "cpu" if runtime.device == "auto" else runtime.device
    metrics: list[PictureMetric] = [] if lpips is None else [load_lpips(lpips, device=device)]
    metrics += [] if clip_model is None else [load_clip(clip_model, device=device)]
    if not metrics:
        raise AdapEditError("nothing is to be measured; give --clip-model, --lpips or both")
    protocol = Protocol(variants=variants, metrics=metrics, setup=sampling.setup())
    report = run_pairs(load_pipeline(runtime), lines, protocol, out, file=file.name, progress=_progress)
    _print(report, out)
    if report["failures"]:
        raise typer.Exit(1)


@app.command()
def tables(results: Annotated[Path, typer.Argument()] = RESULTS / "quality") -> None:
    """README.md of the reports in a folder."""
    print(write_tables(results))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _knobs(assignments: list[str] | None) -> dict[str, dict[str, Any]]:
    knobs: dict[str, dict[str, Any]] = {}
    for assignment in assignments or ():
        name, _, value = assignment.partition("=")
        method, dot, knob = name.rpartition(".")
        if not dot or not value:
            raise AdapEditError(f"--set {assignment} is no knob of a method; write --set METHOD.KNOB=VALUE")
        try:
            knobs.setdefault(method, {})[knob] = json.loads(value)
        except ValueError:
            knobs.setdefault(method, {})[knob] = value
    return knobs


def _cases(half: str | None, limit: int | None, kinds: list[str] | None) -> list[Case]:
    if half not in (None, "development", "test"):
        raise AdapEditError(f"--half is {half!r}, wanted development or test")
    return scene_suite(half, limit, kinds)


def _progress(done: int, total: int) -> None:
    print(f"{done} of {total} edits", file=sys.stderr, flush=True)


def _print(report: dict[str, Any], out: Path) -> None:
    for variant, found in report["groups"]["all"]["means"].items():
        cells = [f"{name} {found[name]['value']:.3f}" for name in report["columns"]]
        print(f"{variant:32s}", "  ".join(cells))
    print(f"{report['usable']} of {report['cases']} edits; {out / report['study']}.html")


def main() -> None:
    try:
        app()
    except AdapEditError as error:
        raise SystemExit(f"python -m benchmarks.quality: {error}") from error


if __name__ == "__main__":
    main()
