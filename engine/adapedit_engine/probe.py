"""Probing: a diffusers scheduler's `step` asked what it does to known inputs, until it is known as numbers."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_kernels.errors import AdapEditError

WORKING = "DDIM, DDPM, Euler, Euler ancestral, LCM, TCD, DPM-Solver++ and DEIS with solver_order 1 or 2"
ELEMENTS = 64  # of a probe: enough to tell proportionality from chance


class ScheduleError(AdapEditError):
    """A scheduler whose step is not a fixed combination of sample, model output, noise and one step back."""


def probe(scheduler: Any, name: str, options: dict[str, Any]) -> dict[str, list[float]]:
    """The tables of a scheduler that is set to its steps, by the names of `Schedule`.

    In float64, or else in float32, in which some schedulers draw their noise always.
    """
    try:
        return _Probe(scheduler, name, options, torch.float64).tables()
    except ScheduleError:
        return _Probe(scheduler, name, options, torch.float32).tables()


@dataclass(frozen=True)
class _Step:
    """x' = a x + b output + c noise + what the step before kept of its own x and output."""

    scale: float
    a: float
    b: float
    c: float
    from_sample: float = 0.0
    from_output: float = 0.0

    def of(self, sample: Tensor, output: Tensor, noise: Tensor) -> Tensor:
        return self.a * sample + self.b * output + self.c * noise

    @property
    def size(self) -> float:
        return abs(self.a) + abs(self.b) + abs(self.c)


class _Probe:
    def __init__(self, scheduler: Any, name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
        self.scheduler, self.name, self.options = scheduler, name, options
        self.noise = torch.randn(1, 1, 1, ELEMENTS, dtype=dtype, generator=torch.Generator().manual_seed(0))
        self.draws = "generator" in inspect.signature(scheduler.step).parameters
        self.looks_back = scheduler.config.get("solver_order", 1) == 2

    def tables(self) -> dict[str, list[float]]:
        """Raises `ScheduleError` where there is more to the scheduler than tables can say."""
        count = len(self.scheduler.timesteps)
        first = [self.row(i, warm=False) for i in range(count)]
        rows = [self.row(i, warm=i > 0) for i in range(count)] if self.looks_back else first
        self.check_history(rows)
        tables = {
            "input_scale": [row.scale for row in rows],
            "sample_weight": [row.a for row in rows],
            "output_weight": [row.b for row in rows],
            "noise_weight": [row.c for row in rows],
        }
        if self.looks_back:
            tables |= {
                "history_sample_weight": [*(row.from_sample for row in rows[1:]), 0.0],
                "history_output_weight": [*(row.from_output for row in rows[1:]), 0.0],
                "first_sample_weight": [row.a for row in first],
                "first_output_weight": [row.b for row in first],
            }
        return tables

    def row(self, index: int, *, warm: bool) -> _Step:
        """One step from unit inputs in the first two elements and none in the others.

        warm: the step before was run, with unit inputs in the third and fourth.
        """
        noise = self.noise
        sample, output = torch.zeros_like(noise), torch.zeros_like(noise)
        sample[..., 0], output[..., 1] = 1, 1
        there = self.at(index)
        timestep = self.scheduler.timesteps[index]
        scale = float(there.scale_model_input(sample, timestep)[..., 0])
        before = torch.zeros_like(sample), torch.zeros_like(output)
        if warm:
            before[0][..., 2], before[1][..., 3] = 1, 1
            there = self.after(index - 1, *before)
        result = self.step(there, index, sample, output)
        c = float((result[..., 4:] * noise[..., 4:]).sum() / noise[..., 4:].square().sum())
        c = 0.0 if abs(c) < 1e-9 else c
        a, b, d, e = (result - c * noise).flatten()[:4].tolist()
        found = _Step(scale, a, b, c, d, e) if warm else _Step(scale, a, b, c)
        self.check_linear(index, found, warm)
        return found

    def check_linear(self, index: int, found: _Step, warm: bool) -> None:
        noise = self.noise
        sample, output = 30 * noise.flip(-1), 30 * noise.roll(7, -1)
        older, old = 30 * noise.roll(11, -1), 30 * noise.roll(17, -1)
        there = self.after(index - 1, older, old) if warm else self.at(index)
        expected = found.of(sample, output, noise) + found.from_sample * older + found.from_output * old
        size = 100 * (found.size + abs(found.from_sample) + abs(found.from_output))
        if not _close(self.step(there, index, sample, output), expected, size):
            raise ScheduleError(
                f"{self.name}'s step is no fixed combination of sample, output and one noise; "
                f"these work: {WORKING}"
            )

    def check_history(self, rows: list[_Step]) -> None:
        """Run a trajectory with one scheduler object: a history shows as a difference from the tables."""
        running, sample = copy.deepcopy(self.scheduler), self.noise.flip(-1) * 3
        kept = torch.zeros_like(sample)
        for index, row in enumerate(rows):
            output = self.noise.roll(3 * index + 1, -1)
            try:
                result = self.step(running, index, sample, output)
            except Exception:
                result = torch.full_like(sample, torch.nan)
            expected = row.of(sample, output, self.noise) + kept
            if not _close(result, expected, 1 + float(sample.abs().max())):
                raise ScheduleError(f"{self.name} keeps a history of earlier steps; these work: {WORKING}")
            following = rows[index + 1] if index + 1 < len(rows) else row
            kept = following.from_sample * sample + following.from_output * output
            sample = result

    def at(self, index: int) -> Any:
        """A scheduler that has not stepped yet and is about to take step `index`."""
        there = copy.deepcopy(self.scheduler)
        if hasattr(there, "set_begin_index"):
            there.set_begin_index(index)
        return there

    def after(self, index: int, sample: Tensor, output: Tensor) -> Any:
        """A scheduler whose first step was step `index`."""
        there = self.at(index)
        self.step(there, index, sample, output)
        return there

    def step(self, scheduler: Any, index: int, sample: Tensor, output: Tensor) -> Tensor:
        """One step with `self.noise` for noise; moves the scheduler's own counters."""
        drawn = {"generator": torch.Generator().manual_seed(0)} if self.draws else {}
        timestep = scheduler.timesteps[index]
        scheduler.scale_model_input(sample, timestep)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            result = scheduler.step(output, timestep, sample, return_dict=False, **drawn, **self.options)[0]
        return result.to(sample.dtype)


def _close(result: Tensor, expected: Tensor, size: float) -> bool:
    return torch.allclose(result, expected, rtol=1e-5, atol=1e-5 * size)
