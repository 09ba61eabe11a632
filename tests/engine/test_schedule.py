"""Schedules in closed form: each step is diffusers' own where its stride fits, and leads to the next level always."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule, ScheduleError, follow_pipelines, scheduler_of
from adapedit_engine.scheduler import denoise
from tests.engine.tiny import GUIDANCE, SIDE, edit_plan, largest, noise, plan, tiny_unet

# numpy's, at every step of schedulers that keep their sigmas in arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VE = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
BY_STRIDE = ("leading", "trailing")  # where DDIM's own stride fits, for numbers of steps that divide 1000
UNEVEN = [*(("linspace", n) for n in (5, 10, 30, 50)), *(("trailing", n) for n in (7, 13, 30, 60))]
Case = tuple[str, dict[str, Any], dict[str, Any], int]


def make(name: str, **changes: Any) -> Any:
    shared = {} if name == "FlowMatchEulerDiscreteScheduler" else SD
    clip = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    return getattr(diffusers, name)(**{**shared, **clip, **changes})


def cases() -> list[Case]:
    """Schedulers, with changes of their configuration, options of `step`, and steps."""
    found: list[Case] = []
    changes: dict[str, Any]
    for prediction in ("epsilon", "v_prediction", "sample"):
        for spacing in ("leading", "trailing", "linspace"):
            shared: dict[str, Any] = {
                "prediction_type": prediction,
                "timestep_spacing": spacing,
                "steps_offset": 1,
            }
            if spacing in BY_STRIDE:
                found += [
                    ("DDIMScheduler", {**shared, "set_alpha_to_one": one}, {"eta": eta}, steps)
                    for one, eta, steps in (
                        (False, 0.0, 50),
                        (True, 0.7, 20),
                        (True, 1.0, 5),
                        (False, 0.0, 4),
                    )
                ]
            for variance in ("fixed_small", "fixed_small_log", "fixed_large"):
                found += [("DDPMScheduler", {**shared, "variance_type": variance}, {}, n) for n in (20, 7)]
            found += [("EulerDiscreteScheduler", shared, {}, n) for n in (20, 7)]
            found += [("EulerDiscreteScheduler", {**shared, "use_karras_sigmas": True}, {}, 12)]
            if prediction != "sample":
                found += [("EulerAncestralDiscreteScheduler", shared, {}, n) for n in (20, 7)]
            for solver in ({}, {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}):
                for kind in ("dpmsolver++", "sde-dpmsolver++"):
                    changes = {**shared, **solver, "algorithm_type": kind}
                    found += [("DPMSolverMultistepScheduler", changes, {}, n) for n in (20, 5)]
            found += [("DEISMultistepScheduler", {**shared, "solver_order": n}, {}, 16) for n in (1, 2)]
            found += [
                ("DEISMultistepScheduler", {**shared, "use_karras_sigmas": True}, {}, n) for n in (6, 16)
            ]
        found += [("LCMScheduler", {"prediction_type": prediction}, {}, n) for n in (1, 4, 8)]
        found += [("TCDScheduler", {"prediction_type": prediction}, {"eta": e}, 4) for e in (0.0, 0.3, 1.0)]
    solvers = ({"solver_order": 1}, {"euler_at_final": True}, {"lower_order_final": False}, {"use_lu_lambdas": True},
               {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})  # fmt: skip
    for kind in ("dpmsolver++", "sde-dpmsolver++"):
        for changes in (*solvers, {"solver_type": "heun", "final_sigmas_type": "sigma_min"}):
            found += [("DPMSolverMultistepScheduler", {**changes, "algorithm_type": kind}, {}, 9)]
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    found += [(name, flow, {}, 9) for name in ("DPMSolverMultistepScheduler", "DEISMultistepScheduler")]
    found += [
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, {}, 9),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}, {}, 9),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}, {}, 9),
        ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, {}, 9),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, {}, 9),
        ("DPMSolverMultistepScheduler", {}, {}, 1),
        # Of 15 steps on the last is of the second order, too.
        *(("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, {}, n) for n in (14, 15)),
        *(("DEISMultistepScheduler", {}, {}, n) for n in (14, 15)),
        ("DDPMScheduler", {"timestep_spacing": "trailing"}, {}, 1),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"}, {}, 10),
        ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": True}, {}, 800),
    ]
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    found += [(name, zero, {}, 20) for name in ("DDIMScheduler", *VE, "DPMSolverMultistepScheduler")]
    for changes in ({}, {"shift": 3.0}, {"stochastic_sampling": True}, {"use_karras_sigmas": True}):
        found += [("FlowMatchEulerDiscreteScheduler", changes, {}, n) for n in (1, 9)]
    return found


CASES = cases()
IDS = ["-".join([name[:12], *map(str, [*c.values(), *o.values()]), str(n)]) for name, c, o, n in CASES]


@pytest.fixture
def in_float64():
    """Integers times numbers are float64 then, so that diffusers' own arithmetic is."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def with_long_tables(scheduler: Any, steps: int) -> Any:
    """The scheduler set to its steps, with its tables in float64."""
    scheduler.set_timesteps(steps)
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.is_floating_point() and name != "timesteps":
            setattr(scheduler, name, value.double())
    return scheduler


def own_steps(scheduler: Any, schedule: Schedule, options: dict[str, Any], monkeypatch: Any):
    """(diffusers' step, ours) at each, of the same random latents, outputs and noise in float64."""
    sample, kept = noise(1, 1, 8, 8, seed=1), 0.0
    for i, timestep in enumerate(scheduler.timesteps):
        # Exact in float32, to which some schedulers turn what they are given.
        sample, output, drawn = (x.double() for x in (sample.float(), *noise(2, 1, 1, 8, 8, seed=i)))
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(
            module, "randn_tensor", lambda *args, drawn=drawn, **options: drawn, raising=False
        )
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(sample, timestep)
            assert largest(scaled, float(schedule.input_scale[i]) * sample) < 1e-9 * float(sample.abs().max())
        wanted = scheduler.step(output, timestep, sample, return_dict=False, **options)[0]
        a, b, c = (float(getattr(schedule, f"{name}_weight")[i]) for name in ("sample", "output", "noise"))
        yield wanted, a * sample + b * output + c * drawn + kept
        if schedule.history_sample_weight is not None and schedule.history_output_weight is not None:
            kept = float(schedule.history_sample_weight[i]) * sample
            kept = kept + float(schedule.history_output_weight[i]) * output
        sample = wanted


LCM: list[Case] = [("LCMScheduler", {"timestep_scaling": scaling}, {}, 4) for scaling in (1e-3, 0.1)]
"""What of the latents it keeps counts for something; with its usual scaling it is a trace."""


@pytest.mark.parametrize(
    ("name", "changes", "options", "steps"), [*CASES, *LCM], ids=[*IDS, "LCM-0.001", "LCM-0.1"]
)
def test_each_step_is_diffusers_own(name: str, changes, options, steps: int, in_float64, monkeypatch):
    own = with_long_tables(make(name, **changes), steps)
    schedule = Schedule.from_scheduler(make(name, **changes), steps, **options)
    assert len(schedule) == len(own.timesteps) == steps
    assert torch.equal(schedule.timesteps, own.timesteps.double())
    assert schedule.init_noise_sigma == pytest.approx(float(getattr(own, "init_noise_sigma", 1.0)))
    in_float32 = "Multistep" in name or (name in VE and changes.get("prediction_type") == "v_prediction")
    close = 1e-6 if in_float32 else 1e-9
    for wanted, got in own_steps(own, schedule, options, monkeypatch):
        assert largest(wanted, got) <= close * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("name", "changes", "options", "steps"), CASES, ids=IDS)
def test_a_step_ends_where_the_next_begins(name: str, changes, options, steps: int):
    check_ends(Schedule.from_scheduler(make(name, **changes), steps, **options), name, changes)


def check_ends(schedule: Schedule, name: str, config: dict[str, Any]) -> None:
    """With a perfect model a step keeps picture and noise apart; noise that is drawn adds to the noise."""
    kind = config.get("prediction_type", "flow_prediction" if "Flow" in name else "epsilon")
    signal, unit = schedule.levels.unbind(1)
    size = torch.hypot(signal, unit)
    outputs = {
        "epsilon": torch.stack([torch.zeros_like(unit), torch.ones_like(unit)], 1),
        "sample": torch.stack([torch.ones_like(unit), torch.zeros_like(unit)], 1),
        "v_prediction": torch.stack([-unit / size, signal / size], 1),
        "flow_prediction": torch.stack([-torch.ones_like(unit), torch.ones_like(unit)], 1),
    }[kind]
    kept = torch.zeros(2, dtype=torch.float64)
    for i in range(len(schedule)):
        level, output = schedule.levels[i], outputs[i]
        a, b, c = schedule.sample_weight[i], schedule.output_weight[i], schedule.noise_weight[i]
        reached = a * level + b * output + kept
        if schedule.history_sample_weight is not None and schedule.history_output_weight is not None:
            kept = schedule.history_sample_weight[i] * level + schedule.history_output_weight[i] * output
        wanted = schedule.levels[i + 1]
        # LCM keeps a trace of the latents that it steps from.
        close = 1e-4 if name == "LCMScheduler" else 1e-6 * max(1.0, float(level[1]))
        assert abs(float(reached[0] - wanted[0])) < close, i
        if config.get("variance_type") != "fixed_large":
            assert abs(float(torch.hypot(reached[1], c) - wanted[1])) < close, i


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(("spacing", "steps"), [*UNEVEN, ("trailing", 61)])
def test_where_the_stride_does_not_fit_the_next_timestep_counts(spacing: str, steps: int, one: bool):
    config = {"timestep_spacing": spacing, "set_alpha_to_one": one}
    scheduler = make("DDIMScheduler", **config)
    schedule = Schedule.from_scheduler(scheduler, steps)
    check_ends(schedule, "DDIMScheduler", config)
    alphas = scheduler.alphas_cumprod.double()[schedule.timesteps.long()]
    assert len(schedule) == steps
    assert torch.allclose(schedule.levels[:-1, 0], alphas.sqrt(), atol=1e-12)
    assert float(schedule.levels[-1, 0] ** 2) == pytest.approx(
        float(scheduler.final_alpha_cumprod), abs=1e-12
    )


def two_pictures(sample: Tensor, timestep: int, alphas: Tensor) -> Tensor:
    """The exact noise in latents whose clean values are near 0.6 or -1.1."""
    alpha = float(alphas[timestep])
    signal, variance = alpha**0.5, 1 - alpha
    centres, spread = torch.tensor([0.6, -1.1], dtype=torch.float64), 0.02**2
    total = alpha * spread + variance
    apart = sample[..., None] - signal * centres
    shares = (-(apart**2) / (2 * total)).softmax(-1)
    return variance**0.5 * (shares * apart / total).sum(-1)


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(("spacing", "steps"), UNEVEN)
def test_that_is_nearer_to_many_steps_than_the_stride(spacing: str, steps: int, one: bool):
    """Where the picture is known, noise that is left over or taken twice is what a step gets wrong."""
    start = noise(500, seed=3).double()
    scheduler = make("DDIMScheduler", timestep_spacing=spacing, set_alpha_to_one=one)

    def ours(count: int) -> Tensor:
        schedule, x = Schedule.from_scheduler(scheduler, count), start
        for i in range(count):
            output = two_pictures(x, int(schedule.timesteps[i]), scheduler.alphas_cumprod)
            x = schedule.sample_weight[i] * x + schedule.output_weight[i] * output
        return x

    own, x = copy.deepcopy(scheduler), start
    own.set_timesteps(steps)
    for timestep in own.timesteps:
        x = own.step(two_pictures(x, int(timestep), own.alphas_cumprod), timestep, x).prev_sample
    many = ours(250)
    assert float((ours(steps) - many).square().mean()) < float((x - many).square().mean())


def test_eta_of_tcd_is_0_as_in_the_pipelines():
    assert not Schedule.from_scheduler(make("TCDScheduler"), 4).stochastic
    assert Schedule.from_scheduler(make("TCDScheduler"), 4, eta=0.3).stochastic


def test_stochastic_schedules_say_so():
    assert not Schedule.from_scheduler(make("DDIMScheduler"), 5).stochastic
    assert Schedule.from_scheduler(make("DDIMScheduler"), 5, eta=1.0).stochastic
    assert Schedule.from_scheduler(make("EulerAncestralDiscreteScheduler"), 5).stochastic


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_the_scheduler_and_the_random_state_are_left_alone(name: str):
    scheduler, state = make(name), torch.get_rng_state()
    before = copy.deepcopy(vars(scheduler))
    Schedule.from_scheduler(scheduler, 5)
    follow_pipelines(scheduler)
    for key, value in vars(scheduler).items():
        assert torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key], key
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", *VE, "LCMScheduler", "TCDScheduler",
                                  "DPMSolverMultistepScheduler", "DEISMultistepScheduler",
                                  "FlowMatchEulerDiscreteScheduler"])  # fmt: skip
def test_the_process_may_have_other_defaults(name: str):
    expected = Schedule.from_scheduler(make(name), 4)
    made_before = make(name)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = Schedule.from_scheduler(made_before, 4)
        tail = found.tail(1)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for key, value in vars(expected).items():
        if isinstance(value, Tensor):
            assert value.dtype == torch.float64 and value.device.type == "cpu"
            assert torch.equal(value, getattr(found, key)), key
    assert tail.levels.device.type == "cpu"


def test_tail_is_the_end_of_the_same_schedule():
    schedule = Schedule.from_scheduler(make("DDIMScheduler"), 10)
    tail = schedule.tail(7)
    assert len(tail) == 3
    assert torch.equal(tail.output_weight, schedule.output_weight[7:])
    assert torch.equal(tail.levels, schedule.levels[7:])
    with pytest.raises(ScheduleError, match=r"first_step is 10, wanted 0\.\.9"):
        schedule.tail(10)


def test_a_tail_has_nothing_to_look_back_at():
    scheduler = make("DPMSolverMultistepScheduler")
    schedule = Schedule.from_scheduler(scheduler, 16)
    tail = schedule.tail(9)
    scheduler.set_timesteps(16)
    scheduler.set_begin_index(9)
    sample, output = noise(1, 4, 2, 2, seed=1), noise(1, 4, 2, 2, seed=2)
    expected = scheduler.step(output, scheduler.timesteps[9], sample).prev_sample
    got = float(tail.sample_weight[0]) * sample + float(tail.output_weight[0]) * output
    assert largest(got, expected) < 1e-5
    assert torch.equal(tail.output_weight[1:], schedule.output_weight[10:])
    assert tail.looks_back and not torch.equal(tail.output_weight[:1], schedule.output_weight[9:10])


def test_tables_are_whole():
    schedule = Schedule.from_scheduler(make("DPMSolverMultistepScheduler"), 4)
    with pytest.raises(ScheduleError, match="a history takes all of history_sample_weight"):
        replace(schedule, first_output_weight=None)
    with pytest.raises(ScheduleError, match=r"levels has shape \(4, 2\); wanted finite numbers \[5, 2\]"):
        replace(schedule, levels=schedule.levels[1:])
    weight, endless = schedule.noise_weight, torch.full((4,), torch.inf)
    for wrong in (weight[1:], weight.repeat(2), weight.view(2, 2), endless, weight[0]):
        with pytest.raises(
            ScheduleError, match=r"noise_weight has shape .*; wanted one finite number per step"
        ):
            replace(schedule, noise_weight=wrong)


class Bent(diffusers.DDIMScheduler):
    """Not linear, and its configuration does not say so."""

    def step(self, model_output, timestep, sample, **options):
        (result,) = super().step(model_output, timestep, sample, return_dict=False)[:1]
        return (result.clamp(-2, 2),)


def refusal(scheduler: Any, steps: Any = 20, **options: Any) -> str:
    with pytest.raises(ScheduleError) as refused:
        Schedule.from_scheduler(scheduler, steps, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


OTHERS = (
    "PNDM",
    "LMSDiscrete",
    "UniPCMultistep",
    "HeunDiscrete",
    "KDPM2Discrete",
    "DPMSolverSinglestep",
    "IPNDM",
)


@pytest.mark.parametrize("name", [*OTHERS, "Bent"])
def test_others_are_refused_by_name_with_those_that_work(name: str):
    plain = {"Bent": Bent, "IPNDM": diffusers.IPNDMScheduler}
    scheduler = plain[name]() if name in plain else make(f"{name}Scheduler")
    said = refusal(scheduler)
    assert (
        said.startswith(type(scheduler).__name__) and "these work: DDIM, DDPM, Euler, Euler ancestral" in said
    )
    with pytest.raises(ScheduleError, match="these work"):
        follow_pipelines(scheduler)


@pytest.mark.parametrize(
    ("name", "changes", "mend"),
    [
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample=False"),
        ("DDPMScheduler", {"thresholding": True}, "thresholding=False"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type='fixed_small'"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order=1"),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned"}, "variance_type='fixed_small'"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            r"algorithm_type='dpmsolver++'",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=False"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_settings_that_are_not_linear_are_refused_with_the_mend(name: str, changes, mend: str):
    said = refusal(make(name, **changes))
    ((setting, value),) = list(changes.items())[:1]
    assert f"{name} with {setting}={value!r}" in said
    assert f"{name}.from_config(scheduler.config, {mend})" in said


def test_kinds_of_noise_are_not_mixed():
    assert "wanted 'flow_prediction' with True" in refusal(
        make("DPMSolverMultistepScheduler", prediction_type="flow_prediction")
    )
    assert "use_flow_sigmas=True" in refusal(make("DEISMultistepScheduler", use_flow_sigmas=True))
    assert "prediction_type='other'" in refusal(make("DDIMScheduler", prediction_type="other"))


def test_no_signal_tells_epsilon_nothing():
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for name in ("DDIMScheduler", *VE, "DPMSolverMultistepScheduler"):
        assert "epsilon tells nothing" in refusal(make(name, **zero))
        assert (
            Schedule.from_scheduler(make(name, **zero, prediction_type="v_prediction"), 20).levels[0, 0] < 1.1
        )


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "5"])
def test_number_of_steps(steps):
    assert "num_inference_steps is" in refusal(make("DDIMScheduler"), steps)


@pytest.mark.parametrize(
    ("name", "changes", "steps", "limit"),
    [
        ("DDIMScheduler", {"steps_offset": 1}, 1000, 999),
        ("DDIMScheduler", {}, 1001, 1000),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 10**9, 1000),
        ("EulerDiscreteScheduler", {"steps_offset": 1, "timestep_spacing": "leading"}, 1000, 999),
        ("EulerDiscreteScheduler", {}, 10**9, 1000),
        ("DPMSolverMultistepScheduler", {}, 1000, 999),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 1000, 998),
        ("LCMScheduler", {}, 51, 50),
        ("TCDScheduler", {}, 1000, 50),
    ],
)
def test_more_steps_than_the_spacing_gives(name: str, changes, steps: int, limit: int):
    assert refusal(make(name, **changes), steps).endswith(f"wanted at most {limit}")
    assert len(Schedule.from_scheduler(make(name, **changes), limit)) == limit


@pytest.mark.parametrize(
    ("changes", "steps", "limit"),
    [
        ({"steps_offset": 1}, 501, 500),
        ({"steps_offset": 1}, 700, 500),
        ({"steps_offset": 1}, 334, 333),
        ({"beta_end": 0.006}, 600, 500),
    ],
)
def test_noise_is_not_called_half_denoised(changes, steps: int, limit: int):
    said = refusal(make("DDIMScheduler", **changes), steps)
    assert "noise alone would be called timestep" in said and said.endswith(f"wanted at most {limit}")
    for few in (1, 2, 3, limit):
        assert len(Schedule.from_scheduler(make("DDIMScheduler", **changes), few)) == few


def test_a_class_is_no_scheduler():
    said = refusal(diffusers.DDIMScheduler)
    assert said.startswith(
        "got the class DDIMScheduler, wanted a scheduler made of it; use DDIMScheduler.from_config"
    )
    assert refusal({}).startswith("got a dict, wanted a diffusers scheduler")


def test_options_are_those_of_the_scheduler():
    assert "EulerDiscreteScheduler takes no options here, got eta" in refusal(
        make("EulerDiscreteScheduler"), eta=1.0
    )
    assert "DDIMScheduler takes eta here, got gamma" in refusal(make("DDIMScheduler"), gamma=1.0)
    for eta in (-0.1, 1.1, float("nan"), True, "1"):
        assert "wanted a number in 0..1" in refusal(make("DDIMScheduler"), eta=eta)


def test_old_configurations_are_read_as_the_pipelines_read_them():
    old = diffusers.DDIMScheduler(**SD)  # steps_offset 0, clip_sample True
    found = follow_pipelines(old)
    assert (found.config.steps_offset, found.config.clip_sample) == (1, False)
    assert (old.config.steps_offset, old.config.clip_sample) == (0, True)
    assert Schedule.from_scheduler(found, 50).timesteps[0] == 981
    right = make("DDIMScheduler", steps_offset=1)
    assert follow_pipelines(right) is right
    flow = make("FlowMatchEulerDiscreteScheduler")  # has no such settings
    assert follow_pipelines(flow) is flow


def test_a_solver_on_the_models_own_levels():
    own = make("DDIMScheduler", timestep_spacing="trailing", prediction_type="v_prediction", steps_offset=1)
    assert scheduler_of("model", own) is own
    solver = scheduler_of("dpm++", own)
    assert isinstance(solver, diffusers.DPMSolverMultistepScheduler)
    assert torch.equal(solver.alphas_cumprod, own.alphas_cumprod)
    assert (solver.config.timestep_spacing, solver.config.prediction_type) == ("trailing", "v_prediction")
    with pytest.raises(ScheduleError, match="solver 'dpm\\+\\+' wants a scheduler with betas, got FlowMatch"):
        scheduler_of("dpm++", make("FlowMatchEulerDiscreteScheduler"))


# --- lines of schedules that failed once, or have to keep working --------------------------------------------------

EQUAL, REFUSED = "equal", "refused"
LINES: list[tuple[str, dict[str, Any], int, str]] = [
    *[("DDIMScheduler", {"set_alpha_to_one": False, "timestep_spacing": s}, n, "ends")
      for s, counts in (("linspace", (5, 10, 30, 50)), ("trailing", (7, 13, 30, 60))) for n in counts],
    *[("DDIMScheduler", {"set_alpha_to_one": False, "timestep_spacing": "leading", "steps_offset": 1}, n, EQUAL)
      for n in (7, 20, 50)],
    ("DDIMScheduler", {"set_alpha_to_one": False, "timestep_spacing": "leading", "steps_offset": 1}, 1000, REFUSED),
    ("DDIMScheduler", {"set_alpha_to_one": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
                       "prediction_type": "epsilon"}, 20, REFUSED),
    ("DDIMScheduler", {"set_alpha_to_one": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
                       "prediction_type": "v_prediction"}, 20, EQUAL),
    ("DDIMScheduler", {"clip_sample": True, "set_alpha_to_one": False}, 20, REFUSED),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2, "lower_order_final": True}, 4,
     EQUAL),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}, 20,
     EQUAL),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}, 20, EQUAL),
    ("EulerAncestralDiscreteScheduler", {}, 20, EQUAL),
    ("LCMScheduler", {"original_inference_steps": 50}, 4, EQUAL),
    ("TCDScheduler", {}, 4, EQUAL),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}, 20, REFUSED),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "steps", "right"), LINES)
def test_lines(name: str, config, steps: int, right: str, in_float64, monkeypatch):
    if right == REFUSED:
        refusal(make(name, **config), steps)
        return
    schedule = Schedule.from_scheduler(make(name, **config), steps)
    check_ends(schedule, name, config)
    if right == EQUAL:
        options = {"eta": 0.0} if name == "TCDScheduler" else {}
        own = with_long_tables(make(name, **config), steps)
        for wanted, got in own_steps(own, schedule, options, monkeypatch):
            assert largest(wanted, got) <= 2e-6 * max(1.0, float(wanted.abs().max()))


# --- through the loop -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner():
    with PyTorchRunner(tiny_unet(), map_divisor=1) as opened:
        yield opened


def solver(steps: int = 6, **changes: Any) -> Schedule:
    return Schedule.from_scheduler(make("DPMSolverMultistepScheduler", **changes), steps)


@pytest.mark.parametrize("kind", ["dpmsolver++", "sde-dpmsolver++"])
def test_the_loop_is_diffusers_own(runner, kind: str):
    steps, own = 6, make("DPMSolverMultistepScheduler", algorithm_type=kind)
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


def test_a_track_that_is_told_where_it_goes_goes_there(runner):
    known = noise(6, 4, SIDE, SIDE, seed=9)
    (outcome,) = denoise([edit_plan(1, 2, schedule=solver(), source_latents=known)], runner)
    assert torch.equal(outcome.latents[0], known[-1])
