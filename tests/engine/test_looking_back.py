"""Solvers that look back by a step: DPM-Solver++(2M) through the loop, beside other edits and under blends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from adapedit_engine import LocalBlend, PyTorchRunner, Schedule, denoise
from tests.engine.tiny import GUIDANCE, SIDE, TOKENS, edit_plan, largest, noise, plan, tiny_unet


def solver(steps: int = 6, **changes) -> Schedule:
    return Schedule.from_scheduler(scheduler(**changes), steps)


def scheduler(**changes) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes
    )


@pytest.fixture(scope="module")
def runner():
    with PyTorchRunner(tiny_unet(), map_divisor=1) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["dpmsolver++", "sde-dpmsolver++"])
def test_the_loop_is_diffusers_own(runner, kind):
    steps, own = 6, scheduler(algorithm_type=kind)
    drawn = noise(steps, 4, SIDE, SIDE, seed=8)
    wanted = plan(1, schedule=solver(steps, algorithm_type=kind), noise=drawn)
    (outcome,) = denoise([wanted], runner)

    own.set_timesteps(steps)
    sample, text = wanted.latents, runner.condition(wanted.encoder_hidden_states.flatten(0, 1))
    for i, timestep in enumerate(own.timesteps):
        inputs = {"sample": sample.repeat(2, 1, 1, 1), "timestep": timestep.float().repeat(2), **text}
        without, given = runner.infer(inputs, ("noise_pred",))["noise_pred"].chunk(2)
        guided = without + GUIDANCE * (given - without)
        extra = {"variance_noise": drawn[i][None]} if "sde" in kind else {}
        sample = own.step(guided, timestep, sample, **extra).prev_sample
    assert largest(outcome.latents, sample) < 1e-5 * float(sample.abs().max())


def test_the_history_matters(runner):
    schedule = solver()
    forgetful = replace(
        schedule,
        history_sample_weight=torch.zeros_like(schedule.timesteps),
        history_output_weight=torch.zeros_like(schedule.timesteps),
    )
    one, other = denoise([plan(1, schedule=schedule), plan(1, schedule=forgetful)], runner)
    assert largest(one.latents, other.latents) > 0.1


def test_beside_others_is_as_alone(runner):
    blend = LocalBlend(token_weights=torch.ones(2, TOKENS))
    stochastic = solver(5, algorithm_type="sde-dpmsolver++")
    plans = [
        edit_plan(1, 2, schedule=solver(), local_blend=blend),
        edit_plan(3, 4),
        plan(5, schedule=stochastic, noise=noise(5, 4, SIDE, SIDE, seed=6)),
        plan(6, schedule=solver(9), guidance_until=0.5),
    ]
    together = denoise(plans, runner)
    for wanted, outcome in zip(plans, together, strict=True):
        (alone,) = denoise([wanted], runner)
        assert largest(alone.latents, outcome.latents) < 1e-4 * max(1.0, float(alone.latents.abs().max()))


def test_a_track_that_is_told_where_it_goes_goes_there(runner):
    known = noise(6, 4, SIDE, SIDE, seed=9)
    (outcome,) = denoise([edit_plan(1, 2, schedule=solver(), source_latents=known)], runner)
    assert torch.equal(outcome.latents[0], known[-1])
