"""Schedules read off diffusers schedulers: the table's trajectory is the scheduler's own."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from adapedit_engine import Schedule, ScheduleError
from tests.engine.tiny import largest, noise

# numpy's, at every step of schedulers that keep their sigmas in arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CASES: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}, {}, 50),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, {}, 20),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}, {}, 10),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, {"eta": 0.7}, 7),
    ("EulerDiscreteScheduler", {}, {}, 20),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}, {}, 20),
    ("EulerAncestralDiscreteScheduler", {}, {}, 20),
    ("DDPMScheduler", {"clip_sample": False}, {}, 20),
    ("DDPMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, {}, 1),
    ("LCMScheduler", {}, {}, 4),
    ("TCDScheduler", {}, {}, 4),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, {}, 20),
    ("DPMSolverMultistepScheduler", {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, {}, 20),
    ("DPMSolverMultistepScheduler", {}, {}, 20),
    ("DPMSolverMultistepScheduler", {}, {}, 5),
    ("DPMSolverMultistepScheduler", {}, {}, 1),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}, {}, 12),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}, 20),
    ("DEISMultistepScheduler", {}, {}, 20),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}, {}, 20),
]


def make(name: str, **changes: Any) -> Any:
    return getattr(diffusers, name)(**{**SD, **changes})


def model(sample: torch.Tensor, timestep: float) -> torch.Tensor:
    return torch.tanh(sample.roll(1, -1)) * (0.5 + timestep / 2000)


@pytest.mark.parametrize(("name", "changes", "options", "steps"), CASES)
def test_trajectory_is_the_schedulers_own(name: str, changes, options, steps: int):
    scheduler = make(name, **changes)
    schedule = Schedule.from_scheduler(make(name, **changes), steps, **options)
    scheduler.set_timesteps(steps)
    assert len(schedule) == len(scheduler.timesteps) == steps
    assert schedule.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma))

    start = noise(1, 4, 8, 8, seed=1) * schedule.init_noise_sigma
    expected, generator = start, torch.Generator().manual_seed(5)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options = {"generator": generator, **options}
    for timestep in scheduler.timesteps:
        output = model(scheduler.scale_model_input(expected, timestep), float(timestep))
        expected = scheduler.step(output, timestep, expected, **options).prev_sample

    sample, generator, kept = start, torch.Generator().manual_seed(5), torch.zeros(())
    for i in range(steps):
        # Ancestral samplers draw at every step, DDPM not at the last one: a draw that is not used changes nothing.
        drawn = torch.randn(start.shape, generator=generator) if schedule.noise_weight[i] else torch.zeros(())
        output = model(float(schedule.input_scale[i]) * sample, float(schedule.timesteps[i]))
        before, added = sample, kept + float(schedule.noise_weight[i]) * drawn
        sample = float(schedule.sample_weight[i]) * sample + float(schedule.output_weight[i]) * output + added
        if schedule.history_sample_weight is not None and schedule.history_output_weight is not None:
            kept = float(schedule.history_sample_weight[i]) * before
            kept = kept + float(schedule.history_output_weight[i]) * output
    assert largest(sample, expected) < 2e-5 * max(1.0, float(expected.abs().max()))


def test_stochastic_schedules_say_so():
    assert not Schedule.from_scheduler(make("DDIMScheduler", clip_sample=False), 5).stochastic
    assert Schedule.from_scheduler(make("DDIMScheduler", clip_sample=False), 5, eta=1.0).stochastic
    assert Schedule.from_scheduler(make("EulerAncestralDiscreteScheduler"), 5).stochastic


def test_the_scheduler_and_the_random_state_are_left_alone():
    scheduler = make("EulerAncestralDiscreteScheduler")
    before, state = scheduler.timesteps.clone(), torch.get_rng_state()
    Schedule.from_scheduler(scheduler, 5)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.step_index is None
    assert torch.equal(torch.get_rng_state(), state)


def test_tail_is_the_end_of_the_same_schedule():
    schedule = Schedule.from_scheduler(make("DDIMScheduler", clip_sample=False), 10)
    tail = schedule.tail(7)
    assert len(tail) == 3
    assert torch.equal(tail.output_weight, schedule.output_weight[7:])
    with pytest.raises(ScheduleError, match=r"first_step is 10, wanted 0\.\.9"):
        schedule.tail(10)


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("PNDMScheduler", "keeps a history"),
        ("LMSDiscreteScheduler", "keeps a history"),
        ("IPNDMScheduler", "keeps a history"),
        ("DPMSolverMultistepScheduler-3", "solver_order=3 keeps a history of more than a step"),
        ("UniPCMultistepScheduler", "keeps a history"),
        ("HeunDiscreteScheduler", "more than once a step"),
        ("KDPM2DiscreteScheduler", "more than once a step"),
        ("KDPM2AncestralDiscreteScheduler", "more than once a step"),
        ("DDIMScheduler", "clip_sample=True is not linear.*DDIMScheduler.from_config.*clip_sample=False"),
        ("DDPMScheduler", "clip_sample=True is not linear"),
    ],
)
def test_refused_schedulers_are_named_with_those_that_work(name: str, reason: str, steps: int):
    name, _, order = name.partition("-")
    changes = {"solver_order": int(order)} if order else {}
    scheduler = diffusers.IPNDMScheduler() if name == "IPNDMScheduler" else make(name, **changes)
    with pytest.raises(ScheduleError, match=f"{name} .*{reason}") as refusal:
        Schedule.from_scheduler(scheduler, steps)
    assert "\n" not in str(refusal.value)
    assert "DDIM, DDPM, Euler" in str(refusal.value) or "clip_sample=False" in str(refusal.value)


def test_a_tail_has_nothing_to_look_back_at():
    scheduler, schedule = (
        make("DPMSolverMultistepScheduler"),
        Schedule.from_scheduler(make("DPMSolverMultistepScheduler"), 16),
    )
    tail = schedule.tail(9)
    scheduler.set_timesteps(16)
    scheduler.set_begin_index(9)
    sample, output = noise(1, 4, 2, 2, seed=1), noise(1, 4, 2, 2, seed=2)
    expected = scheduler.step(output, scheduler.timesteps[9], sample).prev_sample
    assert (
        largest(float(tail.sample_weight[0]) * sample + float(tail.output_weight[0]) * output, expected)
        < 1e-5
    )
    assert torch.equal(tail.output_weight[1:], schedule.output_weight[10:])
    assert tail.looks_back and not torch.equal(tail.output_weight[:1], schedule.output_weight[9:10])


def test_a_history_comes_whole():
    schedule = Schedule.from_scheduler(make("DPMSolverMultistepScheduler"), 4)
    with pytest.raises(ScheduleError, match="a history takes all of history_sample_weight"):
        replace(schedule, first_output_weight=None)


class Bent(diffusers.DDIMScheduler):
    """Not linear, and its configuration does not say so."""

    def step(self, model_output, timestep, sample, **options):
        (result,) = super().step(model_output, timestep, sample, return_dict=False)[:1]
        return (result.clamp(-2, 2),)


def test_nonlinearity_is_found_by_probing():
    with pytest.raises(ScheduleError, match="Bent's step is no fixed combination"):
        Schedule.from_scheduler(Bent(clip_sample=False), 5)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "5"])
def test_number_of_steps(steps):
    with pytest.raises(
        ScheduleError, match=r"num_inference_steps is .*, wanted a whole number of at least 1"
    ):
        Schedule.from_scheduler(make("DDIMScheduler", clip_sample=False), steps)


def test_more_steps_than_the_scheduler_has():
    with pytest.raises(ScheduleError, match=r"DDIMScheduler can't be a table of steps .*1001"):
        Schedule.from_scheduler(make("DDIMScheduler", clip_sample=False), 1001)


def test_what_is_no_scheduler():
    with pytest.raises(ScheduleError, match="got a dict, wanted a diffusers scheduler"):
        Schedule.from_scheduler({}, 5)
