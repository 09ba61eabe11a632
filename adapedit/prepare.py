"""From a request to what a method is given: filled in, checked, aligned, encoded, with its first latents."""

from __future__ import annotations

import torch

from adapedit.alignment import align
from adapedit.methods.context import EditContext
from adapedit.model import EditModel
from adapedit.noising import noise_levels
from adapedit.request import EditRequest
from adapedit_engine.schedule import Schedule
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
    return request.model_copy(
        update={
            **size,
            "guidance_scale": facts.guidance_scale if guidance is None else guidance,
            "method": request.method.with_defaults(facts.defaults.get(request.method.name, {})),
        }
    )


def make_context(request: EditRequest, model: EditModel) -> EditContext:
    """Align, encode and draw the first latents of a completed request."""
    for name in ("source", "target"):
        refuse_unknown_words(getattr(request, f"{name}_prompt"), name, model.facts.known_words, model.name)
    alignment = align(
        request.source_prompt, request.target_prompt, model.tokenizer, max_length=model.max_tokens
    )
    schedule = Schedule.from_scheduler(model.scheduler, request.num_inference_steps)
    ids = torch.stack([model.unconditional_ids(), alignment.source_input_ids, alignment.target_input_ids])
    # One prompt at a time: its encoding does not depend on what else is asked for.
    unconditional, source, target = (model.encode_ids(row[None])[0] for row in ids)
    assert request.height is not None and request.width is not None and request.guidance_scale is not None
    channels = model.runner.specs.out_channels
    shape = (channels, request.height // model.vae_factor, request.width // model.vae_factor)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    latents = torch.randn(1, *shape, generator=generator) * schedule.init_noise_sigma
    noise = torch.randn(len(schedule), *shape, generator=generator) if schedule.stochastic else None
    return EditContext(
        alignment=alignment,
        facts=model.facts,
        specs=model.runner.specs,
        schedule=schedule,
        guidance_scale=request.guidance_scale,
        latents=latents,
        noise=noise,
        levels=noise_levels(model.scheduler, request.num_inference_steps),
        unconditional=unconditional,
        source=source,
        target=target,
        guidance_until=request.guidance_until,
    )


def refuse_unknown_words(prompt: str, name: str, known: tuple[str, ...] | None, model: str) -> None:
    """Raise for the first word of `prompt` that a model with a closed vocabulary does not know."""
    if known is None:
        return
    unknown = [word for word in prompt.lower().split() if word not in known]
    if unknown:
        raise AdapEditError(
            f"the {name} prompt has {unknown[0]!r}, a word that model {model!r} does not know; "
            f"it knows: {', '.join(known)}"
        )
