"""The export: from a checkpoint's modules to a bundle that was checked against them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapedit_engine.bundle import Bundle, describe_files, new_folder
from adapedit_engine.scheduler import denoise
from adapedit_engine.manifest import MANIFEST_FILE, GraphSpec, Manifest, Parity, VaeSpec
from adapedit_engine.models.unet import ControlledUNet
from adapedit_engine.runners import open_bundle_runner
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule
from adapedit_export.check import Finding, check_runner
from adapedit_export.forms import speed_up
from adapedit_export.graphs import Traceable, VaeDecoder, small_graphs, unet_graph
from adapedit_export.norms import spell_group_norms
from adapedit_export.onnx import save, trace
from adapedit_export.options import ExportError, ExportOptions, Precision
from adapedit_export.precision import mix
from adapedit_export.reference import Reference, random_call, random_plan

FACTS_FILE = "adapedit.json"
PACKAGES = ("adapedit", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "onnxscript")
SMALL_GRAPHS_ROWS = 2
"""Of the check of text encoder and VAE, which a pipeline runs one row at a time."""
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is exported. tokenizer and scheduler are saved as they save themselves; facts go to `adapedit.json`.

    latent_size: height and width of the latents that the model was trained for.
    """

    name: str
    unet: nn.Module
    map_divisor: int | None
    text_encoder: Any
    vae: Any
    tokenizer: Any
    scheduler: Any
    facts: dict[str, Any]
    latent_size: int
    guidance_scale: float


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
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(f"an export needs {', '.join(missing)}; pip install 'adapedit[onnx]'")
    exporter = _Exporter(checkpoint, options)
    with new_folder(out, replace=overwrite) as folder:
        graphs = {}
        for name in ("unet", "text_projection", "text_encoder", "vae_decoder", "vae_encoder"):
            say(f"tracing {name}")
            graphs[name] = exporter.write(name, folder)
        checkpoint.tokenizer.save_pretrained(folder / "tokenizer")
        checkpoint.scheduler.save_config(folder / "scheduler")
        (folder / FACTS_FILE).write_text(json.dumps(checkpoint.facts, indent=1) + "\n")
        say("computing the reference")
        reference = exporter.reference(graphs)
        reference.save(folder)
        manifest = exporter.manifest(graphs, folder)
        if options.check:
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
        self.controlled = ControlledUNet(checkpoint.unet, map_divisor=checkpoint.map_divisor)
        self.factor = 2 ** (len(checkpoint.vae.config.block_out_channels) - 1)
        self.tokens = int(checkpoint.text_encoder.config.max_position_embeddings)
        deepest = max(layer.level for layer in self.controlled.specs.self_layers)
        sides = []
        for name in ("height", "width"):
            pixels = getattr(options, name) or checkpoint.latent_size * self.factor
            if pixels <= 0 or pixels % (self.factor * 2**deepest):
                raise ExportError(
                    f"{name} is {pixels}, wanted a multiple of {self.factor * 2**deepest} for this model"
                )
            sides.append(pixels // self.factor)
        self.height, self.width = sides

    def write(self, name: str, folder: Path) -> GraphSpec:
        precision = self.options.precision
        half = precision is Precision.FLOAT16
        traceable = self.traceables(half=half, only=name)[name]
        controlled = getattr(traceable.module, "controlled", self.controlled)
        with controlled.attached():
            model = trace(traceable, self.options.opset)
        if not half:
            # In float16 the operator stays: what it computes in float32 inside would be lost.
            spell_group_norms(model)
        if precision is Precision.FLOAT32:
            speed_up(model)
        if precision is Precision.MIXED and not name.startswith("vae"):
            mix(model)
        return save(model, folder, name)

    def traceables(self, *, half: bool, only: str | None = None) -> dict[str, Traceable]:
        """All graphs, or one. In float16 the module is copied first: the checkpoint stays what it was."""
        parts = self.checkpoint
        dtype = torch.float16 if half else torch.float32
        controlled, text_encoder, vae = self.controlled, parts.text_encoder, parts.vae
        if half and only in ("unet", "text_projection"):
            unet = copy.deepcopy(parts.unet).half()
            controlled = ControlledUNet(unet, map_divisor=parts.map_divisor)
        if half and only == "text_encoder":
            text_encoder = copy.deepcopy(text_encoder).half()
        if half and only is not None and only.startswith("vae"):
            vae = copy.deepcopy(vae).half()
        size = {"tokens": self.tokens, "height": self.height, "width": self.width, "dtype": dtype}
        if only == "unet":
            return {only: unet_graph(controlled, rows=self.options.rows, **size)}
        others = small_graphs(controlled, text_encoder, vae, factor=self.factor, vae_dtype=dtype, **size)
        if only is not None:
            return others
        return {"unet": unet_graph(controlled, rows=self.options.rows, **size), **others}

    @torch.inference_mode()
    def reference(self, graphs: dict[str, GraphSpec]) -> Reference:
        """PyTorch's results in float32, on inputs that the graphs' dtypes can hold."""
        calls = {}
        vocabulary = int(self.checkpoint.text_encoder.config.vocab_size)
        with self.controlled.attached():
            for seed, (name, traceable) in enumerate(self.traceables(half=False).items()):
                rows = (self.options.rows or self.options.check_rows) if name == "unet" else SMALL_GRAPHS_ROWS
                call = random_call(graphs[name], {"rows": rows}, vocabulary=vocabulary, seed=seed)
                if self.options.precision is Precision.FLOAT16:
                    call = {n: t.half().float() if t.is_floating_point() else t for n, t in call.items()}
                results = traceable.module(**call)
                results = results if isinstance(results, tuple) else (results,)
                calls[name] = call | dict(zip(traceable.outputs, results, strict=True))
        if not self.options.check_steps:
            return Reference(calls=calls, edit=None, outcome={})
        ids = calls["text_encoder"]["input_ids"]
        hidden = self.checkpoint.text_encoder(torch.cat([ids, ids[:1].flip(1)])).last_hidden_state
        plan = random_plan(
            self.controlled.specs,
            Schedule.from_scheduler(self.checkpoint.scheduler, self.options.check_steps),
            hidden,
            height=self.height,
            width=self.width,
            guidance_scale=self.checkpoint.guidance_scale,
        )
        runner = PyTorchRunner(self.checkpoint.unet, map_divisor=self.checkpoint.map_divisor)
        with runner:
            found = denoise([plan], runner)[0]
        pictures = torch.cat([VaeDecoder(self.checkpoint.vae)(one[None]) for one in found.latents])
        assert found.maps is not None and found.features is not None
        outcome = {
            "latents": found.latents,
            "maps": found.maps,
            "features": found.features,
            "pictures": (pictures * 255).round(),
        }
        return Reference(calls=calls, edit=plan, outcome=outcome)

    def manifest(self, graphs: dict[str, GraphSpec], folder: Path) -> Manifest:
        parts = self.checkpoint
        return Manifest(
            model=parts.name,
            precision=self.options.precision.value,
            specs=self.controlled.specs,
            tokens=self.tokens,
            height=self.height,
            width=self.width,
            rows=self.options.rows,
            vae=VaeSpec(factor=self.factor, scaling_factor=float(parts.vae.config.scaling_factor)),
            scheduler=type(parts.scheduler).__name__,
            graphs=graphs,
            files=describe_files(folder),
            versions=_versions(),
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def refuse_wrong(findings: list[Finding], precision: Precision) -> None:
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


def _parity(findings: list[Finding]) -> dict[str, dict[str, Parity]]:
    found: dict[str, dict[str, Parity]] = {}
    for f in findings:
        found.setdefault(f.stage, {})[f.output] = Parity(largest=f.largest, mean=f.mean, ratio=f.ratio)
    return found
