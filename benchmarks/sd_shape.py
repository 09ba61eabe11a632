"""Stable Diffusion's true shapes, random weights, as bundles and plans, without a GPU: `python -m benchmarks.sd_shape`.

Exports, holds one UNet call of four rows to PyTorch, and builds a TensorRT-RTX plan of the UNet. Reports seconds, the
peak of memory, sizes, and the activation memory of the plan at four rows. Each part runs in a process of its own, so
that the peaks are its own. Wants 12 GB of memory, as much disk, and some minutes. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import environment

PRECISIONS = ("float32", "float16", "mixed")
GOAL_BYTES = 1 << 30
PACKAGES = ("onnx", "tensorrt-rtx-cu13-bindings")

UNETS: dict[str, dict[str, Any]] = {
    "sd14": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
TEXT: dict[str, dict[str, Any]] = {
    "sd14": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
    "sd21": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "hidden_act": "gelu",
    },
}
PREDICTION = {"sd14": "epsilon", "sd21": "v_prediction"}


def checkpoint(shape: str) -> Any:
    """A checkpoint of that shape, as the export takes it."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from adapedit_export.export import Checkpoint

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, **UNETS[shape])
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    config = CLIPTextConfig(max_position_embeddings=77, **TEXT[shape])
    marks = ("<|startoftext|>", "<|endoftext|>", "a</w>")
    parts = [unet, vae, CLIPTextModel(config)]
    for part in parts:
        part.requires_grad_(False).eval()
    return Checkpoint(
        name=f"{shape}, random weights",
        unet=unet,
        map_divisor=None,
        text_encoder=parts[2],
        vae=vae,
        tokenizer=CLIPTokenizer(vocab={mark: i for i, mark in enumerate(marks)}, merges=[]),
        scheduler=DDIMScheduler(clip_sample=False, prediction_type=PREDICTION[shape]),
        facts={},
        latent_size=64,
        guidance_scale=7.5,
    )


def export(shape: str, precision: str, folder: Path) -> dict[str, Any]:
    """Write the bundle, with what PyTorch gives for one call of four rows."""
    from adapedit_export.export import export_bundle
    from adapedit_export.options import ExportOptions, Precision

    laps = _Laps()
    laps("making the checkpoint")
    made = checkpoint(shape)
    options = ExportOptions(precision=Precision(precision), check_steps=0, check=False)
    bundle = export_bundle(made, folder, options, overwrite=True, progress=laps)
    unet = bundle.graph("unet")
    files = bundle.manifest.files
    return {
        "seconds": laps.end(),
        "nodes": unet.nodes,
        "bytes": sum(spec.bytes for name, spec in files.items() if name.startswith(unet.file)),
        "external_data": f"{unet.file}.data" in files,
    }


def check(folder: Path) -> dict[str, Any]:
    """How near ONNX Runtime comes to PyTorch in float32, in one call of the UNet with four rows."""
    from adapedit_engine.bundle import Bundle
    from adapedit_engine.runners import open_bundle_runner
    from adapedit_export.parity import Reference, check_runner

    bundle = Bundle.open(folder)
    findings = check_runner(open_bundle_runner(bundle), Reference.load(folder), graphs=("unet",))
    return {
        "rows": 4,
        **{
            f.output: {"largest": f.largest, "error_over_value": f.ratio, "passed": f.passed}
            for f in findings
        },
    }


def plan(shape: str, precision: str, folder: Path, capability: str) -> dict[str, Any]:
    """Build the UNet's plan for four rows."""
    from adapedit_engine.bundle import Bundle
    from adapedit_engine.runners.tensorrt import load
    from adapedit_export.tensorrt import BuildOptions, Workload, build_plans

    bundle = Bundle.open(folder, verify=False)
    options = BuildOptions(
        workload=Workload(name="four rows", rows=(4,)), compute_capability=capability, graphs=("unet",)
    )
    record = build_plans(bundle, load("tensorrt-rtx"), options)[0]
    return {
        "compute_capability": capability,
        "seconds": record.build_seconds,
        "layers": record.layers,
        "bytes": record.file.bytes,
        "activation_bytes": record.activation_bytes,
        "activation_goal_bytes": GOAL_BYTES,
    }


class _Laps:
    """Seconds from each message to the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last: tuple[str, float] | None = None

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds[self._last[0]] = round(now - self._last[1], 1)
        self._last = (name, now)

    def end(self) -> dict[str, float]:
        self("")
        return self.seconds


def measured(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `part` gives, with its seconds and the peak of this process."""
    start, used = time.perf_counter(), time.process_time()
    found = part()
    return {
        **found,
        "wall_s": round(time.perf_counter() - start, 1),
        "processor_s": round(time.process_time() - used, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def apart(arguments: list[str]) -> dict[str, Any]:
    """A part of this module in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sd_shape", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=tuple(UNETS), default="sd14")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["float32", "float16"])
    parser.add_argument("--compute-capability", default="8.9")
    parser.add_argument("--no-plan", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the bundles there")
    parser.add_argument("--part", choices=("export", "plan", "check"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write the JSON there, too")
    given = parser.parse_args()
    if given.part:
        shape, precision, folder = given.shape, given.precision[0], given.folder
        if given.part == "export":
            found = measured(lambda: export(shape, precision, folder))
        elif given.part == "check":
            found = measured(lambda: check(folder))
        else:
            found = measured(lambda: plan(shape, precision, folder, given.compute_capability))
        print(json.dumps(found))
        return
    chosen = argparse.Namespace(shape=given.shape, precision=given.precision, device="cpu")
    results: dict[str, Any] = {}
    report = {"benchmark": "sd_shape", **environment(chosen), "results": results}
    report["versions"] |= {name: version(name) for name in PACKAGES}

    def keep() -> None:
        # After every part: they take minutes, and an interruption shall not lose those that are done.
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(report, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        for precision in given.precision:
            folder = (given.folder or Path(temporary)) / f"{given.shape}-{precision}"
            common = ["--shape", given.shape, "--precision", precision, "--folder", str(folder)]
            found = results[precision] = {"export": apart([*common, "--part", "export"])}
            keep()
            if "failed" in found["export"]:
                continue
            if not given.no_plan:
                capability = ["--compute-capability", given.compute_capability]
                found["plan"] = apart([*common, *capability, "--part", "plan"])
                keep()
            found["check"] = apart([*common, "--part", "check"])
            keep()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
