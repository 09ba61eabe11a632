"""The export: from a checkpoint's modules to a bundle that was checked against them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adapedit_engine.bundle import Bundle, describe_files, new_folder
from adapedit_engine.manifest import (
    EDITS,
    GRAPHS,
    MANIFEST_FILE,
    MAPS,
    ROWS,
    TOKENIZERS,
    GraphSpec,
    Manifest,
    Parity,
    VaeSpec,
    reading,
)
from adapedit_engine.models.text import TextEncoders
from adapedit_engine.models.unet import ControlledUNet
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners.base import open_bundle_runner, why_not
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule
from adapedit_engine.scheduler import denoise
from adapedit_export.graphs import Modules, VaeDecoder
from adapedit_export.onnx import save, trace
from adapedit_export.options import ExportError, ExportOptions, Precision
from adapedit_export.parity import Progress, Reference, random_call, random_plan, shown
from adapedit_export.quantisation import STEPS, plans_of, quantise, record

if TYPE_CHECKING:
    from adapedit_export.check import Finding

FACTS_FILE = "adapedit.json"
PACKAGES = ("adapedit", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "onnxscript")
SMALL_GRAPHS_ROWS = 2
"""Of the check of text encoder and VAE, which a pipeline runs one row at a time."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is exported. tokenizers and scheduler are saved as they save themselves; facts go to `adapedit.json`.

    max_tokens: N. wide_vae: see `Modules`. latent_size: height and width of the latents that the model was trained for.
    """

    name: str
    unet: nn.Module
    map_divisor: int | None
    text: TextEncoders
    vae: Any
    tokenizers: Sequence[Any]
    scheduler: Any
    facts: dict[str, Any]
    latent_size: int
    guidance_scale: float
    max_tokens: int
    wide_vae: bool = False


def export_bundle(
    checkpoint: Checkpoint,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write a bundle to `out`, which appears whole or not at all.

    Raises `ExportError` for what can't be exported, and where the graphs do not give what PyTorch gives.
    """
    options = options or ExportOptions()
    say = progress or (lambda _: None)
    needed = ("onnx", "onnxscript", "onnxruntime", *["polygraphy"] * options.check)
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ExportError(f"an export needs {', '.join(missing)}; pip install 'adapedit[onnx]'")
    if options.check and (reason := why_not("onnxruntime")) is not None:
        raise ExportError(f"the check of an export {reason}")
    exporter = _Exporter(checkpoint, options)
    with new_folder(out, replace=overwrite) as folder:
        graphs: dict[str, GraphSpec] = {}
        for name in GRAPHS:
            say(f"tracing {name}")
            graphs[name] = exporter.write(name, folder)
        for name, tokenizer in zip(TOKENIZERS, checkpoint.tokenizers, strict=False):  # one or two of them
            tokenizer.save_pretrained(folder / name)
        checkpoint.scheduler.save_config(folder / "scheduler")
        (folder / FACTS_FILE).write_text(json.dumps(checkpoint.facts, indent=1, allow_nan=False) + "\n")
        say("computing the reference")
        reference = exporter.reference(graphs)
        reference.save(folder)
        manifest = exporter.manifest(graphs, folder)
        if options.precision.quantised:
            say(f"calibrating {options.precision.value} on {len(options.prompts)} prompts")
            calls = record(Bundle(folder=folder, manifest=manifest), exporter.calibration())
            say(f"writing {options.precision.value}")
            graphs["unet"] = quantise(folder, graphs["unet"], calls, options.precision)
            manifest = exporter.manifest(graphs, folder)
        if options.check:
            from adapedit_export.check import check_runner

            runner = open_bundle_runner(Bundle(folder=folder, manifest=manifest))
            findings = check_runner(runner, reference, progress=say)
            runner.close()
            refuse_wrong(findings, options.precision)
            manifest = replace(manifest, parity=_parity(findings))
        (folder / MANIFEST_FILE).write_text(manifest.to_json())
    return Bundle(folder=Path(out), manifest=manifest)


class _Exporter:
    """The modules of a checkpoint in the form that is traced, and in float32 for the reference."""

    def __init__(self, checkpoint: Checkpoint, options: ExportOptions) -> None:
        self.checkpoint, self.options = checkpoint, options
        controlled = ControlledUNet(checkpoint.unet, map_divisor=checkpoint.map_divisor)
        factor = 2 ** (len(checkpoint.vae.config.block_out_channels) - 1)
        wanted = factor * 2 ** max(layer.level for layer in controlled.specs.self_layers)
        sides = {}
        for name in ("height", "width"):
            pixels = getattr(options, name)
            pixels = checkpoint.latent_size * factor if pixels is None else pixels
            if pixels <= 0 or pixels % wanted:
                raise ExportError(f"{name} is {pixels}, wanted a multiple of {wanted} for this model")
            sides[name] = pixels // factor
        self.modules = Modules(
            controlled=controlled,
            text=checkpoint.text,
            vae=checkpoint.vae,
            tokens=checkpoint.max_tokens,
            rows=options.rows,
            wide_vae=checkpoint.wide_vae,
            **sides,
        )

    def write(self, name: str, folder: Path) -> GraphSpec:
        """Trace a graph and save it in the chosen precision."""
        from adapedit_export.rewrite import rewrite  # needs onnx_ir

        precision = self.options.precision.base
        modules = self.modules.cast(name, precision.traced)
        with modules.controlled.attached():
            model = trace(modules.traceable(name, precision.traced), self.options.opset)
        rewrite(model, precision, mixed=not name.startswith("vae"))
        return save(model, folder, name)

    @torch.inference_mode()
    def reference(self, graphs: dict[str, GraphSpec]) -> Reference:
        """PyTorch's results in float32, on inputs that the graphs' dtypes can hold."""
        calls = {}
        vocabulary = self.checkpoint.text.vocabulary
        for seed, name in enumerate(GRAPHS):
            modules = self.modules.cast(name, torch.float32)
            traceable = modules.traceable(name)
            rows = (self.options.rows or self.options.check_rows) if name == "unet" else SMALL_GRAPHS_ROWS
            sizes = {ROWS: rows, EDITS: max(1, rows // 2), MAPS: max(1, rows // 2)}
            call = random_call(graphs[name], sizes, vocabulary=vocabulary, seed=seed)
            if self.options.precision is Precision.FLOAT16:
                call = {n: t.half().float() if t.is_floating_point() else t for n, t in call.items()}
            with modules.controlled.attached():
                results = traceable.module(**call)
            results = results if isinstance(results, tuple) else (results,)
            calls[name] = call | dict(zip(traceable.outputs, results, strict=True))
        if not self.options.check_steps:
            return Reference(calls=calls, edit=None, outcome={})
        text = self.modules.cast("text_encoder", torch.float32).text
        ids = [calls["text_encoder"][name] for name in text.inputs]
        told = text(*(torch.cat([one, one[:1].flip(1)]) for one in ids))
        plan = random_plan(
            self.modules.controlled.specs,
            Schedule.from_scheduler(self.checkpoint.scheduler, self.options.check_steps),
            dict(zip(text.outputs, told, strict=True)),
            (self.modules.height, self.modules.width),
            self.checkpoint.guidance_scale,
        )
        unet = self.modules.cast("unet", torch.float32).controlled.unet
        with PyTorchRunner(unet, map_divisor=self.checkpoint.map_divisor) as runner:
            found = denoise([plan], runner)[0]
        decoder = VaeDecoder(self.modules.cast("vae_decoder", torch.float32).vae)
        pictures = torch.cat([decoder(one[None]) for one in found.latents])
        return Reference(calls=calls, edit=plan, outcome=shown(found, pictures))

    @torch.inference_mode()
    def calibration(self) -> list[EditPlan]:
        """Plans that the UNet is calibrated along: the prompts' own pictures."""
        text, modules = self.checkpoint.text, self.modules
        ids = [
            tokenizer(
                ["", *self.options.prompts],
                padding="max_length",
                truncation=True,
                max_length=self.checkpoint.max_tokens,
                return_tensors="pt",
            ).input_ids
            for tokenizer in self.checkpoint.tokenizers
        ]
        height, width = modules.height, modules.width
        return plans_of(
            modules.controlled.specs,
            dict(zip(text.outputs, text(*ids), strict=True)),
            Schedule.from_scheduler(self.checkpoint.scheduler, STEPS),
            (height * modules.vae_factor, width * modules.vae_factor),
            (height, width),
            self.checkpoint.guidance_scale,
        )

    def manifest(self, graphs: dict[str, GraphSpec], folder: Path) -> Manifest:
        parts, modules = self.checkpoint, self.modules
        with reading(folder / MANIFEST_FILE, "this model can't be exported"):
            return Manifest(
                model=parts.name,
                precision=self.options.precision.value,
                specs=modules.controlled.specs,
                tokens=modules.tokens,
                vocabulary=parts.text.vocabulary,
                text_encoders=len(parts.tokenizers),
                height=modules.height,
                width=modules.width,
                rows=self.options.rows,
                vae=VaeSpec(factor=modules.vae_factor, scaling_factor=float(parts.vae.config.scaling_factor)),
                scheduler=type(parts.scheduler).__name__,
                graphs=graphs,
                files=describe_files(folder),
                versions=_versions(),
            )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def refuse_wrong(findings: Sequence[Finding], precision: Precision) -> None:
    """In float32 the graphs are PyTorch's, or they are wrong; in less, only what is not finite is refused."""
    for finding in findings:
        broken = finding.largest == float("inf")
        if broken or (precision is Precision.FLOAT32 and not finding.passed):
            value = getattr(finding, finding.measure)
            raise ExportError(
                f"the exported {finding.stage} differs from PyTorch: {finding.output} by {value:.2g} "
                f"({finding.measure}), at most {finding.limit:.2g} wanted"
                + ("; use precision mixed or float32" if precision is Precision.FLOAT16 else "")
            )


def _parity(findings: Sequence[Finding]) -> dict[str, dict[str, Parity]]:
    found: dict[str, dict[str, Parity]] = {}
    for f in findings:
        found.setdefault(f.stage, {})[f.output] = Parity(largest=f.largest, mean=f.mean, ratio=f.ratio)
    return found
