"""The four commands. Heavy imports are inside them, so that --help and mistakes in options cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adapedit.approximations import parse as approximations
from adapedit.cli import batch as batch_command
from adapedit.cli import options as o
from adapedit.cli import pictures as p


def _examples(*lines: str) -> str:
    return "\n\n".join(["[dim]Examples:[/dim]", *lines])


app = typer.Typer(
    name="adapedit",
    help="Change a word in a prompt, and only what it means changes in the picture.",
    epilog=_examples(
        'adapedit edit "a red dog standing on the grass" "a red dog sitting on the grass"',
        "adapedit edit --help",
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from adapedit import __version__

        print(f"adapedit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    return


@app.command(
    epilog=_examples(
        'adapedit edit "a red dog standing on the grass" "a red dog sitting on the grass" --out out/sitting',
        'adapedit edit "a photo of a cake" "a photo of a round cake" --model ./stable-diffusion-v1-4 --lambda-tau 0.5',
        'adapedit edit "a red dog" "a blue dog" --method prompt-to-prompt --set equalizer=blue:2',
        'adapedit edit "a red dog" "a blue dog" --steps 20 --approximate solver=dpm++',
        'adapedit edit "a red dog on the grass" "a blue dog on the grass" --image dog.png --inversion direct',
    )
)
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
    image: p.ImageFile = None,
    fit: p.HowToFit = p.Fit.crop,
    inversion: p.Inversion = None,
    inversion_set: p.InversionSet = None,
    model: o.Model = "builtin",
    runner: o.Runner = None,
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.float32,
    out: o.Out = Path("out"),
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
    settings = knobs.make(method, {**given, **knobs.parse(set_)})
    picture = p.fields(image, fit, inversion, inversion_set, method) | approximations(approximate)
    request = _request(source, target, seed, steps, guidance, settings, picture)
    from adapedit.cli import session, show

    result = session.run_edits(
        [request], model=model, runner=runner, device=device, dtype=dtype.value, out=out
    )[0]
    result.save(out)
    files = ["source.png", "target.png", "maps.png", "edit.json"]
    if json:
        show.print_json({**result.to_dict(), "out": str(out), "files": files})
    else:
        show.print_words(result.alignment, result.words)
        show.print_saved(out, files, [result])


@app.command(
    epilog=_examples(
        'adapedit sweep "a red dog standing on the grass" "a red dog sitting on the grass" '
        "--knob lambda-tau --values 0.2,0.5,1.0",
        'adapedit sweep "a red dog" "a blue dog" --knob seed --values 0,1,2,3',
    )
)
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
    image: p.ImageFile = None,
    fit: p.HowToFit = p.Fit.crop,
    inversion: p.Inversion = None,
    inversion_set: p.InversionSet = None,
    model: o.Model = "builtin",
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.float32,
    max_rows: o.MaxRows = 32,
    out: o.Out = Path("out"),
    json: o.Json = False,
) -> None:
    """One knob over several values: writes sweep.png, a contact sheet, and sweep.json."""
    from adapedit.cli import knobs

    picture = p.fields(image, fit, inversion, inversion_set, method) | approximations(approximate)
    fields = {**_fields(source, target, seed, steps, guidance), **picture}
    wanted = [value.strip() for value in values.split(",") if value.strip()]
    requests = knobs.varied(fields, method, knobs.parse(set_), knob, wanted)
    from adapedit.cli import session, sheets

    labels = [f"{knobs.knob_name(knob)} = {value}" for value in wanted]
    results = session.run_edits(
        requests, model=model, device=device, dtype=dtype.value, out=out, max_rows=max_rows, labels=labels
    )
    sheets.save(out, "sweep", results, labels, {"knob": knobs.knob_name(knob), "values": wanted}, json)


@app.command(
    epilog=_examples(
        'adapedit compare "a red dog standing on the grass" "a red dog sitting on the grass"',
        'adapedit compare "a red dog" "a blue dog" --methods plain,adapedit --set adapedit.lambda_tau=0.5',
    )
)
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
    image: p.ImageFile = None,
    fit: p.HowToFit = p.Fit.crop,
    inversion: p.Inversion = None,
    inversion_set: p.InversionSet = None,
    model: o.Model = "builtin",
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.float32,
    max_rows: o.MaxRows = 32,
    out: o.Out = Path("out"),
    json: o.Json = False,
) -> None:
    """Methods side by side on one pair: writes compare.png and compare.json. --set takes METHOD.KNOB=VALUE, too."""
    from adapedit.cli import knobs

    given = knobs.parse(set_)
    chosen = [name.strip() for name in methods.split(",")] if methods else knobs.methods_for()[::-1]
    settings = knobs.make_each(chosen, given)
    picture = p.fields(image, fit, inversion, inversion_set) | approximations(approximate)
    requests = [_request(source, target, seed, steps, guidance, one, picture) for one in settings]
    from adapedit.cli import session, sheets

    results = session.run_edits(
        requests, model=model, device=device, dtype=dtype.value, out=out, max_rows=max_rows, labels=chosen
    )
    sheets.save(out, "compare", results, chosen, {"methods": chosen}, json)


@app.command(
    epilog=_examples(
        'adapedit words "a small red dog" "a red dog sitting on the grass" --no-run',
        'adapedit words "a red dog standing on the grass" "a red dog sitting on the grass" --json',
    )
)
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
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.float32,
    json: o.Json = False,
) -> None:
    """How the words are aligned, how each is related to the edit, and how long it is held. Writes nothing."""
    from adapedit.cli import knobs

    request = _request(source, target, seed, steps, guidance, knobs.make(method, knobs.parse(set_)))
    from adapedit.cli import session, show

    if no_run:
        alignment = session.align_only(request, model)
        if json:
            show.print_json(show.words_dict(alignment))
        else:
            show.print_words(alignment)
        return
    result = session.run_edits([request], model=model, device=device, dtype=dtype.value)[0]
    if json:
        show.print_json({**show.words_dict(result.alignment), **result.to_dict()})
    else:
        show.print_words(result.alignment, result.words)


app.command(epilog=_examples(*batch_command.EXAMPLES))(batch_command.batch)
app.command(epilog=_examples(*p.EXAMPLES))(p.invert)


def _fields(source: str, target: str, seed: int, steps: int, guidance: float | None) -> dict[str, Any]:
    return {
        "source_prompt": source,
        "target_prompt": target,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
    }


def _request(
    source: str,
    target: str,
    seed: int,
    steps: int,
    guidance: float | None,
    settings: Any,
    picture: dict[str, Any] | None = None,
) -> Any:
    from adapedit.request import EditRequest

    return EditRequest.make(
        **_fields(source, target, seed, steps, guidance), method=settings, **(picture or {})
    )
