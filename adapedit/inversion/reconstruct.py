"""How much of a picture survives an inversion without any edit, beside what the VAE alone gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adapedit.inversion.run import Wanted, invert
from adapedit.inversion.settings import INVERSIONS, make_inversion_settings
from adapedit.methods.context import EditContext
from adapedit.methods.settings import Plain
from adapedit.model import EditModel
from adapedit.prepare import complete, make_context
from adapedit.request import EditRequest
from adapedit.result import psnr
from adapedit_engine.denoising import denoise

VAE = "VAE alone"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """A picture after its inversion and its denoising under the source prompt, with guidance.

    psnr, ssim:  against the picture as the model takes it; decibels (at most 60), and -1..1.
    latent_rmse: root mean square distance of the last latents to the picture's own: what the VAE has no part in.
    seconds:     of the inversion and the denoising, shared by the pictures that ran together. An inversion that was
                 found in a cache on disk costs next to nothing: settings with cache="off" time what it takes.
    """

    inversion: str
    picture: Image.Image
    psnr: float
    ssim: float
    latent_rmse: float
    seconds: float


def reconstruct(
    model: EditModel,
    pictures: Sequence[tuple[Any, str]],
    *,
    inversions: Mapping[str, Any] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    seed: int = 0,
    fit: str = "crop",
    max_rows: int | None = 32,
    callback: Callable[[str], None] | None = None,
) -> list[list[Reconstruction]]:
    """Per picture, what the VAE and each inversion make of it.

    pictures:   each a path or a `PIL.Image`, with the prompt that describes it.
    inversions: settings by label; by default all with their own defaults.
    callback:   called with an inversion's label after each of its UNet calls.

    Pictures are checked before any work. Those given together share UNet calls.
    """
    chosen = {n: make_inversion_settings(n) for n in INVERSIONS} if inversions is None else inversions
    jobs = {
        label: [
            _prepared(model, image, prompt, settings, num_inference_steps, guidance_scale, seed, fit)
            for image, prompt in pictures
        ]
        for label, settings in chosen.items()
    }
    first = next(iter(jobs.values()), None) or [
        _prepared(model, image, prompt, None, num_inference_steps, guidance_scale, seed, fit)
        for image, prompt in pictures
    ]
    found = [[_measured(VAE, model, one.context, one.context.image_latents, 0.0)] for one in first]
    for label, wanted in jobs.items():
        told = None if callback is None else partial(callback, label)
        start = time.perf_counter()
        with model.runner as runner:
            contexts = invert(wanted, model, runner, max_rows=max_rows, callback=told)
            outcomes = denoise(
                [context.plan((context.source,)) for context in contexts],
                runner,
                max_rows=max_rows,
                callback=_each_time(told),
            )
        seconds = time.perf_counter() - start
        for place, (context, outcome) in enumerate(zip(contexts, outcomes, strict=True)):
            found[place].append(_measured(label, model, context, outcome.latents[:1], seconds))
    return found


def _each_time(told: Callable[[], None] | None) -> Callable[[int, int], None] | None:
    return None if told is None else lambda done, total: told()


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 1.5 pixels) of two RGB pictures of one size."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            np.asarray(one), np.asarray(other), channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
    )  # fmt: skip


def _prepared(
    model: EditModel,
    image: Any,
    prompt: str,
    settings: Any,
    steps: int,
    guidance_scale: float | None,
    seed: int,
    fit: str,
) -> Wanted:
    from adapedit.images import ImageInput

    request = EditRequest.make(
        source_prompt=prompt,
        target_prompt=prompt,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        method=Plain(),
        image=ImageInput.of(image, fit),  # type: ignore[arg-type]
        inversion=settings,
    )
    completed = complete(request, model)
    return Wanted(context=make_context(completed, model), settings=completed.inversion, seed=seed)


def _measured(
    label: str, model: EditModel, context: EditContext, latents: Tensor | None, seconds: float
) -> Reconstruction:
    assert latents is not None and context.image is not None and context.image_latents is not None
    latents = latents.float().cpu()
    pixels = model.decode(latents)[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(pixels)
    return Reconstruction(
        inversion=label,
        picture=picture,
        psnr=psnr(context.image.picture, picture),
        ssim=ssim(context.image.picture, picture),
        latent_rmse=float((latents - context.image_latents).square().mean().sqrt()),
        seconds=seconds,
    )
