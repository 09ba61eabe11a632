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
PROBE = 64  # elements of a probe: enough to tell proportionality from chance


class ScheduleError(AdapEditError):
    """A scheduler whose step is not a fixed combination of sample, model output and noise."""


@dataclass(frozen=True, kw_only=True)
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
            fresh = copy.deepcopy(scheduler)
            fresh.set_timesteps(num_inference_steps)
            rows = [_probe_step(fresh, i, name, step_options) for i in range(len(fresh.timesteps))]
            _check_history(fresh, rows, name, step_options)
            sigma = float(fresh.init_noise_sigma)
        except ScheduleError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ScheduleError(
                f"{name} can't be used as a table of steps ({reason}); these work: {WORKING}"
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


def _step(scheduler: Any, index: int, sample: Tensor, output: Tensor, options: dict[str, Any]) -> Tensor:
    """One step of the scheduler with the noise of `_noise()`; changes the scheduler's own counters."""
    options = dict(options)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(0)
    scheduler.scale_model_input(sample, scheduler.timesteps[index])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scheduler.step(output, scheduler.timesteps[index], sample, return_dict=False, **options)[0]


def _noise() -> Tensor:
    return torch.randn(1, 1, 1, PROBE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _at_step(scheduler: Any, index: int) -> Any:
    there = copy.deepcopy(scheduler)
    if hasattr(there, "set_begin_index"):
        there.set_begin_index(index)
    return there


def _probe_step(
    scheduler: Any, index: int, name: str, options: dict[str, Any]
) -> tuple[float, float, float, float]:
    """input_scale, a, b, c of one step, from unit inputs in the first two elements and none in the others."""
    noise = _noise()
    sample, output = torch.zeros_like(noise), torch.zeros_like(noise)
    sample[..., 0], output[..., 1] = 1, 1
    scale = float(_at_step(scheduler, index).scale_model_input(sample, scheduler.timesteps[index])[..., 0])
    result = _step(_at_step(scheduler, index), index, sample, output, options).double()
    c = float((result[..., 2:] * noise[..., 2:]).sum() / noise[..., 2:].square().sum())
    c = 0.0 if abs(c) < 1e-12 else c
    a, b = float(result[..., 0] - c * noise[..., 0]), float(result[..., 1] - c * noise[..., 1])
    sample, output = 30 * noise.flip(-1), 30 * noise.roll(7, -1)
    result = _step(_at_step(scheduler, index), index, sample, output, options).double()
    if not torch.allclose(
        result, a * sample + b * output + c * noise, rtol=1e-4, atol=1e-3 * (abs(a) + abs(b) + abs(c))
    ):
        raise ScheduleError(
            f"{name}'s step is no fixed combination of sample, output and one noise; these work: {WORKING}"
        )
    return scale, a, b, c


def _check_history(
    scheduler: Any, rows: Sequence[tuple[float, ...]], name: str, options: dict[str, Any]
) -> None:
    """Run a trajectory with one scheduler object: a history shows as a difference from the table."""
    running, noise = copy.deepcopy(scheduler), _noise()
    sample = noise.flip(-1) * float(scheduler.init_noise_sigma)
    for index, (_, a, b, c) in enumerate(rows):
        output = noise.roll(3 * index + 1, -1)
        result = _step(running, index, sample, output, options).double()
        expected = a * sample + b * output + c * noise
        if not torch.allclose(result, expected, rtol=1e-3, atol=1e-3 * (1 + float(sample.abs().max()))):
            raise ScheduleError(f"{name} keeps a history of earlier steps; these work: {WORKING}")
        sample = result
