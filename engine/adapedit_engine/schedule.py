"""Schedules: a diffusers scheduler as a table, so that a step is x' = a x + b eps + c noise for every row."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.probe import WORKING, ScheduleError, probe

__all__ = ["Schedule", "ScheduleError"]

TELLING_STEPS = (
    10  # in fewer a history may not show, and whether a scheduler is refused should not depend on the steps
)
_NEEDED = ("timesteps", "input_scale", "sample_weight", "output_weight", "noise_weight")
_OF_HISTORY = (
    "history_sample_weight",
    "history_output_weight",
    "first_sample_weight",
    "first_output_weight",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """T denoising steps, x' = sample_weight x + output_weight model(input_scale x) + noise_weight noise.

    All fields are [T] float64 tensors on the CPU, the first step first. `init_noise_sigma` is the factor that
    brings unit noise to the first step's latents.

    A solver that looks back by one step (DPM-Solver++(2M), Lu et al. 2022) has the last four as well: each step
    keeps history_sample_weight x + history_output_weight model(...), which the next one adds to its x'; and a step
    with nothing kept takes the `first_...` weights in place of sample_weight and output_weight.
    """

    timesteps: Tensor
    input_scale: Tensor
    sample_weight: Tensor
    output_weight: Tensor
    noise_weight: Tensor
    init_noise_sigma: float = 1.0
    history_sample_weight: Tensor | None = None
    history_output_weight: Tensor | None = None
    first_sample_weight: Tensor | None = None
    first_output_weight: Tensor | None = None

    def __post_init__(self) -> None:
        given = [name for name in _OF_HISTORY if getattr(self, name) is not None]
        if given and len(given) != len(_OF_HISTORY):
            raise ScheduleError(f"a history takes all of {', '.join(_OF_HISTORY)}; got {', '.join(given)}")
        for name in (*_NEEDED, *given):
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

    @property
    def looks_back(self) -> bool:
        """Whether a step uses what the one before it kept."""
        return self.history_sample_weight is not None

    def tail(self, first_step: int) -> Schedule:
        """The schedule from `first_step` on: image to image starts in the middle of a trajectory."""
        if not 0 <= first_step < len(self):
            raise ScheduleError(f"first_step is {first_step}, wanted 0..{len(self) - 1}")
        tables = {name: getattr(self, name)[first_step:] for name in _NEEDED}
        if self.looks_back:
            tables |= {name: getattr(self, name)[first_step:] for name in _OF_HISTORY}
            # Nothing was kept for the step that is now the first.
            for name in ("sample_weight", "output_weight"):
                tables[name] = torch.cat([tables[f"first_{name}"][:1], tables[name][1:]])
        return Schedule(**tables, init_noise_sigma=self.init_noise_sigma)

    @classmethod
    def from_scheduler(cls, scheduler: Any, num_inference_steps: int, **step_options: Any) -> Schedule:
        """Read the table off a diffusers scheduler by probing its own `step`; the scheduler is not changed.

        `step_options` go to every `step`, for example `eta` of DDIM. Raises `ScheduleError` for schedulers that
        keep a history (PNDM, LMS; of multistep solvers all that are not linear in the sample, this output, and
        what one step back left), take more than one evaluation a step (Heun, KDPM2) or are not linear (clipping,
        thresholding).
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
                probe(_set(scheduler, min(TELLING_STEPS, train_steps)), name, step_options)
            fresh = _set(scheduler, num_inference_steps)
            found = probe(fresh, name, step_options)
            sigma = float(fresh.init_noise_sigma)
        except ScheduleError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ScheduleError(
                f"{name} can't be a table of steps ({reason}); these work: {WORKING}"
            ) from error
        return cls(
            timesteps=torch.as_tensor(fresh.timesteps).to("cpu", torch.float64),
            init_noise_sigma=sigma,
            **{name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()},
        )


def _refuse_known(scheduler: Any, name: str) -> None:
    config = getattr(scheduler, "config", None)
    if config is None or not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
        raise ScheduleError(f"got a {name}, wanted a diffusers scheduler; these work: {WORKING}")
    if getattr(scheduler, "order", 1) != 1:
        raise ScheduleError(f"{name} evaluates the model more than once a step; these work: {WORKING}")
    if config.get("solver_order", 1) > 2:
        raise ScheduleError(
            f"{name} with solver_order={config['solver_order']} keeps a history of more than a step; "
            f"use one of: {WORKING}"
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
