"""The commands that edit pictures. Heavy imports are inside them, so that --help and mistakes cost nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from adapedit.cli import options as o
from adapedit_kernels.errors import AdapEditError


def edit(
    *,
    prompts: o.Prompts,
    method: o.Method = "adapedit",
    own: o.Knobs,
    set_: o.Set = None,
    seeds: Annotated[
        o.Text,
        o.option(
            "In place of --seed: an edit each, in folders of their own and on one sheet.", metavar="N,N"
        ),
    ] = None,
    approximate: o.Approximate = None,
    picture: o.Picture,
    runtime: o.Runtime,
    server: Annotated[
        o.Text,
        o.option(
            "Edit there, where `adapedit serve` runs; the key is ADAPEDIT_KEY.", panel=o.MODEL, metavar="URL"
        ),
    ] = None,
    out: o.Out = Path("out/edit"),
    json: o.Json = False,
) -> None:
    """Edit a picture: writes source.png, target.png, maps.png and edit.json."""
    from adapedit.cli import knobs

    given = {**own.given(), **knobs.parse(set_)}
    more = knobs.picture(picture, method) | knobs.approximations(approximate)
    if seeds is not None:
        if server is not None:
            raise AdapEditError("--seeds are edits of this process, --server has one at a time; give --seed")
        wanted = [value.strip() for value in seeds.split(",") if value.strip()]
        requests = knobs.varied({**prompts.fields(), **more}, method, given, "seed", wanted, option="--seeds")
        _edit_seeds(requests, runtime, out, json)
        return
    request = _request(prompts.fields(), knobs.make(method, given), more)
    from adapedit.cli import show

    if server is None:
        result = show.run_edits([request], runtime, out=out)[0]
    else:
        result = show.run_on_server(request, server, runtime, out=out)
    result.save(out)
    files = ["source.png", "target.png", "maps.png", "edit.json"]
    if json:
        show.print_json({**result.to_dict(), "out": str(out), "files": files})
    else:
        show.print_words(result.alignment, result.words)
        show.print_saved(out, files, [result])


def _edit_seeds(requests: list[Any], runtime: o.Runtime, out: Path, json: bool) -> None:
    from adapedit.cli import show

    labels = [f"seed {request.seed}" for request in requests]
    results = show.run_edits(requests, runtime, out=out, labels=labels)
    for result in results:
        result.save(out / f"seed-{result.request.seed}")
    show.save_sheet(out, "seeds", results, labels, {"seeds": [one.seed for one in requests]}, json)


def sweep(
    *,
    knob: Annotated[str, o.option("A knob of the method, or seed, steps or guidance.")],
    values: Annotated[str, o.option("With commas between them.", metavar="V,V,...")],
    prompts: o.Prompts,
    method: o.Method = "adapedit",
    set_: o.Set = None,
    approximate: o.Approximate = None,
    picture: o.Picture,
    runtime: o.Runtime,
    max_rows: o.MaxRows = 32,
    out: o.Out = Path("out/sweep"),
    json: o.Json = False,
) -> None:
    """One knob over several values: writes sweep.png, a contact sheet, and sweep.json."""
    from adapedit.cli import knobs

    more = knobs.picture(picture, method) | knobs.approximations(approximate)
    fields = {**prompts.fields(), **more}
    wanted = [value.strip() for value in values.split(",") if value.strip()]
    requests = knobs.varied(fields, method, knobs.parse(set_), knob, wanted)
    from adapedit.cli import show

    name = knobs.knob_name(knob)
    labels = [f"{name} = {value}" for value in wanted]
    results = show.run_edits(requests, runtime, out=out, max_rows=max_rows, labels=labels)
    show.save_sheet(out, "sweep", results, labels, {"knob": name, "values": wanted}, json)


def compare(
    *,
    methods: Annotated[
        o.Text, o.option("With commas between them; by default all it can run.", panel=o.METHOD)
    ] = None,
    set_: o.Set = None,
    approximate: o.Approximate = None,
    prompts: o.Prompts,
    picture: o.Picture,
    runtime: o.Runtime,
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
    more = knobs.picture(picture) | knobs.approximations(approximate)
    requests = [_request(prompts.fields(), one, more) for one in made]
    from adapedit.cli import show

    results = show.run_edits(requests, runtime, out=out, max_rows=max_rows, labels=chosen)
    show.save_sheet(out, "compare", results, chosen, {"methods": chosen}, json)


def words(
    *,
    no_run: Annotated[bool, o.option("The alignment alone; the model is not run.", "--no-run")] = False,
    prompts: o.Prompts,
    method: o.Method = "adapedit",
    set_: o.Set = None,
    runtime: o.Runtime,
    json: o.Json = False,
) -> None:
    """How the words are aligned, how each is related to the edit, and how long it is held. Writes nothing."""
    from adapedit.cli import knobs

    made = knobs.make(method, knobs.parse(set_))
    request = _request(prompts.fields(), made)
    from adapedit.cli import show

    if no_run:
        alignment, reports, more = show.align_only(request, runtime), None, {}
    else:
        result = show.run_edits([request], runtime)[0]
        alignment, reports, more = result.alignment, result.words, result.to_dict()
    if json:
        show.print_json({**show.words_dict(alignment), **more})
    else:
        show.print_words(alignment, reports)


def batch(
    *,
    requests: Annotated[
        Path,
        typer.Argument(
            help='A file with one request a line: {"source_prompt": "a red dog", "target_prompt": "a blue dog", '
            '"seed": 3, "method": "adapedit", "id": "blue"}. Pictures may be named relative to it.'
        ),
    ],
    shard: Annotated[
        o.Text, o.option("i/n: every n-th line from the i-th, for several machines.", metavar="I/N")
    ] = None,
    approximate: o.Approximate = None,
    runtime: o.Runtime,
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
        pipe = show.load_pipeline(runtime)
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
    *,
    image: Annotated[Path, o.option("A picture.", metavar="FILE")],
    prompt: Annotated[str, o.option("What it shows.")],
    inversions: Annotated[
        o.Text, o.option("By default all that the model can run.", metavar="NAME,NAME")
    ] = None,
    fit: o.HowToFit = "crop",
    sampling: o.Sampling,
    runtime: o.Runtime,
    out: o.Out = Path("out/invert"),
    json: o.Json = False,
) -> None:
    """How well a picture comes back from each inversion without an edit: writes invert.png and invert.json."""
    from adapedit.cli import knobs
    from adapedit.images import ImageInput
    from adapedit.result import check_output

    chosen = knobs.inversions(inversions, _runs_graphs(runtime))
    ImageInput(file=str(image)).open((64, 64))
    check_output(out)
    from adapedit.cli import show

    options = {**sampling.fields(), "fit": fit}
    show.run_inversions(image, prompt, chosen, runtime, options, out=out, json=json)


COMMANDS: dict[Callable[..., None], tuple[str, ...]] = {
    edit: (
        'adapedit edit "a red dog standing on the grass" "a red dog sitting on the grass" --out out/sitting',
        'adapedit edit "a photo of a cake" "a photo of a round cake" --model ./stable-diffusion-v1-4 --lambda-tau 0.5',
        'adapedit edit "a red dog" "a blue dog" --method prompt-to-prompt --set equalizer=blue:2',
        'adapedit edit "a red dog" "a blue dog" --steps 20 --approximate solver=dpm++',
        'adapedit edit "a red dog" "a blue dog" --seeds 0,1,2 --negative "a cat"',
        'adapedit edit "a red dog on the grass" "a blue dog on the grass" --image dog.png --inversion direct',
        'adapedit edit "a red dog" "a blue dog" --server http://127.0.0.1:8000',
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


def _runs_graphs(runtime: o.Runtime) -> bool:
    """Whether the model is run as graphs, which have no gradients."""
    if runtime.runner is not None:
        return not runtime.runner.startswith("pytorch")
    try:
        return (Path(runtime.model).expanduser() / "manifest.json").is_file()
    except (OSError, RuntimeError):
        return False


def _request(fields: dict[str, Any], method: Any, more: dict[str, Any] | None = None) -> Any:
    from adapedit.request import EditRequest

    return EditRequest.make(**fields, method=method, **(more or {}))
