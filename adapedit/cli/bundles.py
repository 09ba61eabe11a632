"""The commands for bundles: `adapedit export`, `inspect`, `build`, `check`. Heavy imports are inside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from adapedit.cli import options as o

EXPORT, PLAN = "Graphs", "Plans"
Pixels = Annotated[int | None, o.option("Of the pictures, in pixels.", panel=EXPORT, min=8, max=4096)]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder made by adapedit export.")]


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """How graphs are made."""

    precision: Annotated[
        Literal["float32", "float16", "mixed"],
        o.option("mixed: products in float16, the rest in float32.", panel=EXPORT),
    ] = "float32"
    quantize: Annotated[
        Literal["int8", "fp8"] | None,
        o.option("The UNet's products in eight bits: int8 for CPUs, fp8 for GPUs.", panel=EXPORT),
    ] = None
    calibrate: Annotated[
        Path | None,
        o.option(
            "A text file with a prompt a line, like those that will be edited.", panel=EXPORT, metavar="FILE"
        ),
    ] = None
    rows: Annotated[
        int | None, o.option("Fix the rows of a call; by default any number.", panel=EXPORT, min=1)
    ] = None
    height: Pixels = None
    width: Pixels = None
    opset: Annotated[int, o.option("Of ONNX; 23 has fused attention.", panel=EXPORT)] = 23
    check_steps: Annotated[
        int, o.option("Steps of the edit that the graphs are checked along.", panel=EXPORT, min=0)
    ] = 10
    check_rows: Annotated[
        int, o.option("Rows of the UNet that it is checked with on random inputs.", panel=EXPORT, min=1)
    ] = 4
    no_check: Annotated[
        bool,
        o.option("Leave the check to `adapedit check`: less memory at once.", "--no-check", panel=EXPORT),
    ] = False

    def options(self) -> Any:
        """The `ExportOptions`."""
        from adapedit_export.options import ExportError, ExportOptions, Precision

        given = vars(self).copy()
        precision, quantize, file = (given.pop(name) for name in ("precision", "quantize", "calibrate"))
        if quantize is not None and precision != "float32":
            raise ExportError(
                f"--quantize {quantize} is for --precision float32, got {precision}; leave one out"
            )
        given["check"] = not given.pop("no_check")
        prompts = () if file is None else _lines(file)
        return ExportOptions(precision=Precision(quantize or precision), prompts=prompts, **given)


def export(
    *,
    model: Annotated[
        str,
        typer.Argument(help="builtin, a folder in the diffusers layout, a .safetensors file, or a hub name."),
    ],
    out: Annotated[Path, o.option("Folder of the bundle; it appears whole or not at all.")],
    graphs: Graphs,
    overwrite: Annotated[bool, o.option("Replace a bundle that is there.", "--overwrite")] = False,
    weights_variant: Annotated[
        o.Text, o.option("The word in the names of weight files.", panel=EXPORT)
    ] = None,
    config: Annotated[
        Path | None,
        o.option("Of a single file: a folder with its configurations and tokenizers.", panel=EXPORT),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        o.option("Of a single file without --config: the folder of a CLIP tokenizer.", panel=EXPORT),
    ] = None,
    json: o.Json = False,
) -> None:
    """Turn a checkpoint into a bundle that ONNX Runtime and TensorRT run, and check it against PyTorch."""
    chosen = graphs.options()
    from adapedit.checkpoints import Source, stored_dtype
    from adapedit.cli import show
    from adapedit.loading import load_model
    from adapedit.model import checkpoint_of
    from adapedit_engine.bundle import refuse_output

    refuse_output(out, replace=overwrite)
    with show.status("loading the model") as say:
        from adapedit_export.export import export_bundle

        source = Source(place=model, variant=weights_variant, config=config, tokenizer=tokenizer)
        # Half weights stay half for a graph of them: twice as many bytes would say the same.
        dtype = stored_dtype(source) if graphs.precision == "float16" else None
        loaded = load_model(source, device="cpu", dtype=dtype)
        bundle = export_bundle(checkpoint_of(loaded), out, chosen, overwrite=overwrite, progress=say)
    show.print_bundle(bundle, json)


def inspect(
    folder: BundleFolder,
    layers: Annotated[
        o.Text, o.option("The layers of this graph alone, by Polygraphy.", metavar="GRAPH")
    ] = None,
    json: o.Json = False,
) -> None:
    """What a bundle holds: graphs, tensors, plans, versions and how near it is to PyTorch. Files are verified."""
    _refuse_missing(folder)
    from adapedit.cli import show
    from adapedit_engine.bundle import Bundle

    bundle = Bundle.open(folder)
    if layers is None:
        show.print_bundle(bundle, json)
        return
    from adapedit_export.onnx import describe_layers

    found = describe_layers(bundle.graph_path(layers))
    if json:
        show.print_json({"graph": layers, "layers": found.splitlines()})
    else:
        print(found)


def build(
    folder: BundleFolder,
    workload: Annotated[
        Literal["latency", "throughput"],
        o.option("latency: 4 and 6 rows; throughput: 8, 16 and 32.", panel=PLAN),
    ] = "latency",
    compute_capability: Annotated[
        o.Text, o.option("Of the GPUs to build for; by default that of the one here.", panel=PLAN)
    ] = None,
    refit: Annotated[bool, o.option("Leave the weights exchangeable.", "--refit", panel=PLAN)] = False,
    lean: Annotated[
        bool, o.option("For the lean runtime, of this version or a later one.", "--lean", panel=PLAN)
    ] = False,
    refit_from: Annotated[
        Path | None,
        o.option("Take the plans of this bundle, built with --refit, with this one's weights.", panel=PLAN),
    ] = None,
    library: Annotated[
        o.Text, o.option("tensorrt or tensorrt-rtx; by default what is here.", panel=PLAN)
    ] = None,
    json: o.Json = False,
) -> None:
    """Build TensorRT plans of a bundle's graphs. A plan that is there and not stale is kept."""
    _refuse_missing(folder)
    from adapedit.cli import show
    from adapedit_engine.bundle import Bundle
    from adapedit_engine.runners.tensorrt import load, load_builder
    from adapedit_engine.workloads import workload_of
    from adapedit_export.tensorrt import BuildOptions, build_plans, refit_plans

    bundle = Bundle.open(folder)
    tensorrt = load(library) if library else load_builder()
    if refit_from is not None:
        show.print_plans(bundle, refit_plans(Bundle.open(refit_from), bundle, tensorrt), json)
        return
    options = BuildOptions(
        workload=workload_of(workload), compute_capability=compute_capability, refit=refit, lean=lean
    )
    with show.bar() as progress:
        records = build_plans(bundle, tensorrt, options, progress=progress)
    show.print_plans(bundle, records, json)


def check(
    folder: BundleFolder,
    runner: Annotated[o.Texts, o.option("A runner to check; by default all that can run here.")] = None,
    json: o.Json = False,
) -> None:
    """Hold every runner that can run here to what PyTorch gave, on random inputs and along an edit; 1: some differ."""
    _refuse_missing(folder)
    from adapedit.cli import show
    from adapedit_engine.bundle import Bundle
    from adapedit_engine.runners.base import BUNDLE_RUNNERS, open_bundle_runner, why_not
    from adapedit_export.check import check_runner
    from adapedit_export.parity import Reference

    bundle = Bundle.open(folder)
    reference = Reference.load(bundle.folder)
    reasons = {name: None if runner else why_not(name) for name in BUNDLE_RUNNERS}
    names = runner or [name for name, reason in reasons.items() if reason is None]
    findings: list[Any] = []
    with show.status("checking") as say:
        for name in names:
            opened = open_bundle_runner(bundle, name)
            findings += check_runner(opened, reference, progress=say)
            opened.close()
    show.print_findings(findings, {name: reason for name, reason in reasons.items() if reason}, json)
    if not all(finding.passed for finding in findings):
        raise typer.Exit(1)


COMMANDS: dict[Callable[..., None], tuple[str, ...]] = {
    export: (
        "adapedit export builtin --out bundle",
        "adapedit export builtin --out eight-bits --quantize int8 --calibrate prompts.txt",
        "adapedit export ./stable-diffusion-v1-4 --out sd-half --precision float16 --check-steps 0",
    ),
    inspect: (
        "adapedit inspect bundle",
        "adapedit inspect bundle --layers unet",
        "adapedit inspect bundle --json",
    ),
    build: (
        "adapedit build bundle --compute-capability 8.9",
        "adapedit build bundle --workload throughput --refit",
        "adapedit build tuned-bundle --refit-from bundle",
    ),
    check: ("adapedit check bundle", "adapedit check bundle --runner onnxruntime-cuda"),
}
"""Commands with the examples at the end of their help."""


def _lines(file: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty."""
    from adapedit_kernels.errors import AdapEditError

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AdapEditError(
            f"{file} can't be read ({error}); give a text file with a prompt a line"
        ) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _refuse_missing(folder: Path) -> None:
    """Raise where there is no bundle, before anything heavy is imported."""
    from adapedit_kernels.errors import AdapEditError

    if not (folder / "manifest.json").is_file():
        raise AdapEditError(f"{folder} is no bundle (no manifest.json); make one with: adapedit export")
