"""AdapEditPipeline: requests in, edited pictures out; unrelated edits share the UNet's batch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adapedit.alignment import Alignment, align
from adapedit.methods.context import EditContext, Findings
from adapedit.methods.registry import make_method
from adapedit.methods.settings import make_settings
from adapedit.model import EditModel, load_model
from adapedit.request import EditRequest
from adapedit.result import EditResult, WordReport
from adapedit_engine.loop import EditOutcome, denoise
from adapedit_engine.schedule import Schedule
from adapedit_kernels.errors import AdapEditError

Progress = Callable[[int, int], None]
MAX_ROWS = 32


class EditWarning(UserWarning):
    """An edit went through, but what it found about the words points at nothing."""


class AdapEditPipeline:
    """Edits pictures from two prompts.

    >>> pipe = AdapEditPipeline.from_pretrained()
    >>> result = pipe(source_prompt="a red dog standing on the grass", target_prompt="a red dog sitting on the grass")
    >>> result.save("out")
    """

    def __init__(self, model: EditModel) -> None:
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype = torch.float32,
        scheduler: Any = None,
    ) -> AdapEditPipeline:
        """Load the built-in model, or a diffusers folder or hub name of Stable Diffusion 1.x or 2.x.

        scheduler: a diffusers scheduler in place of DDIM; see `Schedule.from_scheduler` for those that work.
        Raises `ModelError` in one line for anything that is no such model.
        """
        return cls(load_model(model, device=device, dtype=torch_dtype, scheduler=scheduler))

    def __call__(
        self,
        source_prompt: str,
        target_prompt: str,
        *,
        method: str = "adapedit",
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        height: int | None = None,
        width: int | None = None,
        callback: Progress | None = None,
        **knobs: Any,
    ) -> EditResult:
        """One edit. `knobs` are the method's own, see `adapedit.methods.settings`.

        generator: its next number becomes the seed, so that the result can name the seed that repeats it.
        callback(done, total): called after every step; raising in it cancels.
        """
        if generator is not None and seed is not None:
            raise AdapEditError("got both seed and generator; give one of them")
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        request = EditRequest.make(
            source_prompt=source_prompt,
            target_prompt=target_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=0 if seed is None else seed,
            height=height,
            width=width,
            method=make_settings(method, **knobs),
        )
        return self.edit_batch([request], callback=callback)[0]

    def edit_batch(
        self,
        requests: Sequence[EditRequest],
        *,
        max_rows: int | None = MAX_ROWS,
        callback: Progress | None = None,
    ) -> list[EditResult]:
        """Unrelated edits together: other prompts, methods, knobs and numbers of steps may share a batch.

        max_rows: rows of one UNet call at most (an edit takes four); more edits run group after group.
        All requests are checked before any work; an error names the request by its place.
        """
        if not requests:
            return []
        clock = _Clock()
        contexts, methods, complete = [], [], []
        for place, request in enumerate(requests):
            try:
                request = self._completed(request)
                contexts.append(self._context(request))
                methods.append(make_method(request.method, self.model.facts))
            except AdapEditError as error:
                if len(requests) == 1:
                    raise
                raise type(error)(f"request {place}: {error}") from error
            complete.append(request)
        first = [method.observe(context) for method, context in zip(methods, contexts, strict=True)]
        clock.lap("text")

        report = _Steps(callback, contexts, [plan is not None for plan in first])
        with self.model.runner as runner:
            observed: list[EditOutcome | None] = [None] * len(requests)
            there = [place for place, plan in enumerate(first) if plan is not None]
            passes = denoise(
                [plan for plan in first if plan is not None],
                runner,
                callback=report.observing,
                max_rows=max_rows,
            )
            for place, outcome in zip(there, passes, strict=True):
                observed[place] = outcome
            clock.lap("observe")
            plans = [m.plan(c, o) for m, c, o in zip(methods, contexts, observed, strict=True)]
            edited = denoise(plans, runner, callback=report.editing, max_rows=max_rows)
        clock.lap("edit")
        pictures = [self._pictures(outcome.latents) for outcome in edited]
        clock.lap("decode")
        results = []
        for i, request in enumerate(complete):
            found = methods[i].findings(contexts[i], observed[i], edited[i])
            for message in found.warnings:
                warnings.warn(f"{request.target_prompt!r}: {message}", EditWarning, stacklevel=2)
            results.append(
                _result(request, self.model.name, contexts[i], edited[i], found, pictures[i], clock.seconds)
            )
        return results

    def _completed(self, request: EditRequest) -> EditRequest:
        """The request with every open value filled in from the model."""
        side = self.model.latent_size * self.model.vae_factor
        size = {"height": request.height or side, "width": request.width or side}
        deepest = max(layer.level for layer in self.model.runner.specs.self_layers)
        wanted = self.model.vae_factor * 2**deepest
        for name, value in size.items():
            if value % wanted:
                raise AdapEditError(f"{name} is {value}, wanted a multiple of {wanted} for this model")
        facts = self.model.facts
        return request.model_copy(
            update={
                **size,
                "guidance_scale": facts.guidance_scale
                if request.guidance_scale is None
                else request.guidance_scale,
                "method": request.method.with_defaults(facts.defaults.get(request.method.name, {})),
            }
        )

    def _context(self, request: EditRequest) -> EditContext:
        """Align, encode and draw the first latents of one request."""
        model = self.model
        self._refuse_unknown_words(request)
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
            unconditional=unconditional,
            source=source,
            target=target,
        )

    def _refuse_unknown_words(self, request: EditRequest) -> None:
        known = self.model.facts.known_words
        if known is None:
            return
        for name in ("source", "target"):
            words = getattr(request, f"{name}_prompt").lower().split()
            unknown = [word for word in words if word not in known]
            if unknown:
                raise AdapEditError(
                    f"the {name} prompt has {unknown[0]!r}, a word that model {self.model.name!r} does not know; "
                    f"it knows: {', '.join(known)}"
                )

    def _pictures(self, latents: Tensor) -> list[Image.Image]:
        pixels = self.model.decode(latents).permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy()
        return [Image.fromarray(picture) for picture in pixels]


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self.seconds["total"] = now - self._start
        self._last = now


class _Steps:
    """One progress count over the observing and the editing passes."""

    def __init__(
        self, callback: Progress | None, contexts: Sequence[EditContext], observing: Sequence[bool]
    ) -> None:
        self._callback, self._before, self._first_total = callback, 0, 0
        lengths = [len(context.schedule) for context in contexts]
        self._observe_length = max(
            (n for n, there in zip(lengths, observing, strict=True) if there), default=0
        )
        self._edit_length = max(lengths)

    def observing(self, done: int, total: int) -> None:
        self._first_total = total
        if self._callback is not None:
            self._callback(done, total + self._edit_length * max(1, total // max(1, self._observe_length)))

    def editing(self, done: int, total: int) -> None:
        if self._callback is not None:
            self._callback(self._first_total + done, self._first_total + total)


def _grid(values: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    return values.float().cpu().reshape(*size, *values.shape[1:]).numpy()


def _result(
    request: EditRequest,
    model: str,
    context: EditContext,
    edited: EditOutcome,
    found: Findings,
    pictures: Sequence[Image.Image],
    seconds: dict[str, float],
) -> EditResult:
    assert edited.maps is not None
    return EditResult(
        request=request,
        model=model,
        source_image=pictures[0],
        target_image=pictures[1],
        alignment=context.alignment,
        words=_reports(context.alignment, found),
        source_maps=_grid(edited.maps[0], context.map_size),
        target_maps=_grid(edited.maps[1], context.map_size),
        spatial_map=None if found.spatial_map is None else _grid(found.spatial_map, context.map_size),
        timings=dict(seconds),
        warnings=found.warnings,
    )


def _reports(alignment: Alignment, found: Findings) -> tuple[WordReport, ...]:
    reports = []
    for word in alignment.target_words:
        place = word.tokens[0]
        replaced = alignment.source_words[word.counterpart] if word.counterpart is not None else None
        reports.append(
            WordReport(
                text=word.text,
                kind=word.kind,
                is_key=word.is_key,
                replaces=replaced.text if replaced is not None and word.kind == "replaced" else None,
                word_steps=None if found.word_steps is None else float(found.word_steps[place]),
                relation=None if found.relation is None else float(found.relation[place]),
            )
        )
    return tuple(reports)
