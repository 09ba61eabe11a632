"""One call of four rows by every runner of the CPU: `python -m benchmarks.runners [--model sd-v1-shape]`.

The UNet's call of an edit, in PyTorch (the reference), ONNX Runtime and OpenVINO from one bundle, in float32, with the
UNet in bfloat16, and in int8, which is calibrated on that call; and diffusers' own UNet on as many rows, unedited. One
runner is open at a time, for a large model has room for no more; rounds go through all of them. Each is held to the
reference before it is timed; its loss is written beside its time, and with `--steps` that of a whole edit, in grey
levels.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapedit.loading import load_bundle
from adapedit.model import checkpoint_of
from adapedit.pipeline import AdapEditPipeline
from adapedit_engine.bundle import Bundle, describe_files
from adapedit_engine.manifest import MANIFEST_FILE
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_export.export import export_bundle
from adapedit_export.options import ExportOptions, Precision
from adapedit_export.parity import Reference
from adapedit_export.quantisation import quantise
from benchmarks import common
from benchmarks.baselines.edits import as_loaded
from benchmarks.shapes import folder_of

WAYS = {
    "onnxruntime": ("onnxruntime", False),
    "openvino": ("openvino", False),
    "openvino bfloat16": ("openvino-bfloat16", False),
    "onnxruntime int8": ("onnxruntime", True),
    "openvino int8": ("openvino", True),
}
"""Runners, and whether the bundle is in int8."""

EXACT, CLOSE = 1e-3, 0.3
"""Norm of the error over norm of the value: of float32, and of what rounds."""


def main() -> None:
    options = common.arguments(__doc__, steps=0, repeats=3, rounds=2).parse_args()
    if options.quick:
        options.repeats, options.rounds, options.steps = 1, 1, 2
    model = argparse.Namespace(**{**vars(options), "model": folder_of(options.model)})
    with tempfile.TemporaryDirectory() as folder:
        float32, int8 = Path(folder) / "float32", Path(folder) / "int8"
        with get_context("spawn").Pool(1, maxtasksperchild=1) as apart:  # to give its gigabytes back
            apart.apply(in_float32, (model, float32))
            apart.apply(in_int8, (float32, int8))
        bundle, eight_bits = Bundle.open(float32), Bundle.open(int8)
        pipe = common.pipeline(model)
        call = Reference.load(bundle.folder).calls["unet"]
        inputs = inputs_of(bundle)
        found: dict[str, Any] = {}
        for _ in range(options.rounds):
            for name, way in ways(pipe, bundle, eight_bits, inputs).items():
                with way as infer:
                    one = found.setdefault(name, {"loss": loss(name, infer, call), "seconds": []})
                    one["seconds"] += [seconds(infer) for _ in range(options.repeats)]
        edits = grey_levels(pipe, bundle, eight_bits, options.steps) if options.steps else {}
    report(options, found, edits)


def seconds(infer: Callable[[], Any]) -> float:
    """Of one call, by the clock."""
    start = time.perf_counter()
    infer()
    return time.perf_counter() - start


def report(options: Any, found: dict[str, Any], edits: dict[str, Any]) -> None:
    """Write times, losses, and how many times the reference's speed each way has."""
    reference = common.summary(found["pytorch"]["seconds"])["median_s"]
    rows = {
        name: {**common.summary(one["seconds"]), "loss": one["loss"], **edits.get(name, {})}
        for name, one in found.items()
    }
    ratios = {f"PyTorch over {name}": round(reference / row["median_s"], 3) for name, row in rows.items()}
    common.write("runners", options, {"calls": rows, "ratios": ratios})


def in_float32(options: Any, out: Path) -> None:
    """Export the model that the options name."""
    source = checkpoint_of(common.pipeline(options).model)
    export_bundle(source, out, ExportOptions(check_steps=0, check=False))


def inputs_of(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Of the UNet's call that was kept at the export."""
    call = Reference.load(bundle.folder).calls["unet"]
    return {tensor.name: call[tensor.name] for tensor in bundle.graph("unet").inputs}


def in_int8(folder: Path, out: Path) -> None:
    """A copy of the bundle in a folder, whose UNet is in int8, calibrated on one call."""
    shutil.copytree(folder, out)
    bundle = Bundle.open(folder)
    call = {name: tensor.numpy() for name, tensor in inputs_of(bundle).items()}
    unet = quantise(out, bundle.graph("unet"), [call], Precision.INT8)
    (out / MANIFEST_FILE).unlink()
    manifest = replace(
        bundle.manifest,
        precision="int8",
        graphs={**bundle.manifest.graphs, "unet": unet},
        files=describe_files(out),
    )
    (out / MANIFEST_FILE).write_text(manifest.to_json())


def ways(pipe: Any, bundle: Bundle, eight_bits: Bundle, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """By name a block in which a way is open, and what it then is called by: noise_pred of the same rows."""

    @contextmanager
    def reference() -> Iterator[Callable[[], Any]]:
        given = {name: tensor for name, tensor in inputs.items() if name != "projected_text"}
        model = pipe.model
        with PyTorchRunner(model.runner.controlled.unet, map_divisor=model.facts.map_divisor) as runner:
            text = torch.randn(4, model.max_tokens, runner.specs.text_channels)
            given |= runner.condition(text)
            yield lambda: runner.infer(given)["noise_pred"]

    @contextmanager
    def diffusers() -> Iterator[Callable[[], Any]]:
        unet = as_loaded(pipe.model.runner.controlled.unet)
        text = torch.randn(4, pipe.model.max_tokens, pipe.model.runner.specs.text_channels)
        with torch.inference_mode():
            yield lambda: unet(inputs["sample"], inputs["timestep"], encoder_hidden_states=text)[0]

    @contextmanager
    def of_graphs(runner: str, int8: bool) -> Iterator[Callable[[], Any]]:
        opened = load_bundle((eight_bits if int8 else bundle).folder, runner, verify=False).runner
        with opened:
            yield lambda: opened.infer(inputs)["noise_pred"]
        opened.close()

    found: dict[str, Any] = {"pytorch": reference(), "diffusers, no edit": diffusers()}
    return found | {name: of_graphs(runner, int8) for name, (runner, int8) in WAYS.items()}


def loss(name: str, infer: Callable[[], torch.Tensor], call: dict[str, torch.Tensor]) -> float | None:
    """Norm of the error of noise_pred over its norm; None: another text. Raises `SystemExit` where it is too much."""
    got = infer()
    if name not in WAYS:
        return None
    ratio = float((got - call["noise_pred"]).norm() / call["noise_pred"].norm())
    limit = CLOSE if WAYS[name][1] or "bfloat16" in name else EXACT
    if not ratio <= limit:
        raise SystemExit(f"parity: {name} is {ratio:.2g} from PyTorch, wanted {limit:g} at most: not timed")
    return round(ratio, 7)


def grey_levels(pipe: Any, bundle: Bundle, eight_bits: Bundle, steps: int) -> dict[str, Any]:
    """Mean and largest difference of a whole edit's target from PyTorch's, in grey levels."""
    asked = common.request(0, steps)
    (expected,) = pipe.edit_batch([asked])
    found = {}
    for name, (runner, int8) in WAYS.items():
        model = load_bundle((eight_bits if int8 else bundle).folder, runner, verify=False)
        (got,) = AdapEditPipeline(model).edit_batch([asked])
        model.runner.close()
        apart = np.abs(np.asarray(got.target_image, float) - np.asarray(expected.target_image, float))
        found[name] = {
            "mean_grey_levels": round(float(apart.mean()), 3),
            "most_grey_levels": int(apart.max()),
        }
    return found


if __name__ == "__main__":
    main()
