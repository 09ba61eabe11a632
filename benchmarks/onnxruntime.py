"""A whole edit in ONNX Runtime and in PyTorch eager, on the CPU: `python -m benchmarks.onnxruntime`.

Two questions, one run. How near: pairs of prompts of the scene suite, edited by both, compared by pictures and maps.
How fast: the same edit by all in turn, so that whatever else the machine does falls on both alike; wall time, and time
of the processor over all threads, which waiting for other processes does not lengthen. Prints JSON.

Eager is there twice. "pytorch" is this project's own runner: linear weights packed for oneDNN, the prompt projected
once per edit. "pytorch_plain" is what diffusers does: its modules as they are, the prompt projected at every step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapedit import AdapEditPipeline, EditRequest, EditResult
from adapedit.model import EditModel, checkpoint_of, load_model, unet_of
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_export.export import export_bundle
from adapedit_export.options import ExportOptions, Precision
from benchmarks.common import environment
from benchmarks.quality.suite import scene_suite

GOAL = 1.5


def pairs(count: int, steps: int) -> list[EditRequest]:
    """The first edits of the suite, by the method's defaults."""
    return [
        EditRequest.make(
            source_prompt=case.source_prompt,
            target_prompt=case.target_prompt,
            seed=case.seed,
            num_inference_steps=steps,
        )
        for case in scene_suite(limit=count)
    ]


def differences(one: EditResult, other: EditResult) -> dict[str, float]:
    """Grey levels between the pictures, and the largest difference of the averaged maps."""
    levels = [
        np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16))
        for a, b in ((one.source_image, other.source_image), (one.target_image, other.target_image))
    ]
    maps = [
        np.abs(a - b).max()
        for a, b in ((one.source_maps, other.source_maps), (one.target_maps, other.target_maps))
    ]
    return {
        "grey_levels_largest": float(np.max(levels)),
        "grey_levels_mean": float(np.mean(levels)),
        "maps_largest": float(np.max(maps)),
    }


def parity(pipes: dict[str, AdapEditPipeline], requests: Sequence[EditRequest]) -> dict[str, Any]:
    """Every pipeline against PyTorch in float32, over all pairs."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pipes if name != "pytorch"}
    for request in requests:
        expected = pipes["pytorch"].edit_batch([request])[0]
        for name, rows in found.items():
            rows.append(differences(pipes[name].edit_batch([request])[0], expected))
    return {
        name: {
            "pairs": len(rows),
            "grey_levels_largest": max(row["grey_levels_largest"] for row in rows),
            "grey_levels_mean": statistics.fmean(row["grey_levels_mean"] for row in rows),
            "pairs_within_one_grey_level": sum(row["grey_levels_largest"] <= 1 for row in rows),
            "maps_largest": max(row["maps_largest"] for row in rows),
        }
        for name, rows in found.items()
        if rows
    }


def timed(pipe: AdapEditPipeline, request: EditRequest) -> tuple[float, float, dict[str, float]]:
    """Wall and processor seconds of an edit, and the pipeline's own laps."""
    used, start = time.process_time(), time.perf_counter()
    result = pipe.edit_batch([request])[0]
    return time.perf_counter() - start, time.process_time() - used, dict(result.timings)


def in_plain_torch(model: EditModel) -> EditModel:
    """The same model with a runner of its own."""
    runner = PyTorchRunner(unet_of(model), map_divisor=model.facts.map_divisor)
    return dataclasses.replace(model, runner=runner)


def speed(systems: dict[str, AdapEditPipeline], request: EditRequest, repeats: int) -> dict[str, Any]:
    """All in turn, `repeats` times after one that warms up, every other turn backwards; the last against the others."""
    runs: dict[str, list[tuple[float, float, dict[str, float]]]] = {name: [] for name in systems}
    for turn in range(repeats + 1):
        names = list(systems) if turn % 2 else list(systems)[::-1]
        for name in names:
            run = timed(systems[name], request)
            if turn:
                runs[name].append(run)
    found: dict[str, Any] = {
        name: {
            "wall_s_median": statistics.median(run[0] for run in rows),
            "wall_s_least": min(run[0] for run in rows),
            "processor_s_median": statistics.median(run[1] for run in rows),
            "processor_s_least": min(run[1] for run in rows),
            "laps_s_median": {lap: statistics.median(run[2][lap] for run in rows) for lap in rows[0][2]},
            "runs": [{"wall_s": wall, "processor_s": processor} for wall, processor, _ in rows],
        }
        for name, rows in runs.items()
    }
    *others, last = systems
    ratios = {other: ratios_of(found, runs, other, last) for other in others}
    return {"steps": request.num_inference_steps, "times_faster_than": ratios, **found}


def ratios_of(found: dict[str, Any], runs: dict[str, list[Any]], one: str, other: str) -> dict[str, float]:
    """How many times faster the other is, by each measure."""
    ratios = {
        key: found[one][key] / found[other][key]
        for key in ("wall_s_median", "wall_s_least", "processor_s_median", "processor_s_least")
    }
    turns = zip(runs[one], runs[other], strict=True)
    ratios["wall_s_median_of_turns"] = statistics.median(a[0] / b[0] for a, b in turns)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin", help="a checkpoint with the built-in model's words")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=20, help="of the comparison of pictures; 0: none")
    parser.add_argument("--repeats", type=int, default=5, help="of the timing; 0: none")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--halves", action="store_true", help="compare float16 and mixed, too")
    parser.add_argument("--out", type=Path, help="write the JSON there, too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_model(given.model)
    pipes = {"pytorch": AdapEditPipeline(model)}
    precisions = list(Precision) if given.halves else [Precision.FLOAT32]
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            out = Path(folder) / precision.value
            export_bundle(checkpoint_of(model), out, ExportOptions(precision=precision, check_steps=0))
            pipes[precision.value] = AdapEditPipeline.from_bundle(out, verify=False)
        chosen = {name: value for name, value in vars(given).items() if name != "out"}
        environs = environment(argparse.Namespace(**chosen, device="cpu"))
        report: dict[str, Any] = {"benchmark": "onnxruntime", **environs}
        if given.repeats:
            request = pairs(1, given.steps)[0]
            report["goal_times_faster"] = GOAL
            systems = {
                "pytorch_plain": AdapEditPipeline(in_plain_torch(model)),
                "pytorch": pipes["pytorch"],
                "onnxruntime": pipes["float32"],
            }
            report["speed"] = speed(systems, request, given.repeats)
        if given.pairs:
            report["parity"] = parity(pipes, pairs(given.pairs, given.steps))
    text = json.dumps(report, indent=2)
    print(text)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
