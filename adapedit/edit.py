"""The life of an edit: prepared, run in passes, finished. The same for `edit_batch` and for the server."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adapedit.calls import Draw, draw_from
from adapedit.images import OpenedImage, OpenedMask
from adapedit.inversion import Direct
from adapedit.inversion.base import Wanted, inversion_passes
from adapedit.loading import Vocabulary
from adapedit.methods.base import Context, Encoding, Method
from adapedit.model import EditModel, NumericError
from adapedit.prompts.alignment import Alignment, align
from adapedit.prompts.tokens import prompt_ids, tokenize_words, word_spans
from adapedit.request import EditRequest
from adapedit.result import EditResult, make_result
from adapedit.sharing import Caches, share
from adapedit_engine.cache import HostCopies, HostCopy, digest
from adapedit_engine.models.layers import SIZES
from adapedit_engine.models.text import HIDDEN
from adapedit_engine.plan import EditOutcome, EditPlan, merge, split, tracks_of
from adapedit_engine.scheduler import AdmissionError
from adapedit_kernels.errors import AdapEditError


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """A request that was checked, aligned and encoded.

    request: with every open value filled in. draft: its plan as far as it is known before the first pass: all but
    values. observe: that pass, where there is one. steps: of all its passes. began: by `time.perf_counter`.
    """

    request: EditRequest
    context: Context
    method: Method
    observe: EditPlan | None
    draft: EditPlan
    steps: int
    began: float = field(default_factory=time.perf_counter)

    def with_context(self, context: Context) -> Edit:
        """The same from its inverted picture."""
        return replace(self, context=context, observe=self.method.observe(context))


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """An edit after its last pass, ready to be finished: or the error that it, and not its neighbours, ran into."""

    edit: Edit
    seen: EditOutcome | None = None
    edited: HostCopy | None = None
    error: Exception | None = None


TOLD_SIZES = ("original_size", "crops_coords_top_left", "target_size")
"""Fields of a request that SDXL is told, in this order."""
LastPasses = dict[int, list[tuple[int, tuple[int, ...]]]]
"""Of the plans in which edits are made, by their `id`: the places of the edits, and their tracks."""
Passes = Generator[list[EditPlan], list[EditOutcome], list[Edited]]


def prepare(
    request: EditRequest,
    model: EditModel,
    caches: Caches,
    draw: Draw | None = None,
    *,
    max_rows: int | None = None,
) -> Edit:
    """Check, align and encode a request. Raises `AdapEditError` for anything that could not run.

    draw: what the first latents are drawn from; None: a generator of the request's seed. max_rows: of one call.
    """
    began = time.perf_counter()
    request = complete(request, model)
    context, method = make_context(request, model, caches, draw), request.method
    draft, observe = method.plan(context, None), method.observe(context)
    draft.check_model(model.runner.specs)
    if max_rows is not None and draft.rows > max_rows:
        raise AdmissionError(f"an edit takes {draft.rows} rows, max_rows is {max_rows}: raise it")
    steps = draft.steps + (0 if observe is None else observe.steps)
    if request.inversion is not None:
        steps += request.inversion.steps(len(context.schedule))
    return Edit(
        request=request,
        context=context,
        method=method,
        observe=observe,
        draft=draft,
        steps=steps,
        began=began,
    )


def passes(
    edits: Sequence[Edit],
    model: EditModel,
    caches: Caches,
    copies: HostCopies,
    last: LastPasses | None = None,
) -> Passes:
    """A job of edits whose sources are one: plans to run, whose outcomes are sent back, until all are edited.

    last: filled with the plans of the last pass before they are run.
    """
    edits = yield from _inverted(edits, model, caches)
    seen = yield from _observed(edits, caches)
    done: dict[int, Edited] = {}
    plans: dict[int, EditPlan] = {}
    for i, edit in enumerate(edits):
        try:
            plans[i] = edit.method.plan(edit.context, seen.get(i))
        except Exception as error:
            done[i] = Edited(edit=edit, error=error)
    outcomes = yield from _shared(plans, last)
    for i, outcome in outcomes.items():
        done[i] = Edited(edit=edits[i], seen=seen.get(i), edited=copies.begin(outcome))
    return [done[i] for i in range(len(edits))]


def finish(edited: Edited, model: EditModel, caches: Caches) -> EditResult:
    """Decode an edit's pictures, and put the result together. Raises what the edit ran into."""
    if edited.error is not None or edited.edited is None:
        raise edited.error or RuntimeError("the edit was never run")
    edit, start = edited.edit, time.perf_counter()
    raw = edited.edited.get()
    _refuse_broken(raw)
    outcome = edit.method.finish(edit.context, edited.seen, raw)
    source, target = outcome.latents[:2]
    # A copy: whoever is given a picture may draw on it.
    source_image = caches.pictures.get(digest(source), lambda: picture_of(source, model)).copy()
    edited_image = picture_of(target, model)
    now = time.perf_counter()
    return make_result(
        request=edit.request,
        model=model,
        context=edit.context,
        edited=outcome,
        found=edit.method.findings(edit.context, edited.seen, outcome),
        source_image=source_image,
        edited_image=edited_image,
        seconds={"edit": start - edit.began, "decode": now - start, "total": now - edit.began},
    )


def picture_of(latents: Tensor, model: EditModel) -> Image.Image:
    """Latents [C, h, w] as a picture."""
    pixels = model.decode(latents[None])[0].permute(1, 2, 0).mul(255).round()
    return Image.fromarray(pixels.to(torch.uint8).numpy())


# -- passes


def _inverted(
    edits: Sequence[Edit], model: EditModel, caches: Caches
) -> Generator[list[EditPlan], list[EditOutcome], list[Edit]]:
    begun = list(edits)
    places = [i for i, edit in enumerate(edits) if edit.request.inversion is not None]
    wanted = [
        Wanted(context=edit.context, inversion=edit.request.inversion, seed=edit.request.seed)
        for edit in edits
        if edit.request.inversion is not None
    ]
    contexts = (yield from inversion_passes(wanted, model, caches.inversions)) if wanted else []
    for i, context in zip(places, contexts, strict=True):
        begun[i] = edits[i].with_context(context)
    return begun


def _observed(
    edits: Sequence[Edit], caches: Caches
) -> Generator[list[EditPlan], list[EditOutcome], dict[int, EditOutcome]]:
    """First passes by place. Of those that are the same, as of one edit with other knobs, one is run."""
    keys = {i: edit.observe.digest() for i, edit in enumerate(edits) if edit.observe is not None}
    known = {key: caches.observations.find(key) for key in set(keys.values())}
    missing: dict[int, EditPlan] = {}
    for i, key in keys.items():
        plan = edits[i].observe
        if known[key] is None and plan is not None and key not in {keys[other] for other in missing}:
            missing[i] = plan
    fresh = (yield from _shared(missing)) if missing else {}
    for i, fresh_one in fresh.items():
        known[keys[i]] = fresh_one
        caches.observations.keep(keys[i], fresh_one)
    return {i: outcome for i, key in keys.items() if (outcome := known[key]) is not None}


def _shared(
    plans: dict[int, EditPlan], told: LastPasses | None = None
) -> Generator[list[EditPlan], list[EditOutcome], dict[int, EditOutcome]]:
    """Outcomes by place of plans, of which those that can share a source are run as one."""
    places, values = list(plans), list(plans.values())
    groups = share(values)
    merged = [merge([values[k] for k in group]) for group in groups]
    if told is not None:
        for group, plan in zip(groups, merged, strict=True):
            tracks = tracks_of([values[k] for k in group])
            told[id(plan)] = [(places[k], own) for k, own in zip(group, tracks, strict=True)]
    outcomes = yield merged
    found: dict[int, EditOutcome] = {}
    for group, outcome in zip(groups, outcomes, strict=True):
        parts = split(outcome, [values[k] for k in group])
        found |= {places[k]: part for k, part in zip(group, parts, strict=True)}
    return found


def _refuse_broken(outcome: EditOutcome) -> None:
    if outcome.broken_step is None:
        return
    broken = [step for step in outcome.broken_step.tolist() if step >= 0]
    if broken:
        raise NumericError.of(f"the model at step {min(broken) + 1}")


# -- preparing


def complete(request: EditRequest, model: EditModel) -> EditRequest:
    """The request with every open value filled in from the model. Raises where a size does not fit it."""
    size = {"height": request.height or model.side, "width": request.width or model.side}
    wanted = model.vae_factor * 2 ** max(layer.level for layer in model.runner.specs.self_layers)
    for name, value in size.items():
        if value % wanted:
            raise AdapEditError(f"{name} is {value}, wanted a multiple of {wanted} for this model")
    model.check_size(size["height"], size["width"])
    specs = model.runner.specs
    check_channels(request, model.name, specs.in_channels, specs.out_channels)
    model.check_chunks(request.max_embeddings_multiples)
    for name in TOLD_SIZES:
        if getattr(request, name) is not None and SIZES not in model.runner.specs.conditioning:
            raise AdapEditError(f"{name} is told to SDXL, and {model.name!r} is none; leave {name} out")
    facts, guidance = model.facts, request.guidance_scale
    method = request.method.with_defaults(facts.defaults.get(request.method.name, {}))
    scale = facts.guidance_scale if guidance is None else guidance
    negatives = _negatives(request, getattr(method, "text_guidance", scale))
    image = None if request.image is None else request.image.read()[0]
    inversion = request.inversion if image is not None and method.inverts else None
    if image is not None and method.inverts and inversion is None:
        inversion = Direct()
    return request.model_copy(
        update={
            **size,
            **negatives,
            "image": image,
            "mask": None if request.mask is None else request.mask.read()[0],
            "inversion": inversion,
            "guidance_scale": scale,
            "method": method,
        }
    )


def check_channels(request: EditRequest, name: str, takes: int, gives: int) -> None:
    """Raise for a request without the pictures that a model of this name sees beside its latents, if it does."""
    if takes == 2 * gives and request.method.name != "instruct-pix2pix":
        raise AdapEditError(
            f"model {name!r} follows instructions: its UNet takes {takes} channels, a picture's among them; use method "
            "'instruct-pix2pix' with image"
        )
    if takes == 2 * gives + 1 and (request.image is None or request.mask is None):
        raise AdapEditError(
            f"model {name!r} inpaints: its UNet takes {takes} channels, a picture's and a mask's among them; "
            "give image and mask"
        )


def _negatives(request: EditRequest, scale: float) -> dict[str, str | None]:
    """Both negative prompts; None where nothing was said. Raises where guidance is off, which has none."""
    names = ("source_negative_prompt", "target_negative_prompt")
    own = {name: getattr(request, name) for name in names}
    found = {name: request.negative_prompt if text is None else text for name, text in own.items()}
    if scale <= 1 and any(found.values()):
        name = "negative_prompt" if request.negative_prompt else next(name for name in names if own[name])
        raise AdapEditError(
            f"{name} acts by guidance, and its scale is {scale:g}: raise guidance_scale above 1, or leave {name} out"
        )
    return found


def make_context(request: EditRequest, model: EditModel, caches: Caches, draw: Draw | None = None) -> Context:
    """Align, encode and draw the first latents of a completed request.

    A real picture that has to be inverted stands for the first latents until that is done.
    """
    image, mask = _opened(request, model)
    alignment = align_request(request, model)
    schedule = model.schedule(request.num_inference_steps, request.solver)
    assert request.height is not None and request.width is not None and request.guidance_scale is not None
    channels, factor = model.runner.specs.out_channels, model.vae_factor
    shape = (channels, request.height // factor, request.width // factor)
    drawn = draw or partial(draw_from, torch.Generator("cpu").manual_seed(request.seed))
    chunks = alignment.num_tokens // model.max_tokens
    told = partial(_encoded, request=request, chunks=chunks, model=model, caches=caches)
    latents = drawn(1, *shape) * schedule.init_noise_sigma
    noise = drawn(len(schedule), *shape) if schedule.stochastic else None
    context = Context(
        alignment=alignment,
        facts=model.facts,
        specs=model.runner.specs,
        schedule=schedule,
        guidance_scale=request.guidance_scale,
        latents=latents,
        noise=noise,
        source=told(request.source_prompt, "source prompt"),
        target=told(request.target_prompt, "target prompt"),
        source_negative=told(request.source_negative_prompt, "source negative prompt"),
        target_negative=told(request.target_negative_prompt, "target negative prompt"),
        guidance_until=request.guidance_until,
        latent_scale=model.latent_scale,
        instruction=None if (text := _texts(request)["instruction"]) is None else told(text, "instruction"),
        mask=mask,
    )
    return context if image is None else _of_picture(context, image, request.inversion, model)


def align_request(request: EditRequest, model: EditModel | Vocabulary) -> Alignment:
    """How the prompts are aligned. Raises `AdapEditError` for what is wrong with any text of the request."""
    _refuse_unknown_words(request, model)
    limits: dict[str, Any] = {"tokenizer": model.tokenizer, "max_length": model.max_tokens}
    cut = [
        tokenize_words(text, **limits, chunks=request.max_embeddings_multiples, name=name)
        for name, text in _texts(request).items()
        if text is not None and text.strip()
    ]
    chunks = max(one.positions[-1][0] // model.max_tokens + 1 for one in cut)
    return align(request.source_prompt, request.target_prompt, **limits, chunks=chunks)


def _texts(request: EditRequest) -> dict[str, str | None]:
    """All that text encoders are given, by what errors call it."""
    return {
        "source prompt": request.source_prompt,
        "target prompt": request.target_prompt,
        "negative prompt": request.negative_prompt,
        "source negative prompt": request.source_negative_prompt,
        "target negative prompt": request.target_negative_prompt,
        "instruction": getattr(request.method, "instruction", None),
    }


def _refuse_unknown_words(request: EditRequest, model: EditModel | Vocabulary) -> None:
    """Raise for the first word, or sign, of a request's texts that a model with a closed vocabulary does not know."""
    known = model.facts.known_words
    if known is None:
        return
    for name, text in _texts(request).items():
        words = [(text or "")[start:stop] for start, stop in word_spans(text or "")]
        unknown = [word for word in words if word.lower() not in known]
        if unknown:
            raise AdapEditError(
                f"the {name} has {unknown[0]!r}, a word that model {model.name!r} does not know; "
                f"it knows: {', '.join(known)}"
            )


def _encoded(
    prompt: str | None, name: str, *, request: EditRequest, chunks: int, model: EditModel, caches: Caches
) -> Encoding:
    """One text as the model takes it: encoded alone, it does not depend on what else is asked for.

    Chunks are encoded as prompts of their own and joined; what is pooled is the first one's. None: no prompt at all,
    which some models are told by zeros, and others by an empty one.
    """
    if prompt is None or not prompt.strip():
        ids = model.unconditional_ids().repeat(1, chunks)
    else:
        found = prompt_ids(prompt, model.tokenizers, max_length=model.max_tokens, chunks=chunks, name=name)
        ids = torch.tensor(found, dtype=torch.int64, device="cpu")

    def encode() -> dict[str, Tensor]:
        # In host memory, where it is looked at later without waiting for a device.
        told = {n: value.cpu() for n, value in model.encode_ids(ids.unflatten(1, (chunks, -1))).items()}
        return {n: value.flatten(0, 1) if n == HIDDEN else value[0] for n, value in told.items()}

    told = dict(caches.prompts.get(digest(ids), encode))
    if not all(bool(value.isfinite().all()) for value in told.values()):
        raise NumericError.of("the text encoder")
    if prompt is None and model.facts.zero_unconditional:
        told = {name: torch.zeros_like(value) for name, value in told.items()}
    if SIZES in model.runner.specs.conditioning:
        size = (request.height, request.width)
        sizes = zip((getattr(request, name) for name in TOLD_SIZES), (size, (0, 0), size), strict=True)
        numbers = [number for own, usual in sizes for number in own or usual]
        told[SIZES] = torch.tensor(numbers, dtype=torch.float32, device="cpu")
    return Encoding(hidden_states=told.pop(HIDDEN), conditioning=told)


def _inpainting(context: Context, pixels: Tensor, model: EditModel) -> Context:
    """With what every row of an inpainting model sees besides: the mask, and the picture without what may change."""
    assert context.mask is not None
    cells = torch.from_numpy(context.mask.cells)[None, None]
    hidden = torch.nn.functional.interpolate(cells, pixels.shape[-2:], mode="nearest") > 0
    channels = torch.cat([cells, model.encode(torch.where(hidden, 0.5, pixels))], dim=1)[0]
    names = ("source", "target", "source_negative", "target_negative")
    told = {
        name: replace(one, conditioning={**one.conditioning, "channels": channels})
        for name in names
        for one in (getattr(context, name),)
    }
    return replace(context, **told)


def _opened(request: EditRequest, model: EditModel) -> tuple[OpenedImage | None, OpenedMask | None]:
    """The picture and the mask of a completed request, which have to fit together."""
    assert request.height is not None and request.width is not None
    size = (request.width, request.height)
    image = None if request.image is None else request.image.open(size)
    if request.mask is None:
        return image, None
    if request.image is None or image is None:
        return None, request.mask.open(size, size, model.vae_factor)
    mask = request.mask.open(image.size, size, model.vae_factor, request.image.fit)
    return image, replace(mask, original=request.image.read()[1])


def _of_picture(context: Context, image: OpenedImage, inversion: Any, model: EditModel) -> Context:
    pixels = torch.from_numpy(np.array(image.picture)).permute(2, 0, 1)[None].float() / 255
    latents = model.encode(pixels)
    if not bool(latents.isfinite().all()):
        raise NumericError.of("the VAE's encoder")
    if latents.shape != context.latents.shape:
        raise AdapEditError(
            f"the picture has latents of {tuple(latents.shape[1:])}, the edit of {tuple(context.latents.shape[1:])}; "
            "leave height and width out"
        )
    found = replace(context, image=image, image_latents=latents)
    if model.runner.specs.in_channels > 2 * len(latents[0]):
        found = _inpainting(found, pixels, model)
    if inversion is None:
        return replace(found, source_latents=found.noised(latents))
    inversion.check(found, model)
    return replace(found, latents=latents)
