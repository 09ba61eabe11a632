"""Schedules: a diffusers scheduler as tables in closed form, so that a step is x' = a x + b output + c noise."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapedit_kernels.errors import AdapEditError

__all__ = ["Schedule", "ScheduleError", "follow_pipelines", "scheduler_of"]

WORKING = (
    "DDIM, DDPM, Euler, Euler ancestral, flow-matching Euler, LCM, TCD, "
    "and DPM-Solver++ (multistep) and DEIS with solver_order 1 or 2"
)
# By what they keep their noise levels: a product of alphas for each trained timestep, or a sigma for each step.
_BY_ALPHAS = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")
_UNSCALED = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
_MULTISTEP = ("DPMSolverMultistepScheduler", "DEISMultistepScheduler")
_FLOW = "FlowMatchEulerDiscreteScheduler"
_KNOWN = (*_BY_ALPHAS, *_UNSCALED, *_MULTISTEP, _FLOW)
_OPTIONS = {"DDIMScheduler": ("eta",), "TCDScheduler": ("eta",)}
# Values of a configuration with which a step is a fixed combination; the first is what a missing one stands for.
_LINEAR: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample", "original_sample", "flow_prediction"),
    "clip_sample": (False, None),
    "thresholding": (False, None),
    "solver_order": (1, 2),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", None),
    "invert_sigmas": (False, None),
}
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
MOST_SIGNAL = 0.25
"""Of the first level, where more steps are to blame: above, unit noise is far from what the model is told it sees."""

_NEEDED = ("timesteps", "input_scale", "sample_weight", "output_weight", "noise_weight")
_OF_HISTORY = tuple(f"{when}_{of}_weight" for when in ("history", "first") for of in ("sample", "output"))


class ScheduleError(AdapEditError):
    """A scheduler, or a number of steps, that is no table of fixed combinations."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """T denoising steps, x' = sample_weight x + output_weight model(input_scale x) + noise_weight noise.

    All tables are [T] float64 tensors on the CPU, the first step first. `init_noise_sigma` is the factor that
    brings unit noise to the first step's latents.

    levels [T + 1, 2], (signal, noise): clean latents x and unit noise n are signal x + noise n before step i, and in
    the last row after all steps. Where step i ends is where step i + 1 begins.

    A solver that looks back by one step (DPM-Solver++(2M), Lu et al. 2022) has the last four as well: each step
    keeps history_sample_weight x + history_output_weight model(...), which the next one adds to its x'; and a step
    with nothing kept takes the `first_...` weights in place of sample_weight and output_weight.
    """

    timesteps: Tensor
    input_scale: Tensor
    sample_weight: Tensor
    output_weight: Tensor
    noise_weight: Tensor
    levels: Tensor
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
            shape = tuple(table.shape)
            if len(shape) != 1 or shape != self.timesteps.shape or not table.isfinite().all():
                raise ScheduleError(f"{name} has shape {shape}; wanted one finite number per step")
        if not len(self):
            raise ScheduleError("a schedule has at least one step, got none")
        shape, wanted = tuple(self.levels.shape), (len(self) + 1, 2)
        if shape != wanted or not self.levels.isfinite().all():
            raise ScheduleError(f"levels has shape {shape}; wanted finite numbers {list(wanted)}")

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
        tables = {name: getattr(self, name)[first_step:] for name in (*_NEEDED, "levels")}
        if self.looks_back:
            tables |= {name: getattr(self, name)[first_step:] for name in _OF_HISTORY}
            # Nothing was kept for the step that is now the first.
            for name in ("sample_weight", "output_weight"):
                tables[name] = torch.cat([tables[f"first_{name}"][:1], tables[name][1:]])
        return Schedule(**tables, init_noise_sigma=self.init_noise_sigma)

    @classmethod
    def from_scheduler(cls, scheduler: Any, num_inference_steps: int, **step_options: Any) -> Schedule:
        """The tables of a diffusers scheduler, which is not changed and whose `step` is not called.

        Its own `set_timesteps` places the steps, so all spacings and all kinds of sigmas hold. Each step leads to the
        level at which the next one begins; that is diffusers' own step wherever its stride fits the list of timesteps.

        step_options: `eta` of DDIM and TCD in 0..1, by default 0. Raises `ScheduleError` for other schedulers and
        options, for settings that are not linear in the latents, and for more or fewer steps than the spacing gives.
        """
        name = _name_of(scheduler)
        _check_settings(name, scheduler.config)
        eta = _eta(name, step_options)
        fresh, levels = _place(scheduler, name, num_inference_steps)
        steps = _Steps.between(levels, _prediction_type(name, fresh.config))
        picture, noise, drawn = _weights(name, fresh, levels, eta)
        tables = {
            "sample_weight": picture * steps.x0_of_sample + noise * steps.noise_of_sample,
            "output_weight": picture * steps.x0_of_output + noise * steps.noise_of_output,
        }
        if name in _MULTISTEP and fresh.config.solver_order == 2:
            tables = _second_order(name, fresh.config, levels, steps, tables)
        size = torch.hypot(*levels[:-1].unbind(1)) if name in _UNSCALED else torch.ones_like(drawn)
        return cls(
            timesteps=_float64(fresh.timesteps),
            input_scale=1 / size,
            noise_weight=drawn,
            levels=levels,
            init_noise_sigma=float(getattr(fresh, "init_noise_sigma", 1.0)),
            **tables,
        )


def scheduler_of(solver: str, scheduler: Any) -> Any:
    """The diffusers scheduler of a solver's name: "model" is the model's own, "dpm++" DPM-Solver++(2M).

    Lu et al. 2022, "DPM-Solver++": of second order, from the last two predictions, on the noise levels of the model's
    scheduler; made for about 20 steps.
    """
    if solver == "model":
        return scheduler
    if "beta_schedule" not in scheduler.config:
        got = type(scheduler).__name__
        raise ScheduleError(f"solver {solver!r} wants a scheduler with betas, got {got}; use solver 'model'")
    from diffusers import DPMSolverMultistepScheduler

    shared = {name: scheduler.config[name] for name in _OF_THE_MODEL if name in scheduler.config}
    return DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++", solver_order=2)


def follow_pipelines(scheduler: Any) -> Any:
    """The scheduler as diffusers' Stable Diffusion pipelines take it: steps_offset is 1, and nothing is clipped.

    A copy where that changes it. Raises `ScheduleError` for what can't be a table of steps.
    """
    _name_of(scheduler)
    changes: dict[str, Any] = {}
    if scheduler.config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if scheduler.config.get("clip_sample") is True:
        changes["clip_sample"] = False
    if changes:
        scheduler = copy.copy(scheduler)
        scheduler.register_to_config(**changes)
    return scheduler


def _name_of(scheduler: Any) -> str:
    if isinstance(scheduler, type):
        name = scheduler.__name__
        made = f"{name}.from_config(pipe.scheduler.config)"
        raise ScheduleError(f"got the class {name}, wanted a scheduler made of it; use {made}")
    name = type(scheduler).__name__
    if not hasattr(scheduler, "config") or not hasattr(scheduler, "set_timesteps"):
        raise ScheduleError(f"got a {name}, wanted a diffusers scheduler; these work: {WORKING}")
    if name not in _KNOWN:
        raise ScheduleError(f"{name} is not known as a table of steps; these work: {WORKING}")
    return name


def _check_settings(name: str, config: Any) -> None:
    for setting, values in _LINEAR.items():
        value = config.get(setting, values[0])
        if value not in values:
            raise ScheduleError(
                f"{name} with {setting}={value!r} is no fixed combination of latents and output; "
                f"use {name}.from_config(scheduler.config, {setting}={values[0]!r})"
            )
    kind, flow = _prediction_type(name, config), bool(config.get("use_flow_sigmas"))
    if config.get("rescale_betas_zero_snr") and kind == "epsilon":
        raise ScheduleError(
            f"{name} with rescale_betas_zero_snr=True begins with no signal, where epsilon tells nothing of the "
            "picture; wanted prediction_type='v_prediction', or rescale_betas_zero_snr=False"
        )
    if name != _FLOW and (kind == "flow_prediction") != flow:
        raise ScheduleError(
            f"{name} with prediction_type={kind!r} and use_flow_sigmas={flow} mixes two kinds of noise; "
            "wanted 'flow_prediction' with True, or another with False"
        )


def _prediction_type(name: str, config: Any) -> str:
    return "flow_prediction" if name == _FLOW else str(config.get("prediction_type", "epsilon"))


def _eta(name: str, options: dict[str, Any]) -> float:
    """The share of each step's noise that is asked to be drawn anew."""
    taken = _OPTIONS.get(name, ())
    others = sorted(options.keys() - set(taken))
    if others:
        raise ScheduleError(f"{name} takes {', '.join(taken) or 'no options'} here, got {', '.join(others)}")
    eta = options.get("eta", 0.0)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise ScheduleError(f"eta is {eta!r}, wanted a number in 0..1")
    return float(eta)


def _place(scheduler: Any, name: str, steps: int) -> tuple[Any, Tensor]:
    """As `_set`. Raises `ScheduleError` with the most steps that there can be."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ScheduleError(f"num_inference_steps is {steps!r}, wanted a whole number of at least 1")
    most = int(scheduler.config.get("num_train_timesteps", 1000))
    try:
        return _set(scheduler, name, steps, most)
    except ScheduleError as error:
        fault = str(error)
    limit, spacing = "", scheduler.config.get("timestep_spacing")
    for fewer in range(min(steps - 1, most), 0, -1):
        with suppress(ScheduleError):
            _set(scheduler, name, fewer, most)
            limit = f"; wanted at most {fewer}"
            break
    spaced = f" with timestep_spacing={spacing!r}" if spacing else ""
    raise ScheduleError(f"{name}{spaced} gives no {steps} steps: {fault}{limit}")


def _set(scheduler: Any, name: str, steps: int, most: int) -> tuple[Any, Tensor]:
    """A copy of the scheduler that is set to its steps, and its noise levels [T + 1, 2].

    most: timesteps that the model was trained for. Raises `ScheduleError` with what is wrong with so many steps.
    """
    if steps > most:
        raise ScheduleError(f"the model knows {most} levels")
    # Tables on the CPU, whatever the process takes by default. `set_timesteps` replaces attributes and changes none.
    fresh = copy.copy(scheduler)
    tensors = {key: value for key, value in vars(scheduler).items() if isinstance(value, Tensor)}
    vars(fresh).update({key: value.cpu() for key, value in tensors.items()})
    try:
        with torch.device("cpu"):
            fresh.set_timesteps(steps)
    except Exception as error:
        raise ScheduleError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    found = len(fresh.timesteps)
    if found < steps:
        raise ScheduleError(f"there are {found} of them")
    # By a rounding error some trailing lists have one more, below the last.
    fresh.timesteps = fresh.timesteps[:steps]
    for timestep in (float(fresh.timesteps.max()), float(fresh.timesteps.min())):
        if (name != _FLOW and timestep >= most) or (name in _BY_ALPHAS and timestep < 0):
            raise ScheduleError(f"one would be at timestep {timestep:g} of 0..{most - 1}")
    levels = (_levels_of_alphas if name in _BY_ALPHAS else _levels_of_sigmas)(fresh, name, steps, found)
    angles = torch.atan2(levels[:, 1], levels[:, 0])
    if (angles[1:-1] >= angles[:-2]).any() or angles[-1] > angles[-2]:
        raise ScheduleError("some of them have the same noise level")
    first, signal = float(fresh.timesteps[0]), float(torch.cos(angles[0]))
    # Few steps begin a stride below the last timestep; a stride that is rounded down lets many begin far below.
    if steps > 1 and signal > MOST_SIGNAL and most - 1 - first > first - float(fresh.timesteps[1]) > 0:
        fault = f"where {signal:.0%} of the picture is there"
        raise ScheduleError(f"noise alone would be called timestep {first:g}, {fault}")
    return fresh, levels


def _levels_of_alphas(fresh: Any, name: str, steps: int, found: int) -> Tensor:
    """Levels of schedulers that keep the product of alphas of each trained timestep."""
    timesteps, alphas = fresh.timesteps.cpu(), _float64(fresh.alphas_cumprod)
    final = 1.0  # of DDPM and LCM
    if name == "TCDScheduler":
        final = float(alphas[0])
    elif name == "DDIMScheduler":
        stride = int(fresh.config.num_train_timesteps) // steps
        # Where diffusers' stride fits the list it also says where the last step ends.
        end = int(timesteps[-1]) - stride if bool((timesteps[:-1] - timesteps[1:] == stride).all()) else -1
        final = float(alphas[end] if end >= 0 else fresh.final_alpha_cumprod)
    squares = torch.cat([alphas[timesteps], torch.tensor([final], dtype=torch.float64, device="cpu")])
    return torch.stack([squares.sqrt(), (1 - squares).sqrt()], 1)


def _levels_of_sigmas(fresh: Any, name: str, steps: int, found: int) -> Tensor:
    """Levels of schedulers that keep the noise of each step over its signal, or its share of both (flow matching)."""
    sigmas = _float64(fresh.sigmas)
    sigmas = torch.cat([sigmas[:steps], sigmas[found : found + 1]])
    if name == _FLOW or fresh.config.get("use_flow_sigmas"):
        return torch.stack([1 - sigmas, sigmas], 1)
    signal = torch.ones_like(sigmas) if name in _UNSCALED else (sigmas**2 + 1).rsqrt()
    return torch.stack([signal, sigmas * signal], 1)


class _Steps(NamedTuple):
    """What a model's output says at each step: clean picture x0 and noise, as weights [T] of sample and output."""

    x0_of_sample: Tensor
    x0_of_output: Tensor
    noise_of_sample: Tensor
    noise_of_output: Tensor

    @classmethod
    def between(cls, levels: Tensor, prediction_type: str) -> _Steps:
        """From x = signal x0 + noise n before each step, and what the output is of both."""
        signal, noise = levels[:-1].unbind(1)
        none, one = torch.zeros_like(signal), torch.ones_like(signal)
        if prediction_type == "epsilon":
            return cls(1 / signal, -noise / signal, none, one)
        if prediction_type in ("sample", "original_sample"):
            return cls(none, one, 1 / noise, -signal / noise)
        if prediction_type == "flow_prediction":  # n - x0
            return cls(one, -noise, one, signal)
        size = torch.hypot(signal, noise)  # the output is (signal n - noise x0) / size
        return cls(signal / size**2, -noise / size, noise / size**2, signal / size)


def _weights(name: str, fresh: Any, levels: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """[T] each: x' is made of how much predicted picture, predicted noise and new noise.

    DDIM with eta (Song et al. 2021, equation 12) is all of them but two: with eta 0 it is Euler's and the first-order
    DPM-Solver++ and DEIS, with eta 1 it is DDPM, Euler ancestral and the first-order SDE-DPM-Solver++.
    """
    (signal, noise), (next_signal, next_noise) = levels[:-1].unbind(1), levels[1:].unbind(1)
    if name == "LCMScheduler":
        return _consistency_weights(fresh, levels)
    if name == _FLOW and fresh.config.get("stochastic_sampling"):
        return next_signal, torch.zeros_like(noise), next_noise
    if name == "TCDScheduler":
        # Zheng et al. 2024, algorithm 4: down to an earlier level s without new noise, and up again.
        following = torch.cat([fresh.timesteps[1:], torch.zeros_like(fresh.timesteps[:1])])
        s = ((1 - eta) * following.to("cpu", torch.float32)).floor().long()  # in float32, as diffusers does
        alphas = _float64(fresh.alphas_cumprod)
        up = alphas[following.cpu()] / alphas[s]
        return next_signal, (up * (1 - alphas[s])).sqrt(), (1 - up).sqrt()
    stochastic = name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler")
    if stochastic or "sde" in fresh.config.get("algorithm_type", ""):
        eta = 1.0
    kept = signal * next_noise / (noise * next_signal)
    new = eta * (1 - kept**2).clamp(min=0).sqrt()
    drawn = next_noise * new
    if name == "DDPMScheduler" and fresh.config.variance_type == "fixed_large":
        drawn = (1 - (signal / next_signal) ** 2).sqrt() * (fresh.timesteps.cpu() > 0)
    return next_signal, next_noise * (1 - new**2).sqrt(), drawn


def _consistency_weights(fresh: Any, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_weights`, of LCM (Luo et al. 2023): c_out x0 + c_skip x, noised anew but for the last time."""
    (signal, noise), (next_signal, next_noise) = levels[:-1].unbind(1), levels[1:].unbind(1)
    scaled = _float64(fresh.timesteps) * float(fresh.config.timestep_scaling)
    variance = 0.5**2  # of data
    skip, out = variance / (scaled**2 + variance), scaled / (scaled**2 + variance).sqrt()
    return next_signal * (out + skip * signal), next_signal * skip * noise, next_noise


def _second_order(
    name: str, config: Any, levels: Tensor, steps: _Steps, first: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The tables of a multistep solver of order 2, from those of order 1.

    A step adds w (m - m of the step before). Of DPM-Solver++ (Lu et al. 2022, algorithm 2) m is the predicted picture,
    of DEIS (Zhang and Chen 2023, equation 15 in log rho) the predicted noise; h is the change of log(signal / noise).
    """
    log_ratio = levels[:, 0].log() - levels[:, 1].log()
    h = log_ratio.diff()
    before = torch.cat([torch.ones_like(h[:1]), h[:-1]])  # of the first step nothing
    if name == "DEISMultistepScheduler":
        of_sample, of_output = steps.noise_of_sample, steps.noise_of_output
        ratio = levels[:-1, 1] / levels[:-1, 0]
        weight = -levels[1:, 0] * ratio * (1 - (-h).exp() * (1 + h)) / before
        first_at_last = False
    else:
        of_sample, of_output = steps.x0_of_sample, steps.x0_of_output
        k = 2 if config.algorithm_type == "sde-dpmsolver++" else 1
        change = -torch.expm1(-k * h)
        heun = config.solver_type == "heun"
        weight = levels[1:, 0] * ((h - change / k) if heun else change * h / 2) / before
        first_at_last = config.euler_at_final or config.final_sigmas_type == "zero"
    weight[0] = 0
    if first_at_last or (config.lower_order_final and len(h) < 15):
        weight[-1] = 0
    back = torch.cat([-weight[1:], torch.zeros_like(weight[:1])])
    return {
        "sample_weight": first["sample_weight"] + weight * of_sample,
        "output_weight": first["output_weight"] + weight * of_output,
        "history_sample_weight": back * of_sample,
        "history_output_weight": back * of_output,
        "first_sample_weight": first["sample_weight"],
        "first_output_weight": first["output_weight"],
    }


def _float64(table: Any) -> Tensor:
    return torch.as_tensor(table, device="cpu").to(torch.float64)
