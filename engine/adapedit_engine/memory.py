"""How much memory plans and calls take, known before they run."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from adapedit_engine.models.controls import Controls
from adapedit_engine.models.unet import OUTPUT_NAMES
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners.base import Runner

CallBytes: TypeAlias = Callable[[int, tuple[int, int]], int]
"""Memory that a call needs, of its rows and of the height and width of its latents."""

GOOD_CALLS, MAX_PATIENCE = 128, 64
"""Calls that must go well before larger ones are tried; by how much that grows at most."""


def plan_bytes(plan: EditPlan, runner: Runner) -> int:
    """Bytes on the device from a plan's first step to its outcome: its buffers, its prompts, what it feeds.

    From shapes alone; the outcome is a copy of its buffers.
    """
    specs, item = runner.specs, torch.empty(0, dtype=runner.dtype).element_size()
    height, width = specs.map_size(*plan.latents.shape[-2:])
    latents = plan.latents.numel()
    projected = 2 * sum(layer.channels for layer in specs.cross_layers)
    floats = 4 * latents + plan.tracks * plan.steps * 7
    floats += sum(tensor.numel() for name, tensor in plan.tensors().items() if "." in name)
    if plan.needs_maps:
        floats += 2 * plan.tracks * height * width * (plan.tokens + 2 * specs.feature_channels)
    if plan.noise is not None or plan.source_latents is not None:
        floats += latents * plan.steps
    floats += latents * plan.steps if plan.record else 0
    changing = 0 if plan.unconditional_steps is None else plan.steps
    return 4 * floats + item * (plan.rows + changing) * plan.tokens * projected


class CallTable:
    """Bytes of calls by their rows, measured at one size of latents: a `CallBytes`.

    Between two numbers of rows the larger one's, beyond the largest in proportion; other sizes by their pixels.
    """

    def __init__(self, measured: Mapping[int, int], size: tuple[int, int]) -> None:
        self.measured, self.size = dict(sorted(measured.items())), size

    def __call__(self, rows: int, size: tuple[int, int]) -> int:
        known = list(self.measured)
        place = min(bisect_left(known, rows), len(known) - 1)
        pixels = size[0] * size[1] / (self.size[0] * self.size[1])
        return int(self.measured[known[place]] * max(1.0, rows / known[place]) * pixels)


@torch.inference_mode()
def measure_call_bytes(
    runner: Runner, *, size: tuple[int, int], tokens: int, rows: tuple[int, ...] = (2, 4, 8, 16, 32)
) -> CallTable:
    """The peak of one edited call with maps on CUDA, for each number of rows. runner: open; size: of the latents."""
    return CallTable({count: _peak(runner, size, tokens, count) for count in (rows[0], *rows)}, size)


def _peak(runner: Runner, size: tuple[int, int], tokens: int, rows: int) -> int:
    specs, device = runner.specs, runner.device
    height, width = specs.map_size(*size)
    pixels, layers = height * width, len(specs.self_layers)
    controls = Controls.identity(batch=rows, tokens=tokens, pixels=pixels, layers=layers, device=device)
    text = torch.zeros(rows, tokens, specs.text_channels, device=device, dtype=runner.dtype)
    inputs = {
        "sample": torch.zeros(rows, specs.in_channels, *size, device=device, dtype=runner.dtype),
        "timestep": torch.ones(rows, device=device, dtype=torch.float32),
        **runner.condition(text),
        **{
            name: torch.zeros(rows, *shape, device=device, dtype=torch.float32)
            for name, shape in specs.conditioning.items()
        },
        **controls.as_dict(),
    }
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    runner.infer(inputs, OUTPUT_NAMES)
    return torch.cuda.max_memory_allocated(device) - before


class CallRows:
    """The rows that one call may have: fewer once memory ran out, and more again after a run of good calls.

    What took the memory may have been a neighbour's. Twice as many rows are tried then; where memory runs out again, it
    takes twice as many good calls until the next try: a limit that is really there costs ever fewer calls.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = self.now = max_rows
        self._good, self._patience, self._trying = 0, 1, False

    def ran_out(self, rows: int) -> None:
        """Memory ran out in a call of so many rows."""
        self.now = max(1, min(self.now, rows // 2))
        if self._trying:  # one try, however many calls of it fail
            self._patience = min(2 * self._patience, MAX_PATIENCE)
        self._good, self._trying = 0, False

    def went_well(self) -> None:
        """A call ended without an error."""
        self._good += 1

    @property
    def larger(self) -> int | None:
        """The rows to be tried next; None while it is too early, or where there are no more."""
        due = self.now < self.max_rows and self._good >= GOOD_CALLS * self._patience
        return min(2 * self.now, self.max_rows) if due else None

    def grow(self) -> None:
        """Try `larger`."""
        self.now = self.larger or self.now
        self._good, self._trying = 0, True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    said: Any = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said
