"""One edit and the loop in it: `python -m benchmarks.latency`.

Whole edits from prompts to pictures, in one pass and in two, by PyTorch and by ONNX Runtime (from a bundle that is
exported first), beside what others do for the same pictures: diffusers' plain loop for both prompts, and the eager
controller way, with a first pass of its own as the authors run it. Then the loop alone: an edit's four rows against
the same rows unedited, through the same runner. `--beside N` runs it beside N processes that compute. Before any time
counts the pictures of all ways are compared.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapedit.edit import complete, make_context
from adapedit.loading import load_bundle
from adapedit.methods import AdapEdit, PromptToPrompt
from adapedit.model import checkpoint_of
from adapedit.pipeline import AdapEditPipeline
from adapedit.sharing import Caches
from adapedit_engine.cache import ProjectionCache
from adapedit_engine.scheduler import Scheduler
from adapedit_export.export import export_bundle
from adapedit_export.options import ExportOptions
from benchmarks import common
from benchmarks.baselines.edits import OtherWays

WAYS = {"single pass": AdapEdit(), "two passes": AdapEdit(two_pass=True)}
LOOP = PromptToPrompt(cross_replace_steps=0.8, self_replace_steps=0.4)
BUSY = "import torch\nwhile True: torch.randn(256, 256) @ torch.randn(256, 256)"


def main() -> None:
    options = common.arguments(__doc__, steps=50, repeats=3, beside=0).parse_args()
    if options.quick:
        options.steps, options.repeats = 3, 1
    with tempfile.TemporaryDirectory() as folder, beside(options.beside):
        pipes = runners(options, Path(folder))
        apart = parity(pipes, options.steps)
        wait = common.waiting(options.device)
        whole = common.timed(edits(pipes, options.steps), options.repeats, wait)
        loops = common.timed(same_rows(pipes, options.steps), options.repeats, wait)
    ratios = {
        f"{name}: the edit's loop over the plain one": round(
            loops[f"{name}, edit"]["median_s"] / loops[f"{name}, plain"]["median_s"], 3
        )
        for name in pipes
    }
    if "onnxruntime" in pipes:
        times = [whole[f"{name}, single pass"]["median_s"] for name in ("pytorch", "onnxruntime")]
        ratios["PyTorch over ONNX Runtime, single pass"] = round(times[0] / times[1], 3)
    common.write("latency", options, {"parity": apart, "edits": whole, "loops": loops, "ratios": ratios})


def runners(options: Any, folder: Path) -> dict[str, Any]:
    """Pipelines by the name of their runner: the checkpoint's own, and on the CPU a bundle's."""
    pipe = common.pipeline(options)
    pipes = {"pytorch": pipe}
    if options.device == "cpu" and options.dtype == "float32":
        export_bundle(checkpoint_of(pipe.model), folder / "bundle", ExportOptions(check_steps=0))
        pipes["onnxruntime"] = AdapEditPipeline(load_bundle(folder / "bundle"))
    return pipes


def parity(pipes: dict[str, Any], steps: int) -> dict[str, int]:
    """Grey levels between the pictures of runners and of others' ways, for one edit. Raises `SystemExit` above 1."""
    asked = common.request(0, steps, method=LOOP)
    results = {name: pipe.edit_batch([asked])[0] for name, pipe in pipes.items()}
    first, others = results["pytorch"], OtherWays(pipes["pytorch"])
    found = {name: common.grey_levels(first, result) for name, result in results.items()}
    ours = np.stack([np.asarray(image, np.float32) for image in (first.source_image, first.target_image)])
    for name, theirs in {
        "diffusers": others.plain(asked)[:1],
        "eager controller": others.eager(asked),
    }.items():
        pictures = theirs.permute(0, 2, 3, 1).float().cpu().mul(255).round().numpy()
        found[name] = int(np.abs(pictures - ours[: len(pictures)]).max())
    return {name: common.gate(apart) for name, apart in found.items()}


def edits(pipes: dict[str, Any], steps: int) -> dict[str, Callable[[], Any]]:
    """Whole edits by every runner, and by others."""
    others, asked = OtherWays(pipes["pytorch"]), common.request(0, steps)
    ours = {
        f"{name}, {way}": partial(pipe.edit_batch, [common.request(0, steps, method=method)])
        for name, pipe in pipes.items()
        for way, method in WAYS.items()
    }
    return {
        **ours,
        "diffusers, plain": partial(others.plain, asked),
        "eager controller, two passes": partial(others.eager, asked),
    }


def same_rows(pipes: dict[str, Any], steps: int) -> dict[str, Callable[[], Any]]:
    """An edit's loop and the same rows unedited; text is encoded and projected beforehand, nothing decoded."""
    found: dict[str, Callable[[], Any]] = {}
    for name, pipe in pipes.items():
        model = pipe.model
        asked = complete(common.request(0, steps, method=LOOP), model)
        context = make_context(asked, model, Caches.of(model.runner))
        plans = {"edit": LOOP.plan(context, None), "plain": context.plan(("source", "target"))}
        projections = ProjectionCache(model.runner, 2**28)
        found |= {
            f"{name}, {way}": partial(run, model.runner, plan, projections) for way, plan in plans.items()
        }
    return found


def run(runner: Any, plan: Any, projections: Any) -> torch.Tensor:
    """The plan's last latents."""

    def alone() -> Any:
        (outcome,) = yield [plan]
        return outcome.latents

    with runner:
        scheduler = Scheduler(runner, projections=projections)
        ticket = scheduler.submit(alone())
        scheduler.drain()
        latents: torch.Tensor = ticket.future.result()
    return latents


@contextmanager
def beside(count: int) -> Iterator[None]:
    """So many processes that compute for the length of the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
