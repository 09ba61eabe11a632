"""What commands run and show: progress on stderr, tables or JSON on stdout, sheets of pictures."""

from __future__ import annotations

import json as encoder
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from adapedit.cli.options import Runtime
from adapedit.prompts.alignment import Alignment, Word
from adapedit.request import EditRequest
from adapedit.result import EditResult, OutputFolder, WordReport, check_output, strict_json
from adapedit.sheets import Cell, Heading, sheet
from adapedit_kernels.errors import AdapEditError

BAR, SHEET_COLUMNS, WIDE = 12, 6, 200
"""WIDE: columns where nobody looks: what reads a pipe wraps for itself."""


def console() -> Console:
    """Standard output, which loses nothing where it is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDE)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object."""
    print(encoder.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


# -- running


@contextmanager
def status(first: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done."""
    with Console(stderr=True).status(first) as shown:
        yield shown.update


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for one phase after another: what, how much is done, of how much (0: not known)."""
    errors = Console(stderr=True)
    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total or None
        )


def source_of(runtime: Runtime) -> Any:
    """The `Source` of --model, --weights-variant, --config and --tokenizer."""
    from adapedit.checkpoints import Source

    config, tokenizer = runtime.config, runtime.tokenizer
    return Source(place=runtime.model, variant=runtime.weights_variant, config=config, tokenizer=tokenizer)


def load_pipeline(runtime: Runtime) -> Any:
    """The pipeline of the options --model, --runner, --device and --dtype."""
    import torch

    from adapedit.loading import load_any
    from adapedit.pipeline import AdapEditPipeline

    device = None if runtime.device == "auto" else runtime.device
    dtype = None if runtime.dtype is None else getattr(torch, runtime.dtype)
    model = load_any(source_of(runtime), runner=runtime.runner, device=device, dtype=dtype)
    if model.safety_checker_off:
        print(f"adapedit: warning: the safety checker of {model.name} is not run", file=sys.stderr)
    return AdapEditPipeline(model)


def run_edits(
    requests: Sequence[EditRequest],
    runtime: Runtime,
    *,
    out: Path | None = None,
    max_rows: int = 32,
    labels: Sequence[str] | None = None,
) -> list[EditResult]:
    """Check the output folder, load the model, run the edits together, and say on stderr what they warn of.

    labels: of each edit, where there are several, for its warnings.
    """
    if out is not None:
        check_output(out)
    with bar() as say:
        say("Loading the model", 0, 0)
        _refuse_early(requests, runtime)
        pipe = load_pipeline(runtime)
        results: list[EditResult] = pipe.edit_batch(
            requests, max_rows=max_rows, callback=lambda done, total: say("Denoising", done, total)
        )
    _tell(results, labels)
    return results


def _refuse_early(requests: Sequence[EditRequest], runtime: Runtime) -> None:
    """Raise for prompts and pictures that do not do, before a weight is read."""
    from adapedit.edit import align_request, check_channels
    from adapedit.images import check_pictures
    from adapedit.loading import load_vocabulary

    check_pictures(requests[0].image, requests[0].mask)  # which all have
    vocabulary = load_vocabulary(source_of(runtime))
    for request in requests:
        check_channels(request, vocabulary.name, *vocabulary.channels)
        align_request(request, vocabulary)


def run_on_server(request: EditRequest, url: str, runtime: Runtime, *, out: Path) -> EditResult:
    """The same by a server, which may call a model by --model's name."""
    from adapedit.client import Client

    check_output(out)
    wanted = {name: value for name, value in vars(runtime).items() if value != getattr(Runtime, name)}
    model = wanted.pop("model", None)
    for name in wanted:
        raise AdapEditError(f"--{name} is {wanted[name]}, and the server has its own; leave --{name} out")
    with bar() as say, Client(url) as client:
        say("Waiting", 0, 0)
        result = client.edit(request, model=model, progress=lambda done, total: say("Denoising", done, total))
    _tell([result], None)
    return result


def _tell(results: Sequence[EditResult], labels: Sequence[str] | None) -> None:
    """Say on stderr what came of pictures, and what edits warn of."""
    told = set()
    for result in results:
        if result.image is not None and result.reconstruction_psnr is not None:
            notes = "".join(f"{note}; " for note in result.image.notes)
            told.add(f"the picture: {notes}comes back at {result.reconstruction_psnr:.1f} dB")
    for message in sorted(told):
        print(f"adapedit: {message}", file=sys.stderr)
    for place, result in enumerate(results):
        which = "" if labels is None else f"{labels[place]}: "
        for message in result.warnings:
            print(f"adapedit: warning: {which}{message}", file=sys.stderr)


def align_only(request: EditRequest, runtime: Runtime) -> Alignment:
    """The alignment of the request's prompts by the model's tokenizer; nothing else of the model is read."""
    from adapedit.edit import align_request
    from adapedit.loading import load_vocabulary

    return align_request(request, load_vocabulary(source_of(runtime)))


def run_inversions(
    image: Path,
    prompt: str,
    inversions: Mapping[str, Any],
    runtime: Runtime,
    options: Mapping[str, Any],
    *,
    out: Path,
    json: bool,
) -> None:
    """Invert a picture in every way, and show how well it comes back. options: of `reconstruct`."""
    with status("Loading the model") as say:
        from adapedit.images import ImageInput
        from adapedit.inversion.reconstruct import reconstruct

        model = load_pipeline(runtime).model
        (found,) = reconstruct(model, [(image, prompt)], inversions=inversions, callback=say, **options)
    size = found[0].picture.size
    opened = ImageInput(file=str(image), fit=options["fit"]).open(size)
    measures = ("inversion", "psnr", "ssim", "latent_rmse", "seconds")
    about = {
        "image": str(image),
        "notes": list(opened.notes),
        "prompt": prompt,
        "model": model.name,
        **options,
        "reconstructions": [{name: getattr(one, name) for name in measures} for one in found],
    }
    cells = [Cell(opened.picture, "input")] + [
        Cell(one.picture, one.inversion, f"{one.psnr:.1f} dB, SSIM {one.ssim:.3f}") for one in found
    ]
    words = tuple((word, False) for word in prompt.split())
    drawn = sheet([("", cells)], headings=[Heading("prompt", words)], columns=3, cell=_cell_side(size[0]))
    files = _save(out, "invert", drawn, about)
    if json:
        print_json({**about, "out": str(out)})
        return
    columns = ("", "PSNR dB", "SSIM", "latents RMSE", "seconds")
    table = _table(*columns, title="Without an edit, against the picture as the model takes it")
    for one in found:
        numbers = (f"{one.psnr:.2f}", f"{one.ssim:.4f}", f"{one.latent_rmse:.2g}", f"{one.seconds:.1f}")
        table.add_row(one.inversion, *numbers)
    console().print(table)
    for note in opened.notes:
        console().print(f"The picture: {note}", style="dim", highlight=False)
    _print_where(out, files, "")


# -- edits


def print_words(alignment: Alignment, reports: Sequence[WordReport] | None = None) -> None:
    """Target words with what they stand for, and the steps that FWT gave them where they are known."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    held = reports is not None and any(report.word_steps is not None for report in reports)
    related = reports is not None and any(report.relation is not None for report in reports)
    for name in ("word", ""):
        table.add_column(name)
    for name in ("tokens", *(["Λ relation"] if related else []), *(["τ held"] if held else [])):
        table.add_column(name, justify="right", no_wrap=True)
    if held:
        table.add_column("", no_wrap=True)
    for place, word in enumerate(alignment.target_words):
        cells = [Text(word.text, style="bold" if word.is_key else ""), _what(word, alignment), _tokens(word)]
        report = None if reports is None else reports[place]
        if report is not None and related:
            cells.append(Text("" if report.relation is None else f"{report.relation:.2f}"))
        if report is not None and held:
            share = report.word_steps or 0.0
            cells += [Text("" if report.word_steps is None else f"{share:.2f}"), _bar(share)]
        table.add_row(*cells)
    for word in alignment.deleted_words:
        table.add_row(Text(word.text, style="strike dim"), _what(word, alignment), Text(""))
    console().print(table)


def print_saved(folder: Path, files: Sequence[str], results: Sequence[EditResult]) -> None:
    """Where the pictures are, how long it took, and the seed that all have."""
    seeds = {result.request.seed for result in results}
    seed = f", seed {seeds.pop()}" if len(seeds) == 1 else ""
    device = results[0].made_with.get("device", "")
    _print_where(folder, files, f" [dim]({results[0].timings['total']:.1f} s on {device}{seed})[/dim]")


def words_dict(alignment: Alignment) -> dict[str, Any]:
    """The alignment alone, for JSON."""
    return {
        "source_prompt": alignment.source_prompt,
        "target_prompt": alignment.target_prompt,
        "source_words": [asdict(word) for word in alignment.source_words],
        "target_words": [asdict(word) for word in alignment.target_words],
    }


def save_sheet(
    out: Path,
    name: str,
    results: Sequence[EditResult],
    labels: Sequence[str],
    about: dict[str, Any],
    json: bool,
) -> None:
    """Write NAME.png, a contact sheet, and NAME.json, and say so."""
    description = {**about, "edits": [result.to_dict() for result in results]}
    files = _save(out, name, edits_sheet(results, labels), description)
    if json:
        print_json({**description, "out": str(out), "files": files})
    else:
        print_saved(out, files, results)


def edits_sheet(results: Sequence[EditResult], labels: Sequence[str]) -> Image.Image:
    """The source, then every target; where the sources differ, each target under its own."""
    first = results[0]
    same = Heading("with", tuple((word, False) for word in _in_common(results).split()))
    targets = [
        Cell(result.target_image, label, _held(result)) for result, label in zip(results, labels, strict=True)
    ]
    pictures = [result.source_image.tobytes() for result in results]
    rows: list[tuple[str, list[Cell]]] = [("", [Cell(first.source_image, "source"), *targets])]
    if any(picture != pictures[0] for picture in pictures):
        rows = []
        for start in range(0, len(results), SHEET_COLUMNS):
            part = slice(start, start + SHEET_COLUMNS)
            pairs = zip(results[part], labels[part], strict=True)
            rows += [("", [Cell(r.source_image, "source", label) for r, label in pairs]), ("", targets[part])]
    cell = _cell_side(first.source_image.width)
    return sheet(rows, headings=[*first.headings(), same], cell=cell, columns=SHEET_COLUMNS)


def _cell_side(width: int) -> int:
    return 256 if width > 256 else 192


def _save(out: Path, name: str, picture: Image.Image, description: dict[str, Any]) -> list[str]:
    files = [f"{name}.png", f"{name}.json"]
    with OutputFolder(out) as part:
        picture.save(part / files[0])
        (part / files[1]).write_text(strict_json(description), encoding="utf-8")
    return files


def _print_where(folder: Path, files: Sequence[str], more: str) -> None:
    names = ", ".join(files[:-1]) + f" and {files[-1]}" if len(files) > 1 else files[0]
    text = f"Saved {names} in [bold]{escape(str(folder))}[/bold]{more}"
    console().print(text, highlight=False, soft_wrap=True)


def _in_common(results: Sequence[EditResult]) -> str:
    request = results[0].request
    same = {
        "seed": f"seed {request.seed}",
        "num_inference_steps": f"{request.num_inference_steps} steps",
        "guidance_scale": f"guidance {request.guidance_scale}",
    }
    parts = [text for name, text in same.items() if len({getattr(r.request, name) for r in results}) == 1]
    return ", ".join([*parts, f"model {results[0].model}"])


def _held(result: EditResult) -> str:
    held = [word.word_steps for word in result.words if word.word_steps is not None and not word.is_key]
    if not held:
        return ""
    low, high = f"{min(held):.0%}", f"{max(held):.0%}"
    return f"words held {low}" if low == high else f"words held {low} to {high}"


def _what(word: Word, alignment: Alignment) -> Text:
    if word.kind == "deleted":
        anchor = "" if word.anchor is None else f", was of {alignment.target_words[word.anchor].text!r}"
        return Text(f"deleted{anchor}", style="dim")
    if word.kind == "replaced" and word.counterpart is not None:
        return Text(f"replaces {alignment.source_words[word.counterpart].text}", style="bold")
    return Text(word.kind, style="bold" if word.is_key else "dim")


def _tokens(word: Word) -> Text:
    first, last = word.tokens[0], word.tokens[-1]
    return Text(str(first) if first == last else f"{first}–{last}", style="dim")


def _bar(share: float) -> Text:
    full = round(share * BAR)
    return Text("█" * full, style="cyan") + Text("░" * (BAR - full), style="dim")


# -- bundles


def print_bundle(found: Any, json: bool) -> None:
    """What a bundle holds."""
    from adapedit_engine.bundle import read_records

    manifest, records = found.manifest, read_records(found)
    if json:
        plans = [_plan(found, record) for record in records]
        print_json({"folder": str(found.folder), **encoder.loads(manifest.to_json()), "plans": plans})
        return
    out = console()
    rows = "any number of rows" if manifest.rows is None else f"{manifest.rows} rows"
    out.print(
        f"[bold]{escape(str(found.folder))}[/bold]: {manifest.model}, {manifest.precision}, {rows}, latents of "
        f"{manifest.height} x {manifest.width}, maps of {manifest.map_size[0]} x {manifest.map_size[1]}, "
        f"{manifest.tokens} tokens, {manifest.scheduler}",
        highlight=False,
    )
    opsets = ", ".join(str(opset) for opset in sorted({graph.opset for graph in manifest.graphs.values()}))
    columns = ("graph", "inputs", "outputs", "nodes", "MB")
    graphs = _table(*columns, title=f"Graphs, opset {opsets}", names=3)
    for name, graph in manifest.graphs.items():
        size = sum(spec.bytes for file, spec in manifest.files.items() if file.startswith(graph.file))
        shown = ["\n".join(map(_tensor, tensors)) for tensors in (graph.inputs, graph.outputs)]
        graphs.add_row(name, *shown, str(graph.nodes), f"{size / 1e6:.1f}")
    out.print(graphs)
    columns = ("stage", "output", "largest", "mean", "error / value")
    parity = _table(*columns, title="ONNX Runtime against PyTorch")
    for stage, outputs in manifest.parity.items():
        for output, p in outputs.items():
            parity.add_row(stage, output, f"{p.largest:.2g}", f"{p.mean:.2g}", f"{p.ratio:.2g}")
    out.print(parity)
    if records:
        out.print(_plan_table(found, records))
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    out.print(f"Made with {versions}; {len(manifest.files)} files, all as the manifest says", highlight=False)


def print_plans(found: Any, records: Sequence[Any], json: bool) -> None:
    """Plans that were built, or that are there."""
    if json:
        print_json({"folder": str(found.folder), "plans": [_plan(found, record) for record in records]})
    else:
        console().print(_plan_table(found, records))


def print_findings(found: Sequence[Any], reasons: Mapping[str, str], json: bool) -> None:
    """What a check found, and which runners it left out and why."""
    if json:
        rows = [{**asdict(finding), "passed": finding.passed} for finding in found]
        print_json({"findings": rows, "not_run": dict(reasons)})
        return
    out = console()
    for runner in dict.fromkeys(f.runner for f in found):
        table = _table("stage", "output", "largest", "mean", "ratio", "limit", "", title=runner)
        for f in found:
            if f.runner == runner:
                mark = "[green]ok[/green]" if f.passed else "[red]differs[/red]"
                numbers = [f"{value:.2g}" for value in (f.largest, f.mean, f.ratio)]
                table.add_row(f.stage, f.output, *numbers, f"{f.measure} {f.limit:.0e}", mark)
        out.print(table)
    for name, reason in reasons.items():
        out.print(f"{name}: not run: {reason}", style="dim", highlight=False, markup=False)


def _plan(found: Any, record: Any) -> dict[str, Any]:
    from adapedit_engine.bundle import is_stale

    return {**asdict(record), "name": record.file_name, "stale": is_stale(found, record)}


def _plan_table(found: Any, records: Sequence[Any]) -> Table:
    from adapedit_engine.bundle import is_stale

    libraries = sorted({f"{record.key.family} {record.key.version}" for record in records})
    columns = ("graph", "for", "workload", "layers", "MB", "act. MB", "built s", "")
    table = _table(*columns, title=f"Plans of {', '.join(libraries)}")
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


def _table(*columns: str, title: str, names: int = 2) -> Table:
    """A table whose numbers are never cut: names, the first columns, give way."""
    table = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for place, column in enumerate(columns):
        number = place >= names
        table.add_column(column, no_wrap=number, overflow="fold", justify="right" if number else "left")
    return table


def _tensor(spec: Any) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"
