"""Schedules: a diffusers scheduler as a table, so that a step is x' = a x + b eps + c noise for every row."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_kernels.errors import AdapEditError

WORKING = "DDIM, DDPM, Euler, Euler ancestral, LCM, TCD, DPM-Solver++ of first order (solver_order=1)"
TELLING_STEPS = (
    10  # in fewer a history may not show, and whether a scheduler is refused should not depend on the steps
)
PROBE = 64  # elements of a probe: enough to tell proportionality from chance


class ScheduleError(AdapEditError):
    """A scheduler whose step is not a fixed combination of sample, model output and noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """T denoising steps, x' = sample_weight x + output_weight model(input_scale x) + noise_weight noise.

    All fields are [T] float64 tensors on the CPU, the first step first. `init_noise_sigma` is the factor that
    brings unit noise to the first step's latents.
    """

    timesteps: Tensor
    input_scale: Tensor
    sample_weight: Tensor
    output_weight: Tensor
    noise_weight: Tensor
    init_noise_sigma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("timesteps", "input_scale", "sample_weight", "output_weight", "noise_weight"):
            table = getattr(self, name)
            if table.ndim != 1 or table.shape != self.timesteps.shape or not table.isfinite().all():
                raise ScheduleError(
                    f"{name} has shape {tuple(table.shape)}; wanted one finite number per step"
                )
        if not len(self):
            raise ScheduleError("a schedule has at least one step, got none")

    def __len__(self) -> int:
        return self.timesteps.shape[0]

    @property
    def stochastic(self) -> bool:
        """Whether steps add noise, which a plan then has to bring."""
        return bool((self.noise_weight != 0).any())

    def tail(self, first_step: int) -> Schedule:
        """The schedule from `first_step` on: image to image starts in the middle of a trajectory."""
        if not 0 <= first_step < len(self):
            raise ScheduleError(f"first_step is {first_step}, wanted 0..{len(self) - 1}")
        return Schedule(
            timesteps=self.timesteps[first_step:],
            input_scale=self.input_scale[first_step:],
            sample_weight=self.sample_weight[first_step:],
            output_weight=self.output_weight[first_step:],
            noise_weight=self.noise_weight[first_step:],
            init_noise_sigma=self.init_noise_sigma,
        )

    @classmethod
    def from_scheduler(cls, scheduler: Any, num_inference_steps: int, **step_options: Any) -> Schedule:
        """Read the table off a diffusers scheduler by probing its own `step`; the scheduler is not changed.

        `step_options` go to every `step`, for example `eta` of DDIM. Raises `ScheduleError` for schedulers
        that keep a history (PNDM, LMS, multistep solvers), take more than one evaluation a step (Heun, KDPM2)
        or are not linear (clipping, thresholding).
        """
        if (
            isinstance(num_inference_steps, bool)
            or not isinstance(num_inference_steps, int)
            or num_inference_steps < 1
        ):
            raise ScheduleError(
                f"num_inference_steps is {num_inference_steps!r}, wanted a whole number of at least 1"
            )
        name = type(scheduler).__name__
        _refuse_known(scheduler, name)
        try:
            train_steps = int(scheduler.config.get("num_train_timesteps", TELLING_STEPS))
            if num_inference_steps < min(TELLING_STEPS, train_steps):
                _probe(_set(scheduler, min(TELLING_STEPS, train_steps)), name, step_options)
            fresh = _set(scheduler, num_inference_steps)
            rows = _probe(fresh, name, step_options)
            sigma = float(fresh.init_noise_sigma)
        except ScheduleError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ScheduleError(
                f"{name} can't be a table of steps ({reason}); these work: {WORKING}"
            ) from error
        columns = torch.tensor(rows, dtype=torch.float64).T
        return cls(
            timesteps=torch.as_tensor(fresh.timesteps).to("cpu", torch.float64),
            input_scale=columns[0],
            sample_weight=columns[1],
            output_weight=columns[2],
            noise_weight=columns[3],
            init_noise_sigma=sigma,
        )


def _refuse_known(scheduler: Any, name: str) -> None:
    config = getattr(scheduler, "config", None)
    if config is None or not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
        raise ScheduleError(f"got a {name}, wanted a diffusers scheduler; these work: {WORKING}")
    if getattr(scheduler, "order", 1) != 1:
        raise ScheduleError(f"{name} evaluates the model more than once a step; these work: {WORKING}")
    if config.get("solver_order", 1) != 1:
        raise ScheduleError(
            f"{name} with solver_order={config['solver_order']} keeps a history of its own; "
            f"use solver_order=1, or one of: {WORKING}"
        )
    for setting in ("clip_sample", "thresholding"):
        if config.get(setting):
            raise ScheduleError(
                f"{name} with {setting}=True is not linear in the latents; "
                f"use {name}.from_config(scheduler.config, {setting}=False)"
            )


def _set(scheduler: Any, steps: int) -> Any:
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(steps)
    return fresh


def _probe(scheduler: Any, name: str, options: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    """Rows of the table, in float64, or else in float32, in which some schedulers draw their noise always."""
    try:
        return _Probe(scheduler, name, options, torch.float64).rows()
    except ScheduleError:
        return _Probe(scheduler, name, options, torch.float32).rows()


class _Probe:
    """A scheduler, set to its steps, that is asked what it does to known inputs."""

    def __init__(self, scheduler: Any, name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
        self.scheduler, self.name, self.options = scheduler, name, options
        self.noise = torch.randn(1, 1, 1, PROBE, dtype=dtype, generator=torch.Generator().manual_seed(0))
        self.draws = "generator" in inspect.signature(scheduler.step).parameters

    def rows(self) -> list[tuple[float, float, float, float]]:
        rows = [self.row(i) for i in range(len(self.scheduler.timesteps))]
        self.check_history(rows)
        return rows

    def row(self, index: int) -> tuple[float, float, float, float]:
        """input_scale, a, b, c of one step, from unit inputs in the first two elements and none in the others."""
        noise = self.noise
        sample, output = torch.zeros_like(noise), torch.zeros_like(noise)
        sample[..., 0], output[..., 1] = 1, 1
        timestep = self.scheduler.timesteps[index]
        scale = float(self.at(index).scale_model_input(sample, timestep)[..., 0])
        result = self.step(self.at(index), index, sample, output)
        c = float((result[..., 2:] * noise[..., 2:]).sum() / noise[..., 2:].square().sum())
        c = 0.0 if abs(c) < 1e-9 else c
        a, b = float(result[..., 0] - c * noise[..., 0]), float(result[..., 1] - c * noise[..., 1])
        sample, output = 30 * noise.flip(-1), 30 * noise.roll(7, -1)
        result = self.step(self.at(index), index, sample, output)
        if not _close(result, a * sample + b * output + c * noise, 100 * (abs(a) + abs(b) + abs(c))):
            raise ScheduleError(
                f"{self.name}'s step is no fixed combination of sample, output and one noise; "
                f"these work: {WORKING}"
            )
        return scale, a, b, c

    def check_history(self, rows: Sequence[tuple[float, float, float, float]]) -> None:
        """Run a trajectory with one scheduler object: a history shows as a difference from the table."""
        running, sample = copy.deepcopy(self.scheduler), self.noise.flip(-1) * 3
        for index, (_, a, b, c) in enumerate(rows):
            output = self.noise.roll(3 * index + 1, -1)
            try:
                result = self.step(running, index, sample, output)
            except Exception:
                result = torch.full_like(sample, torch.nan)
            if not _close(result, a * sample + b * output + c * self.noise, 1 + float(sample.abs().max())):
                raise ScheduleError(f"{self.name} keeps a history of earlier steps; these work: {WORKING}")
            sample = result

    def at(self, index: int) -> Any:
        """A scheduler that has not stepped yet and is about to take step `index`."""
        there = copy.deepcopy(self.scheduler)
        if hasattr(there, "set_begin_index"):
            there.set_begin_index(index)
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
