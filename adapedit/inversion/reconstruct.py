"""How much of a picture survives an inversion without any edit, beside what the VAE alone gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adapedit.edit import complete, make_context
from adapedit.images import ImageInput
from adapedit.inversion import INVERSIONS, make_inversion_settings
from adapedit.inversion.base import Wanted, inversion_passes
from adapedit.methods import Plain
from adapedit.methods.base import Context
from adapedit.model import EditModel
from adapedit.request import EditRequest
from adapedit.result import psnr
from adapedit.sharing import Caches
from adapedit_engine.plan import EditOutcome, EditPlan
from adapedit_engine.scheduler import Scheduler

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
    fit: str = "crop",
    max_rows: int = 32,
    callback: Callable[[str], None] | None = None,
    **fields: Any,
) -> list[list[Reconstruction]]:
    """Per picture, what the VAE and each inversion make of it.

    pictures:   each a path or a `PIL.Image`, with the prompt that describes it.
    inversions: settings by label; by default all with their own defaults.
    callback:   called with an inversion's label after each step.
    fields:     of `EditRequest`: num_inference_steps, guidance_scale, seed.

    Pictures are checked before any work. Those given together share calls of the model.
    """
    chosen = {n: make_inversion_settings(n) for n in INVERSIONS} if inversions is None else inversions
    jobs = {
        label: [_wanted(model, image, prompt, settings, fit, fields) for image, prompt in pictures]
        for label, settings in chosen.items()
    }
    first = next(iter(jobs.values()), None) or [_wanted(model, *one, None, fit, fields) for one in pictures]
    found = [[_measured(VAE, model, one.context, one.context.image_latents, 0.0)] for one in first]
    for label, wanted in jobs.items():
        start = time.perf_counter()
        with model.runner as runner:
            scheduler = Scheduler(runner, max_rows=max_rows)
            ticket = scheduler.submit(_passes(wanted, model))
            while not scheduler.idle:
                scheduler.step()
                if callback is not None:
                    callback(label)
        seconds = time.perf_counter() - start
        for place, (context, outcome) in enumerate(ticket.future.result()):
            found[place].append(_measured(label, model, context, outcome.latents[:1], seconds))
    return found


def _passes(
    wanted: Sequence[Wanted], model: EditModel
) -> Generator[list[EditPlan], list[EditOutcome], list[tuple[Context, EditOutcome]]]:
    contexts = yield from inversion_passes(wanted, model)
    outcomes = yield [context.plan(("source",), collect=False) for context in contexts]
    return list(zip(contexts, outcomes, strict=True))


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window of 1.5 pixels) of two RGB pictures of one size."""
    from skimage.metrics import structural_similarity

    how = {"channel_axis": 2, "data_range": 255, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(np.asarray(one), np.asarray(other), gaussian_weights=True, **how))


def _wanted(
    model: EditModel, image: Any, prompt: str, settings: Any, fit: str, fields: Mapping[str, Any]
) -> Wanted:
    request = EditRequest.make(
        source_prompt=prompt,
        target_prompt=prompt,
        method=Plain(),
        image=ImageInput.of(image, fit),  # type: ignore[arg-type]
        inversion=settings,
        **fields,
    )
    completed = complete(request, model)
    assert completed.inversion is not None
    context = make_context(completed, model, Caches.of(model.runner))
    return Wanted(context=context, inversion=completed.inversion, seed=completed.seed)


def _measured(
    label: str, model: EditModel, context: Context, latents: Tensor | None, seconds: float
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
