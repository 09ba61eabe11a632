"""Null-text inversion: for each step the empty prompt under which guidance leads back to the picture."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from adapedit.inversion.base import (
    Inversion,
    InversionError,
    Inverted,
    Passes,
    guided_steps,
    inversion_key,
    refuse_noise,
    trajectory,
)
from adapedit.methods.base import Context, Encoding, Knob

if TYPE_CHECKING:
    from torch import Tensor

    from adapedit.inversion.cache import InversionCache
    from adapedit.model import EditModel
    from adapedit_engine.models.unet import ControlledUNet

RISE = 2e-5
"""By how much the distance that is good enough rises from step to step (Mokady et al.)."""


class NullText(Inversion, name="null-text"):
    """Null-text inversion (Mokady et al. 2023): the empty prompt of each step is optimised until guidance leads back.

    DDIM backwards without guidance, then Adam; each step begins with the empty prompt of the one before, the first with
    the negative prompt where there is one, which then has to be that of both pictures. Needs gradients, so it runs in
    PyTorch alone.

    inner_steps:   of Adam at each denoising step, at most.
    learning_rate: of Adam at the first step; it falls linearly to half of that.
    early_stop:    mean squared distance of the latents at which a step is good enough; it rises with the steps.
    cache:         folder of finished inversions; None: in the user's cache folder; "off": none. It does not change
                   what comes out and is not written down.
    """

    inner_steps: Annotated[int, Field(ge=1, le=1000, strict=True)] = 10
    learning_rate: Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False, strict=True)] = 0.01
    early_stop: Knob = 1e-5
    cache: str | None = Field(default=None, exclude=True)

    def check(self, context: Context, model: EditModel) -> None:
        refuse_noise(context)
        if not model.runner.capabilities.gradients:
            raise InversionError(
                "inversion 'null-text' needs gradients, which a bundle does not have; use 'direct', or the checkpoint"
            )
        if "channels" in context.source.conditioning:
            raise InversionError(
                "inversion 'null-text' does not know an inpainting model's channels; use 'direct'"
            )
        if not context.source_negative.equal(context.target_negative):
            raise InversionError(
                "inversion 'null-text' searches one negative prompt for both pictures; give both the same by "
                "negative_prompt, or use 'direct'"
            )

    def steps(self, steps: int) -> int:
        return 2 * steps

    def passes(self, context: Context, model: EditModel, seed: int) -> Passes:
        import torch

        cache, unet = self._cache(), _unet(model)
        key = self._key(context, model) if cache is not None else ""
        steps = len(context.schedule)
        shapes = {
            "unconditional": (steps, *context.source.hidden_states.shape),
            "latents": tuple(context.latents.shape),
        }
        found = None if cache is None else cache.find(key, shapes)
        if found is None:
            path = yield from trajectory(context)
            search = _Search(self, context, unet)
            rows, latents = [], path[:1]
            for step in range(steps):
                latents = search.step(step, latents, path[step + 1 : step + 2])
                rows.append(search.empty.float().cpu())
                yield []
            found = {"unconditional": torch.stack(rows), "latents": path[:1].clone()}
            if cache is not None:
                cache.keep(key, found)
        return Inverted(
            schedule=context.schedule, latents=found["latents"], unconditional_steps=found["unconditional"]
        )

    def _cache(self) -> InversionCache | None:
        from adapedit.inversion.cache import InversionCache, default_folder

        folder = self.cache
        return None if folder == "off" else InversionCache(default_folder() if folder is None else folder)

    def _key(self, context: Context, model: EditModel) -> str:
        from adapedit.inversion.cache import weights_digest

        plain = self.model_copy(update={"cache": None})
        weights = f"{weights_digest(_unet(model).unet)} {model.runner.dtype}"
        return hashlib.sha256((inversion_key(context, plain, 0) + weights).encode()).hexdigest()


def _unet(model: EditModel) -> ControlledUNet:
    from adapedit_engine.runners.pytorch import PyTorchRunner

    assert isinstance(model.runner, PyTorchRunner)
    return model.runner.controlled


class _Search:
    """The optimisation, step after step. empty [N, D]: the last one found, in the model's dtype and device."""

    def __init__(self, settings: NullText, context: Context, unet: ControlledUNet) -> None:
        import torch

        weight = next(unet.parameters())
        self._settings, self._schedule, self._unet = settings, context.schedule, unet
        self._guidance = context.guidance_scale
        self._until = guided_steps(context, len(context.schedule))
        self._device, self._dtype = weight.device, weight.dtype
        # Clones: what was made without gradients may not take part in a search for them.
        self._source, bare = self._told(context.source), context.source_negative
        self.empty = bare.hidden_states.to(self._device, torch.float32, copy=True)
        self._beside = self._told(bare).conditioning

    def _told(self, prompt: Encoding) -> Encoding:
        hidden = prompt.hidden_states.to(self._device, self._dtype, copy=True)
        beside = {name: value.to(self._device, copy=True) for name, value in prompt.conditioning.items()}
        return Encoding(hidden_states=hidden, conditioning=beside)

    def step(self, step: int, latents: Tensor, wanted: Tensor) -> Tensor:
        """Improve `empty` for one step, and take it: latents [1, C, h, w] to those after it."""
        import torch

        with torch.inference_mode(False):
            x, goal = (value.to(self._device, torch.float32, copy=True) for value in (latents, wanted))
            with torch.no_grad():
                text = self._predict(step, x, self._source)
            if step < self._until and self._guidance > 1:
                self._improve(step, x, goal, text)
            with torch.no_grad():
                return self._next(step, x, self.empty, text)

    def _improve(self, step: int, x: Tensor, goal: Tensor, text: Tensor) -> None:
        import torch

        share = step / (2 * len(self._schedule))
        # A mean over many cells has gradients below what float16 can hold: there it is the sum that is followed back.
        scale = 2.0 ** x.numel().bit_length() if self._dtype == torch.float16 else 1.0
        with torch.enable_grad():
            empty = self.empty.clone().requires_grad_(True)
            adam = torch.optim.Adam([empty], lr=self._settings.learning_rate * (1 - share))
            for _ in range(self._settings.inner_steps):
                loss = (self._next(step, x, empty, text) - goal).square().mean()
                # Of `empty` alone: modules that another pipeline trains get no gradients here.
                (gradient,) = torch.autograd.grad(loss * scale, empty)
                empty.grad = gradient / scale
                adam.step()
                if float(loss.detach()) < self._settings.early_stop + step * RISE:
                    break
        if empty.isfinite().all():
            self.empty = empty.detach()

    def _next(self, step: int, x: Tensor, empty: Tensor, text: Tensor) -> Tensor:
        predicted = text
        if step < self._until and self._guidance > 1:
            told = Encoding(hidden_states=empty.to(self._dtype), conditioning=self._beside)
            bare = self._predict(step, x, told)
            predicted = (1 - self._guidance) * bare + self._guidance * text
        a, b = (float(table[step]) for table in (self._schedule.sample_weight, self._schedule.output_weight))
        return a * x + b * predicted

    def _predict(self, step: int, x: Tensor, prompt: Encoding) -> Tensor:
        import torch

        scale, time = float(self._schedule.input_scale[step]), float(self._schedule.timesteps[step])
        sample = (x * scale).to(self._dtype)
        timestep = torch.full((1,), time, dtype=torch.float32, device=self._device)
        told = {name: value[None] for name, value in prompt.conditioning.items()}
        found = self._unet(sample, timestep, prompt.hidden_states[None], conditioning=told, capture=False)
        return found.noise_pred.float()
