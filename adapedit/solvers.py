"""Solvers that an edit may choose in place of the model's scheduler, on that scheduler's own noise levels."""

from __future__ import annotations

from typing import Any

# What of a scheduler's configuration says what the model was trained for, and not how it is sampled.
_OF_THE_MODEL = (
    "beta_end",
    "beta_schedule",
    "beta_start",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "steps_offset",
    "timestep_spacing",
    "trained_betas",
)


def scheduler_of(solver: str, scheduler: Any) -> Any:
    """The diffusers scheduler of a solver's name: "model" is the model's own, "dpm++" DPM-Solver++(2M).

    Lu et al. 2022, "DPM-Solver++": of second order, from the last two predictions; made for about 20 steps.
    """
    if solver == "model":
        return scheduler
    from diffusers import DPMSolverMultistepScheduler

    shared = {name: scheduler.config[name] for name in _OF_THE_MODEL if name in scheduler.config}
    return DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++", solver_order=2)
