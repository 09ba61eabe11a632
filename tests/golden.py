"""Whether two checkouts give the same edits on this machine: `python tests/golden.py OLD NEW`.

Each runs the same edits of the same small random models through the public pipeline, in a process of its own: in
PyTorch, and from a bundle that it exports itself in ONNX Runtime. Compared are final latents, pictures, tau, relations,
S and maps, bit for bit or by a norm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (".", "kernels", "engine", "export")
PYTORCH = "pytorch"
SIDE, STEPS = 32, 10
"""Pixels of a picture, and steps of an edit that names none: DDIM's stride fits them."""

DOG, SITTING = "a red dog standing on the grass", "a red dog sitting on the grass"
SMALL, CAT = "a small red dog sitting on the grass", "a red cat standing on the grass"
RIDERS = {
    "source_prompt": "a photo of a cat riding on a bicycle",
    "target_prompt": "a photo of a dog riding on a bicycle",
}
P2P = "prompt-to-prompt"
NULL_TEXT = {"name": "null-text", "inner_steps": 2, "cache": "off"}
UNET: dict[str, Any] = {
    "sample_size": SIDE // 2,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
"""Its middle is coarse enough for self-attention to be the source's."""
BUNDLED = (
    "single pass|two passes|single pass, a word more|single pass, blend|single pass, guidance until|single pass, dpm++|"
    "both prompts|prompt-to-prompt|equalizer|masactrl|sdedit|shared source|unrelated batch|direct|edit-friendly"
).split("|")
"""The cases that are run from a bundle as well."""

Edit = dict[str, Any]
"""Fields of a request without its method's; "knobs" are those. "model" is the checkpoint's folder, by default sd1."""


def edit(method: str, target: str = SITTING, fields: Edit | None = None, **knobs: Any) -> Edit:
    """An edit of the dog by a method. The passes of AdapEdit are its knob `two_pass`."""
    knobs = {"two_pass": False, **knobs} if method == "adapedit" else knobs
    prompts = {"source_prompt": DOG, "target_prompt": target}
    return {**prompts, "num_inference_steps": STEPS, "knobs": {"name": method, **knobs}, **(fields or {})}


def inverted(inversion: Any, method: str = P2P, steps: int = STEPS, **knobs: Any) -> Edit:
    """An edit of the made picture."""
    fields = {"image": True, "inversion": inversion, "num_inference_steps": steps}
    return edit(method, fields=fields, **knobs)


def cases_of_passes() -> dict[str, list[Edit]]:
    """See `cases`: what AdapEdit does in one pass and in two."""
    found: dict[str, list[Edit]] = {}
    for two, name in ((False, "single pass"), (True, "two passes")):
        twice: dict[str, Any] = {"two_pass": two}
        found |= {
            name: [edit("adapedit", **twice)],
            f"{name}, a word more": [edit("adapedit", SMALL, **twice)],
            f"{name}, released": [edit("adapedit", variant="released", **twice)],
            f"{name}, no fwt": [edit("adapedit", fwt=False, **twice)],
            f"{name}, no dps": [edit("adapedit", dps=False, **twice)],
            f"{name}, no mask": [edit("adapedit", mask=False, **twice)],
            f"{name}, blend": [edit("adapedit", CAT, local_blend=True, **twice)],
            f"{name}, guidance until": [edit("adapedit", SMALL, {"guidance_until": 0.6}, **twice)],
            f"{name}, dpm++": [edit("adapedit", SMALL, {"solver": "dpm++"}, **twice)],
            f"{name}, v-prediction": [edit("adapedit", SMALL, {"model": "sd2"}, **twice)],
        }
    return found


def cases() -> dict[str, list[Edit]]:
    """The edits of one call of the pipeline each, by the case's name."""
    both: dict[str, Any] = {"two_pass": True, "observed_prompts": "both"}
    softmax = {"threshold_mode": "absolute", "normalise": "softmax", "temperature": 0.1, "alpha_tau": 0.05}
    numbers = {"lambda_tau": 0.7, "lambda_s": 0.8, "lambda_spatial": 1.2, "alpha_tau": 0.4, "spatial_grow": 1}
    louder = ({"word": "sitting", "value": 2.0}, {"word": "red", "value": 0.5})
    several = {"ddim": 10, "direct": 20, "edit-friendly": 5}
    large = {"num_inference_steps": 20, "height": 48, "width": 32}
    same, long, short = {"seed": 1}, {"num_inference_steps": 20}, {"num_inference_steps": 5}
    return cases_of_passes() | {
        "both prompts": [edit("adapedit", **both)],
        "both prompts, blend": [edit("adapedit", CAT, local_blend=True, blend_difference=0.5, **both)],
        "numbers": [edit("adapedit", SMALL, spatial_grow_several=2, self_replace_steps=0.5, **numbers)],
        "softmax": [edit("adapedit", **softmax)],
        "not centred": [edit("adapedit", centre=False)],
        "20 steps, 48 x 32": [edit("adapedit", SMALL, large)],
        "prompt-to-prompt": [edit(P2P)],
        "equalizer": [edit(P2P, equalizer=louder, word_replace_steps=({"word": "red", "value": 0.4},))],
        "prompt-to-prompt, blend": [edit(P2P, CAT, local_blend=("dog", "cat"), self_replace_steps=0.6)],
        "masactrl": [edit("masactrl")],
        "sdedit": [edit("sdedit")],
        "plain": [edit("plain")],
        "instruct-pix2pix": [edit("instruct-pix2pix", fields={"image": True, "model": "editor"})],
        "shared source": [edit("adapedit", to, same) for to in (SITTING, SMALL, CAT)],
        "shared source, mixed": [
            edit("adapedit", SITTING, same, two_pass=True),
            edit("adapedit", CAT, same, two_pass=True, lambda_tau=0.5),
            edit(P2P, SMALL, same),
        ],
        "unrelated batch": [
            edit("adapedit", two_pass=True),
            edit("adapedit", fields={**RIDERS, **long}),
            edit("adapedit", CAT, {"seed": 5}, local_blend=True, lambda_tau=0.6, fwt=False),
            edit(P2P, SMALL, {**short, "guidance_until": 0.6}),
            edit("masactrl", fields={**RIDERS, **long, "seed": 7}),
            edit("sdedit", strength=0.4),
            edit("plain", CAT, {"solver": "dpm++"}),
        ],
        "ddim": [inverted("ddim")],
        "direct": [inverted("direct", "adapedit")],
        "direct, targets": [inverted({"name": "direct", "targets": 1}, "adapedit", two_pass=True)],
        "direct, masactrl": [inverted("direct", "masactrl")],
        "null-text": [inverted(NULL_TEXT, "adapedit")],
        "edit-friendly": [inverted("edit-friendly", "adapedit")],
        "edit-friendly, prompt-to-prompt": [inverted("edit-friendly")],
        "sdedit of a picture": [edit("sdedit", fields={"image": True})],
        "inversions in a batch": [inverted(how, steps=steps) for how, steps in several.items()]
        + [inverted(NULL_TEXT, steps=4)],
    }


def make_models(folder: Path) -> None:
    """Write the checkpoints "sd1", "sd2" (linear projections, v-prediction) and "editor" (InstructPix2Pix's layout)."""
    sys.path.insert(0, str(ROOT))
    from tests.helpers.tiny_model import STABLE_DIFFUSION_2, save_tiny_model

    heads = {**STABLE_DIFFUSION_2, "attention_head_dim": (2, 8, 8)}
    save_tiny_model(folder / "sd1", unet=UNET)
    save_tiny_model(folder / "sd2", unet={**UNET, **heads}, prediction_type="v_prediction")
    save_tiny_model(folder / "editor", unet={**UNET, "in_channels": 8})
    index = folder / "editor" / "model_index.json"
    described = {**json.loads(index.read_text()), "_class_name": "StableDiffusionInstructPix2PixPipeline"}
    index.write_text(json.dumps(described))


# What runs in a checkout.


def record(out: Path, models: Path, chosen: Iterable[str]) -> None:
    """Run cases, named "runner: case", and write a safetensors file for each, or a text with its error."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    opened: dict[tuple[str, str], Any] = {}
    for name in chosen:
        runner, _, case = name.partition(": ")
        seed = zlib.crc32(case.encode()) % 1000  # no two cases share what a cache may keep
        tensors: dict[str, Tensor] = {}
        try:
            asked = [request_of({"seed": seed, **edit}) for edit in cases()[case]]
            model = asked[0][0]
            if (runner, model) not in opened:
                opened[runner, model] = open_pipeline(models / model, runner, out)
            results = opened[runner, model].edit_batch([request for _, request in asked])
            for i, result in enumerate(results):
                tensors |= {f"{kind} {i}": tensor for kind, tensor in tensors_of(result).items()}
            save_file(tensors, out / f"{name}.safetensors")
        except Exception as error:
            told = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
            (out / f"{name}.txt").write_text(told)


def request_of(edit: Edit) -> tuple[str, Any]:
    """The checkpoint's name, and the request."""
    from adapedit import EditRequest

    fields = {name: edit[name] for name in edit if name not in ("knobs", "model")}
    if "image" in fields:
        spots = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        fields["image"] = Image.fromarray(spots).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return edit.get("model", "sd1"), EditRequest.make(**fields, method=edit["knobs"])


def open_pipeline(model: Path, runner: str, out: Path) -> Any:
    """The checkout's pipeline, on a checkpoint or on a bundle that it exports."""
    import adapedit.pipeline

    if Path(adapedit.__file__).parents[1] != Path.cwd():
        raise RuntimeError(f"{adapedit.__file__} is not in {Path.cwd()}")
    if runner == PYTORCH:
        return adapedit.pipeline.AdapEditPipeline.from_pretrained(model)
    bundle = out / model.name
    if not bundle.exists():
        command = [sys.executable, "-c", "from adapedit.cli import main; main()", "export", str(model)]
        done = subprocess.run([*command, "--out", str(bundle)], capture_output=True, text=True, cwd=out)
        if done.returncode:
            raise RuntimeError(f"the export failed: {done.stdout}{done.stderr}")
    return adapedit.pipeline.AdapEditPipeline.from_bundle(bundle, runner=runner)


def tensors_of(result: Any) -> dict[str, Tensor]:
    """What a result tells."""
    found: dict[str, Tensor] = {"latents": result.latents}
    for side in ("source", "target"):
        found[f"picture {side}"] = torch.from_numpy(np.array(getattr(result, f"{side}_image")))
        found[f"maps {side}"] = torch.from_numpy(getattr(result, f"{side}_maps")).clone()
    if result.spatial_map is not None:
        found["S"] = torch.from_numpy(result.spatial_map)
    for kind, name in (("tau", "word_steps"), ("relation", "relation")):
        values = [getattr(word, name) for word in result.words]
        found[kind] = torch.tensor([-1.0 if value is None else value for value in values])
    return {name: tensor.contiguous() for name, tensor in found.items()}


# What compares.


def run(checkouts: Sequence[Path], outs: Sequence[Path], models: Path, chosen: Sequence[str]) -> None:
    """Record the cases in all checkouts at once, each into its own folder, but those that are there."""
    # Without the script's own folder, whose packages of tests are called as those of a checkout.
    script = f"runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')"
    begin = [sys.executable, "-c", f"import runpy, sys; sys.path[:1] = []; {script}"]
    processes, started = [], time.monotonic()
    for checkout, out in zip(checkouts, outs, strict=True):
        done = {path.stem for path in out.glob("*: *")}
        missing = [name for name in chosen if name not in done]
        (out / "cases.json").write_text(json.dumps(missing))
        rooms = os.pathsep.join(str(checkout / room) for room in ROOMS)
        apart = {"PYTHONPATH": rooms, "XDG_CACHE_HOME": str(out / "cache"), "HF_HUB_OFFLINE": "1"}
        environment = {**os.environ, **apart, "OMP_NUM_THREADS": "1"}
        command = [*begin, "--record", str(out), "--models", str(models)]
        if missing:
            processes.append((checkout, subprocess.Popen(command, cwd=checkout, env=environment)))
    for checkout, process in processes:
        print(f"{checkout}: exit {process.wait()} after {time.monotonic() - started:.0f} s")


def compare(name: str, folders: Sequence[Path], tolerance: float) -> tuple[list[tuple[str, ...]], bool]:
    """Rows of the table for a case of OLD and NEW, and whether it passes: what OLD can't run does."""
    rows: list[tuple[str, ...]] = []
    found: list[dict[str, Tensor]] = []
    for side, folder in zip(("OLD", "NEW"), folders, strict=True):
        path, told = folder / f"{name}.safetensors", folder / f"{name}.txt"
        if path.exists():
            found.append(load_file(path))
        else:
            rows.append((f"{side} can't: {told.read_text() if told.exists() else 'its process ended'}",))
    if rows:
        return rows, rows[0][0].startswith("OLD")
    one, other = found
    good = True
    differences: dict[str, list[tuple[float, float]]] = {}
    for tensor in sorted(one.keys() | other.keys()):
        kind = tensor.split()[0]
        if tensor in one and tensor in other:
            largest, norm, passes = difference(one[tensor], other[tensor], tolerance)
            differences.setdefault(kind, []).append((largest, norm))
            good &= passes
        else:
            good &= tensor not in one
            rows.append((tensor, f"only in {'OLD' if tensor in one else 'NEW'}"))
    most = {
        kind: [max(numbers) for numbers in zip(*pairs, strict=True)] for kind, pairs in differences.items()
    }
    equal = [kind for kind, (_, norm) in most.items() if norm == 0]
    rows += [(" ".join(equal), "equal")] if equal else []
    rows += [
        (kind, "differ", f"{most[kind][0]:.1e}", f"{most[kind][1]:.1e}") for kind in most if kind not in equal
    ]
    return rows, good


def difference(one: Tensor, other: Tensor, tolerance: float) -> tuple[float, float, bool]:
    """The largest difference, its norm over that of `one` (0: all bits are equal), and whether that passes."""
    if one.shape != other.shape or one.dtype != other.dtype or not bool(other.isfinite().all()):
        return float("inf"), float("inf"), False
    if one.numpy().tobytes() == other.numpy().tobytes():
        return 0.0, 0.0, True
    apart = one.double() - other.double()
    largest, norm = float(apart.abs().max()), float(apart.norm() / one.double().norm().clamp(min=1e-12))
    if one.dtype == torch.uint8:  # grey levels, rounded from what may differ
        return largest, norm, tolerance > 0 and largest <= 1
    return largest, max(norm, 1e-300), norm <= tolerance  # bits may differ by the sign of a zero


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="OLD NEW")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative norm that passes; 0: bits")
    parser.add_argument("--only", default="", help='cases with this in their "runner: case"')
    parser.add_argument("--runner", action="append", help="pytorch and onnxruntime; may be repeated")
    parser.add_argument("--keep", type=Path, help="where results of an OLD that stays as it is are kept")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.record:
        record(asked.record, asked.models, json.loads((asked.record / "cases.json").read_text()))
        return 0
    checkouts = [path.resolve() for path in asked.checkouts]
    if len(checkouts) != 2 or not all((path / "adapedit" / "__init__.py").is_file() for path in checkouts):
        parser.error("give two folders of checkouts: OLD NEW")
    runners = asked.runner or [PYTORCH, "onnxruntime"]
    names = {runner: list(cases()) if runner == PYTORCH else BUNDLED for runner in runners}
    chosen = [f"{runner}: {name}" for runner in runners for name in names[runner]]
    chosen = [name for name in chosen if asked.only in name]
    if not chosen:
        parser.error(f"no case has {asked.only!r} in its name")
    with tempfile.TemporaryDirectory() as temporary:
        # Of another script or checkout the results are others.
        key = Path(__file__).read_bytes() + str(checkouts[0]).encode()
        kept, new = Path(asked.keep or temporary, f"{zlib.crc32(key):08x}"), Path(temporary, "new")
        models, folders = kept / "models", [kept / "old", new]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        if not models.exists():
            make_models(models)
        run(checkouts, folders, models, chosen)
        compared = [compare(name, folders, asked.tolerance) for name in chosen]
    line = "{:<42} {:<44} {:<7} {:>8} {:>8}".format
    print(line("case", "tensors", "bits", "max abs", "norm"))
    for name, (rows, _) in zip(chosen, compared, strict=True):
        print("\n".join(line(name, *row, *[""] * (4 - len(row))).rstrip() for row in rows))
    failed = [name for name, (_, good) in zip(chosen, compared, strict=True) if not good]
    print(f"{len(chosen) - len(failed)} of {len(chosen)} cases pass", *failed, sep="\nfailed: ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
