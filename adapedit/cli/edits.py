"""The commands that edit pictures. Heavy imports are inside them, so that --help and mistakes cost nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from adapedit.cli import options as o


def edit(
    source: o.Source,
    target: o.Target,
    seed: o.Seed = 0,
    steps: o.Steps = 50,
    guidance: o.Guidance = None,
    method: o.Method = "adapedit",
    lambda_tau: o.LambdaTau = None,
    lambda_s: o.LambdaS = None,
    lambda_spatial: o.LambdaSpatial = None,
    alpha_tau: o.AlphaTau = None,
    variant: o.Variant = None,
    two_pass: o.TwoPass = None,
    no_fwt: o.NoFwt = False,
    no_dps: o.NoDps = False,
    no_mask: o.NoMask = False,
    cross_replace_steps: o.CrossReplaceSteps = None,
    self_replace_steps: o.SelfReplaceSteps = None,
    local_blend: o.LocalBlend = None,
    set_: o.Set = None,
    approximate: o.Approximate = None,
    image: o.Image = None,
    fit: o.HowToFit = o.Fit.crop,
    inversion: o.Inversion = None,
    inversion_set: o.InversionSet = None,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    out: o.Out = Path("out/edit"),
    json: o.Json = False,
) -> None:
    """Edit a picture: writes source.png, target.png, maps.png and edit.json."""
    from adapedit.cli import knobs

    named: dict[str, Any] = {
        "lambda_tau": lambda_tau,
        "lambda_s": lambda_s,
        "lambda_spatial": lambda_spatial,
        "alpha_tau": alpha_tau,
        "variant": variant,
        "two_pass": two_pass,
        "fwt": False if no_fwt else None,
        "dps": False if no_dps else None,
        "mask": False if no_mask else None,
        "cross_replace_steps": cross_replace_steps,
        "self_replace_steps": self_replace_steps,
        "local_blend": local_blend or None,
    }
    given = {name: value for name, value in named.items() if value is not None}
    made = knobs.make(method, {**given, **knobs.parse(set_)})
    more = knobs.picture(image, fit, inversion, inversion_set, method) | knobs.approximations(approximate)
    request = _request(_fields(source, target, seed, steps, guidance), made, more)
    from adapedit.cli import show

    loaded = {"model": model, "runner": runner, "device": device, "dtype": dtype}
    result = show.run_edits([request], loaded, out=out)[0]
    result.save(out)
    files = ["source.png", "target.png", "maps.png", "edit.json"]
    if json:
        show.print_json({**result.to_dict(), "out": str(out), "files": files})
    else:
        show.print_words(result.alignment, result.words)
        show.print_saved(out, files, [result])


def sweep(
    source: o.Source,
    target: o.Target,
    knob: Annotated[
        str, typer.Option(help="A knob of the method, or seed, steps or guidance.", show_default=False)
    ],
    values: Annotated[
        str, typer.Option(help="With commas between them.", metavar="V,V,...", show_default=False)
    ],
    seed: o.Seed = 0,
    steps: o.Steps = 50,
    guidance: o.Guidance = None,
    method: o.Method = "adapedit",
    set_: o.Set = None,
    approximate: o.Approximate = None,
    image: o.Image = None,
    fit: o.HowToFit = o.Fit.crop,
    inversion: o.Inversion = None,
    inversion_set: o.InversionSet = None,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    max_rows: o.MaxRows = 32,
    out: o.Out = Path("out/sweep"),
    json: o.Json = False,
) -> None:
    """One knob over several values: writes sweep.png, a contact sheet, and sweep.json."""
    from adapedit.cli import knobs

    more = knobs.picture(image, fit, inversion, inversion_set, method) | knobs.approximations(approximate)
    fields = {**_fields(source, target, seed, steps, guidance), **more}
    wanted = [value.strip() for value in values.split(",") if value.strip()]
    requests = knobs.varied(fields, method, knobs.parse(set_), knob, wanted)
    from adapedit.cli import show

    name = knobs.knob_name(knob)
    labels = [f"{name} = {value}" for value in wanted]
    loaded = {"model": model, "runner": runner, "device": device, "dtype": dtype}
    results = show.run_edits(requests, loaded, out=out, max_rows=max_rows, labels=labels)
    show.save_sheet(out, "sweep", results, labels, {"knob": name, "values": wanted}, json)


def compare(
    source: o.Source,
    target: o.Target,
    methods: Annotated[
        str | None,
        typer.Option(help="With commas between them; by default all it can run.", rich_help_panel=o.METHOD),
    ] = None,
    set_: o.Set = None,
    approximate: o.Approximate = None,
    seed: o.Seed = 0,
    steps: o.Steps = 50,
    guidance: o.Guidance = None,
    image: o.Image = None,
    fit: o.HowToFit = o.Fit.crop,
    inversion: o.Inversion = None,
    inversion_set: o.InversionSet = None,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    max_rows: o.MaxRows = 32,
    out: o.Out = Path("out/compare"),
    json: o.Json = False,
) -> None:
    """Methods side by side on one pair: writes compare.png and compare.json. --set takes METHOD.KNOB=VALUE, too."""
    from adapedit.cli import knobs
    from adapedit.methods import METHODS

    # InstructPix2Pix has a checkpoint of its own, which runs nothing else.
    every = sorted(
        set(METHODS) - {"instruct-pix2pix"}, key=lambda name: (name != "plain", name == "adapedit", name)
    )
    chosen = [name.strip() for name in methods.split(",")] if methods else every
    made = knobs.make_each(chosen, knobs.parse(set_))
    more = knobs.picture(image, fit, inversion, inversion_set) | knobs.approximations(approximate)
    requests = [_request(_fields(source, target, seed, steps, guidance), one, more) for one in made]
    from adapedit.cli import show

    loaded = {"model": model, "runner": runner, "device": device, "dtype": dtype}
    results = show.run_edits(requests, loaded, out=out, max_rows=max_rows, labels=chosen)
    show.save_sheet(out, "compare", results, chosen, {"methods": chosen}, json)


def words(
    source: o.Source,
    target: o.Target,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="The alignment alone; the model is not run.")
    ] = False,
    seed: o.Seed = 0,
    steps: o.Steps = 50,
    guidance: o.Guidance = None,
    method: o.Method = "adapedit",
    set_: o.Set = None,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    json: o.Json = False,
) -> None:
    """How the words are aligned, how each is related to the edit, and how long it is held. Writes nothing."""
    from adapedit.cli import knobs

    made = knobs.make(method, knobs.parse(set_))
    request = _request(_fields(source, target, seed, steps, guidance), made)
    from adapedit.cli import show

    if no_run:
        alignment = show.align_only(request, model)
        if json:
            show.print_json(show.words_dict(alignment))
        else:
            show.print_words(alignment)
        return
    loaded = {"model": model, "runner": runner, "device": device, "dtype": dtype}
    result = show.run_edits([request], loaded)[0]
    if json:
        show.print_json({**show.words_dict(result.alignment), **result.to_dict()})
    else:
        show.print_words(result.alignment, result.words)


def batch(
    requests: Annotated[
        Path,
        typer.Argument(
            help='A file with one request a line: {"source_prompt": "a red dog", "target_prompt": "a blue dog", '
            '"seed": 3, "method": "adapedit", "id": "blue"}. Pictures may be named relative to it.',
            show_default=False,
        ),
    ],
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: every n-th line from the i-th, for several machines.", metavar="I/N"),
    ] = None,
    approximate: o.Approximate = None,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    max_rows: o.MaxRows = 32,
    out: o.Out = Path("out/batch"),
    json: o.Json = False,
) -> None:
    """Many unrelated edits, a folder each. Run it again after a crash: what is finished is not done again.

    --approximate holds for every line that does not say otherwise. Failures are listed in failures.jsonl and the rest
    goes on; the exit code is then 1.
    """
    from adapedit.cli import knobs
    from adapedit.request_file import read_lines, run_batch, shard_of
    from adapedit.result import check_output

    lines = shard_of(read_lines(requests, knobs.approximations(approximate)), shard)
    check_output(out)
    from adapedit.cli import show

    name = "failures" if shard is None else f"failures-{shard.replace('/', '-of-')}"
    with show.bar() as say:
        say("Loading the model", 0, 0)
        pipe = show.load_pipeline({"model": model, "runner": runner, "device": device, "dtype": dtype})
        with pipe.serve(max_rows=max_rows) as server:
            report = run_batch(
                server,
                lines,
                out,
                name=name,
                callback=lambda r: say("Editing", r.done + r.skipped + len(r.failures), len(lines)),
            )
    if json:
        show.print_json({"done": report.done, "skipped": report.skipped, "failures": report.failures})
    else:
        failed = f", {len(report.failures)} failed: see {out / name}.jsonl" if report.failures else ""
        print(f"{report.done} edits done, {report.skipped} were there already{failed}", file=sys.stderr)
    if report.failures:
        raise typer.Exit(1)


def invert(
    image: Annotated[Path, typer.Option(metavar="FILE", help="A picture.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What it shows.", show_default=False)],
    inversions: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="By default all that the model can run.", show_default=False),
    ] = None,
    fit: o.HowToFit = o.Fit.crop,
    seed: o.Seed = 0,
    steps: o.Steps = 50,
    guidance: o.Guidance = None,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    out: o.Out = Path("out/invert"),
    json: o.Json = False,
) -> None:
    """How well a picture comes back from each inversion without an edit: writes invert.png and invert.json."""
    from adapedit.cli import knobs
    from adapedit.images import ImageInput
    from adapedit.result import check_output

    chosen = knobs.inversions(inversions, _is_bundle(model))
    ImageInput(file=str(image)).open((64, 64))
    check_output(out)
    from adapedit.cli import show

    loaded = {"model": model, "runner": runner, "device": device, "dtype": dtype}
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "seed": seed, "fit": fit.value}
    show.run_inversions(image, prompt, chosen, loaded, options, out=out, json=json)


COMMANDS: dict[Callable[..., None], tuple[str, ...]] = {
    edit: (
        'adapedit edit "a red dog standing on the grass" "a red dog sitting on the grass" --out out/sitting',
        'adapedit edit "a photo of a cake" "a photo of a round cake" --model ./stable-diffusion-v1-4 --lambda-tau 0.5',
        'adapedit edit "a red dog" "a blue dog" --method prompt-to-prompt --set equalizer=blue:2',
        'adapedit edit "a red dog" "a blue dog" --steps 20 --approximate solver=dpm++',
        'adapedit edit "a red dog on the grass" "a blue dog on the grass" --image dog.png --inversion direct',
    ),
    sweep: (
        'adapedit sweep "a red dog standing on the grass" "a red dog sitting on the grass" '
        "--knob lambda-tau --values 0.2,0.5,1.0",
        'adapedit sweep "a red dog" "a blue dog" --knob seed --values 0,1,2,3',
    ),
    compare: (
        'adapedit compare "a red dog standing on the grass" "a red dog sitting on the grass"',
        'adapedit compare "a red dog" "a blue dog" --methods plain,adapedit --set adapedit.lambda_tau=0.5',
    ),
    words: (
        'adapedit words "a small red dog" "a red dog sitting on the grass" --no-run',
        'adapedit words "a red dog standing on the grass" "a red dog sitting on the grass" --json',
    ),
    batch: (
        "adapedit batch requests.jsonl --out out/batch",
        "adapedit batch requests.jsonl --out out/batch --shard 2/4",
    ),
    invert: (
        'adapedit invert --image dog.png --prompt "a red dog standing on the grass"',
        'adapedit invert --image dog.png --prompt "a red dog" --inversions ddim,direct --steps 30 --json',
    ),
}
"""Commands with the examples at the end of their help."""


def _is_bundle(model: str) -> bool:
    try:
        return (Path(model).expanduser() / "manifest.json").is_file()
    except (OSError, RuntimeError):
        return False


def _fields(source: str, target: str, seed: int, steps: int, guidance: float | None) -> dict[str, Any]:
    return {
        "source_prompt": source,
        "target_prompt": target,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
    }


def _request(fields: dict[str, Any], method: Any, more: dict[str, Any] | None = None) -> Any:
    from adapedit.request import EditRequest

    return EditRequest.make(**fields, method=method, **(more or {}))
