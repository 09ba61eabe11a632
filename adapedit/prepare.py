"""From a request to what a method is given: filled in, checked, aligned, encoded, with its first latents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from adapedit.alignment import align
from adapedit.images import open_image
from adapedit.inversion.registry import make_inversion
from adapedit.inversion.settings import Direct
from adapedit.methods.context import EditContext
from adapedit.methods.registry import inverts
from adapedit.model import EditModel
from adapedit.request import EditRequest
from adapedit.words import tokenize_words, word_spans
from adapedit_engine.reuse import check_reuse
from adapedit_engine.schedule import Schedule, scheduler_of
from adapedit_kernels.errors import AdapEditError

__all__ = ["complete", "make_context", "refuse_unknown_words"]


def complete(request: EditRequest, model: EditModel) -> EditRequest:
    """The request with every open value filled in from the model. Raises where a size does not fit it."""
    side = model.latent_size * model.vae_factor
    size = {"height": request.height or side, "width": request.width or side}
    deepest = max(layer.level for layer in model.runner.specs.self_layers)
    wanted = model.vae_factor * 2**deepest
    for name, value in size.items():
        if value % wanted:
            raise AdapEditError(f"{name} is {value}, wanted a multiple of {wanted} for this model")
    facts, guidance = model.facts, request.guidance_scale
    image = None if request.image is None else request.image.read()[0]
    inversion = None
    if image is not None and inverts(request.method):
        inversion = Direct() if request.inversion is None else request.inversion
    return request.model_copy(
        update={
            **size,
            "image": image,
            "inversion": inversion,
            "guidance_scale": facts.guidance_scale if guidance is None else guidance,
            "method": request.method.with_defaults(facts.defaults.get(request.method.name, {})),
        }
    )


def make_context(request: EditRequest, model: EditModel) -> EditContext:
    """Align, encode and draw the first latents of a completed request.

    A real picture that has to be inverted stands for the first latents until that is done.
    """
    check_reuse(request.feature_interval, request.cross_attention_until, model.runner)
    for name in ("source", "target"):
        refuse_unknown_words(getattr(request, f"{name}_prompt"), name, model.facts.known_words, model.name)
    alignment = align(
        request.source_prompt, request.target_prompt, model.tokenizer, max_length=model.max_tokens
    )
    scheduler = scheduler_of(request.solver, model.scheduler)
    schedule = Schedule.from_scheduler(scheduler, request.num_inference_steps)
    ids = torch.stack([model.unconditional_ids(), alignment.source_input_ids, alignment.target_input_ids])
    # One prompt at a time: its encoding does not depend on what else is asked for.
    unconditional, source, target = (model.encode_ids(row[None])[0] for row in ids)
    instruction = _instruction(request, model)
    assert request.height is not None and request.width is not None and request.guidance_scale is not None
    channels = model.runner.specs.out_channels
    shape = (channels, request.height // model.vae_factor, request.width // model.vae_factor)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    latents = torch.randn(1, *shape, generator=generator) * schedule.init_noise_sigma
    noise = torch.randn(len(schedule), *shape, generator=generator) if schedule.stochastic else None
    context = EditContext(
        alignment=alignment,
        facts=model.facts,
        specs=model.runner.specs,
        schedule=schedule,
        guidance_scale=request.guidance_scale,
        latents=latents,
        noise=noise,
        levels=schedule.levels[:-1],
        unconditional=unconditional,
        source=source,
        target=target,
        guidance_until=request.guidance_until,
        feature_interval=request.feature_interval,
        cross_attention_until=request.cross_attention_until,
        latent_scale=model.latent_scale,
        instruction=instruction,
    )
    return context if request.image is None else _of_picture(context, request, model)


def _of_picture(context: EditContext, request: EditRequest, model: EditModel) -> EditContext:
    assert request.image is not None and request.height is not None and request.width is not None
    size = (request.width, request.height)
    image = open_image(request.image.read()[1], size=size, fit=request.image.fit, name=request.image.file)
    pixels = torch.from_numpy(np.array(image.picture)).permute(2, 0, 1)[None].float() / 255
    latents = model.encode(pixels)
    if latents.shape != context.latents.shape:
        raise AdapEditError(
            f"the picture has latents of {tuple(latents.shape[1:])}, the edit of {tuple(context.latents.shape[1:])}; "
            "leave height and width out"
        )
    found = replace(context, image=image, image_latents=latents)
    if request.inversion is None:
        return replace(found, source_latents=_noised(found))
    make_inversion(request.inversion).check(found, model)
    return replace(found, latents=latents)


def _noised(context: EditContext) -> Tensor:
    """[T, C, h, w]: the picture with the first latents' noise at the level after each step, and at last alone."""
    assert context.image_latents is not None
    signal, noise = context.levels.float().reshape(-1, 2, 1, 1, 1).unbind(1)
    drawn = context.latents / context.schedule.init_noise_sigma
    return torch.cat([(signal * context.image_latents + noise * drawn)[1:], context.image_latents])


def _instruction(request: EditRequest, model: EditModel) -> Tensor | None:
    """Hidden states [N, D] of the method's own text, where it has one."""
    text: str | None = getattr(request.method, "instruction", None)
    if text is None:
        return None
    refuse_unknown_words(text, "instruction", model.facts.known_words, model.name)
    ids = tokenize_words(text, model.tokenizer, max_length=model.max_tokens, name="instruction").input_ids
    return model.encode_ids(torch.tensor([ids]))[0]


def refuse_unknown_words(prompt: str, name: str, known: tuple[str, ...] | None, model: str) -> None:
    """Raise for the first word, or sign, of `prompt` that a model with a closed vocabulary does not know."""
    if known is None:
        return
    words = (prompt[start:stop] for start, stop in word_spans(prompt))
    unknown = [word for word in words if word.lower() not in known]
    if unknown:
        raise AdapEditError(
            f"the {name} prompt has {unknown[0]!r}, a word that model {model!r} does not know; "
            f"it knows: {', '.join(known)}"
        )
