"""How much memory plans and calls take, known before they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from adapedit_engine.models.controls import Controls
from adapedit_engine.models.unet import OUTPUT_NAMES
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner

CallBytes: TypeAlias = Callable[[int, tuple[int, int]], int]
"""Memory that a call needs, of its rows and of the height and width of its latents."""


def plan_bytes(plan: EditPlan, runner: Runner) -> int:
    """Bytes on the device from a plan's first step to its outcome: tables, prompt, latents, sums, layout.

    From shapes alone, the larger case taken where a plan may leave something out.
    """
    specs, (_, channels, height, width) = runner.specs, plan.latents.shape
    tracks, tokens, steps = plan.tracks, plan.tokens, plan.steps
    rows = tracks * plan.guidance
    map_height, map_width = specs.map_size(height, width)
    pixels, layers = map_height * map_width, len(specs.self_layers)
    latents = tracks * channels * height * width
    projected = 2 * sum(layer.channels for layer in specs.cross_layers)
    # Everything that a layout joins is there twice: alone, and in the batch.
    floats = 3 * latents + 2 * rows * (tokens * tokens + tokens + pixels) + steps * rows * (tokens + 2)
    floats += 2 * tracks * pixels * (tokens + specs.feature_channels) if plan.needs_maps else 0
    floats += 2 * latents if plan.schedule.looks_back else 0
    indices = 3 * steps * layers * rows if plan.edited else 0
    item = torch.empty(0, dtype=runner.dtype).element_size()
    # One more copy of the rows' prompts where they change from step to step.
    prompts = 2 * rows if plan.unconditional_steps is None else 3 * rows + steps
    joined = 4 * floats + 8 * indices + item * prompts * tokens * projected
    alone = latents * steps if plan.noise is not None or plan.source_latents is not None else 0
    alone += 2 * latents * steps if plan.record else 0
    return joined + 4 * alone


def measure_call_bytes(
    runner: Runner, *, size: tuple[int, int], tokens: int, rows: tuple[int, int] = (2, 4)
) -> CallBytes:
    """The peak of one edited UNet call with maps, as a straight line through two measured batch sizes.

    runner: open, on CUDA; elsewhere nothing is measured, and calls count as nothing. size: height and width of the
    latents that are measured; other sizes take as much by their pixels, attention included, which is fused.
    """
    if runner.device.type != "cuda":
        return lambda count, of: 0
    # The first call of all makes what stays (workspaces), and is none to go by.
    _, few, many = (_peak(runner, size, tokens, count) for count in (rows[0], *rows))
    slope = max(0.0, (many - few) / (rows[1] - rows[0]))
    base = max(0.0, few - slope * rows[0])

    def call_bytes(count: int, of: tuple[int, int]) -> int:
        pixels = of[0] * of[1] / (size[0] * size[1])
        return int(1.1 * (base * max(1.0, pixels) + slope * count * pixels))

    return call_bytes


@torch.inference_mode()
def _peak(runner: Runner, size: tuple[int, int], tokens: int, rows: int) -> int:
    specs, device = runner.specs, runner.device
    height, width = specs.map_size(*size)
    layers = len(specs.self_layers)
    controls = Controls.identity(
        batch=rows, tokens=tokens, pixels=height * width, layers=layers, device=device
    )
    text = torch.zeros(rows, tokens, specs.text_channels, device=device, dtype=runner.dtype)
    inputs = {
        "sample": torch.zeros(rows, specs.in_channels, *size, device=device, dtype=runner.dtype),
        "timestep": torch.ones(rows, device=device),
        **runner.condition(text),
        **controls.as_dict(),
    }
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    runner.infer(inputs, OUTPUT_NAMES)
    return torch.cuda.max_memory_allocated(device) - before
