"""AdapEditPipeline: requests in, edited pictures out; unrelated edits share the model's batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from adapedit.calls import Draw, EditWarning, make_call
from adapedit.checkpoints import Source
from adapedit.configs import ModelError
from adapedit.edit import Edit, finish, passes, prepare
from adapedit.habits import Habits
from adapedit.images import Fit, ImageInput
from adapedit.loading import load_any, load_bundle, load_model, load_pipe
from adapedit.methods import METHODS, make_settings
from adapedit.model import EditModel
from adapedit.request import (
    EditRequest,
    check_callback,
    check_count,
    check_preview,
    check_request,
    check_requests,
    refuse_names,
)
from adapedit.result import EditResult
from adapedit.sharing import Caches, share
from adapedit.watching import Preview, StepEnd, Watching
from adapedit_engine.cache import HostCopies
from adapedit_engine.scheduler import Enough, Scheduler, Ticket
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from adapedit.server import EditServer, Finished

MAX_ROWS = 32
LOADING = {
    "subfolder": "a folder that holds what is wanted",
    "dtype": "torch_dtype",
    "device_map": "device",
    **dict.fromkeys(
        ("token", "cache_dir", "force_download"), "HF_TOKEN, HF_HOME, or a folder that you fetched"
    ),
    **dict.fromkeys(("feature_extractor", "use_safetensors"), "none: leave it out"),
    **dict.fromkeys(
        ("unet", "vae", "text_encoder", "tokenizer"), "from_pipe with a pipeline that has that part"
    ),
}
"""Names of diffusers' `from_pretrained`, and what to use instead."""

Progress = Callable[[int, int], None]
Texts = str | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """What a call wants to be told between steps."""

    preview: Preview | None = None
    step_end: StepEnd | None = None


class AdapEditPipeline(Habits):
    """Edits pictures from two prompts.

    >>> pipe = AdapEditPipeline.from_pretrained()
    >>> result = pipe(source_prompt="a red dog standing on the grass", target_prompt="a red dog sitting on the grass")
    >>> result.save("out")
    """

    def __init__(self, model: EditModel) -> None:
        if not isinstance(model, EditModel):
            raise AdapEditError(
                f"got a {type(model).__name__}, wanted a model that was loaded here; "
                "use AdapEditPipeline.from_pretrained(folder), or from_pipe(pipeline)"
            )
        self.model = model
        self._interrupt = False
        self._bar: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        scheduler: Any = None,
        safety_checker: Any = ...,
        runner: str | None = None,
        **others: Any,
    ) -> AdapEditPipeline:
        """Load the built-in model (None), or a diffusers folder or hub name of Stable Diffusion 1.x, 2.x or XL.

        variant: the word in the names of weight files, such as "fp16" or "non_ema"; parts that have none are read
        without. revision, local_files_only: of a hub's model, as in diffusers.
        device: None: CUDA where there is a device of it, else the CPU. scheduler: a diffusers scheduler in place of
        DDIM; see `Schedule.from_scheduler` for those that work. runner: "pytorch" (None), "pytorch-compiled", or one
        of bundles, for which the model is exported once into the user's cache. safety_checker: none is run; a warning
        says so of a checkpoint that has one, unless None is given.
        Raises `ModelError` in one line for anything that is no such model, and for options of diffusers' that are not
        supported.
        """
        refuse_names(others, LOADING)
        if others:
            raise ModelError(
                f"no option {min(others)!r}; the options: device, torch_dtype, variant, revision, local_files_only, "
                "scheduler, runner"
            )
        source = Source(place=model, variant=variant, revision=revision, local_files_only=local_files_only)
        loaded = load_any(source, device=device, dtype=torch_dtype, scheduler=scheduler, runner=runner)
        return cls(_unchecked(loaded, safety_checker))

    @classmethod
    def from_single_file(
        cls,
        file: str | Path,
        *,
        config: str | Path | None = None,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        torch_dtype: torch.dtype = torch.float32,
        scheduler: Any = None,
    ) -> AdapEditPipeline:
        """Load a single .safetensors file of Stable Diffusion 1.x, 2.x or XL, by diffusers' own conversion.

        config: a folder in the diffusers layout, whose configurations and tokenizers are taken, and no weights. Without
        it the published architecture is taken (of 2.x that of 768 pixels), and `tokenizer` is the folder of a CLIP
        tokenizer, or one. Nothing is fetched. Raises `ModelError` in one line for pickles and for other files.
        """
        source = Source(place=file, config=config, tokenizer=tokenizer)
        if not source.is_file:
            raise ModelError(f"{source.name} is no file of weights (.safetensors); use from_pretrained")
        return cls(load_model(source, device=device, dtype=torch_dtype, scheduler=scheduler))

    @classmethod
    def from_pipe(cls, pipe: Any, *, scheduler: Any = None, safety_checker: Any = ...) -> AdapEditPipeline:
        """A pipeline over the modules of a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`, left as it is.

        The modules are shared where they lie; the other pipeline must not run while this one does. scheduler: None: its
        own. safety_checker: see `from_pretrained`. Raises `ModelError` for other pipelines, and for offloaded ones.
        """
        return cls(_unchecked(load_pipe(pipe, scheduler), safety_checker))

    @classmethod
    def from_bundle(
        cls,
        bundle: str | Path,
        runner: str = "onnxruntime",
        *,
        device: str | torch.device | None = None,
        verify: bool = True,
    ) -> AdapEditPipeline:
        """Load a bundle made by `adapedit export`, executed by a runner of `adapedit_engine.runners`.

        device: of the runner's kind, such as "cuda:1"; None: its first. verify: compare the files
        with the manifest's sums. Raises `BundleError` for a folder that is no whole bundle, and `RunnerError` for a
        runner that can't run here; no other one takes its place.
        """
        return cls(load_bundle(bundle, runner, device=device, verify=verify))

    @property
    def scheduler(self) -> Any:
        """The diffusers scheduler whose noise schedule edits follow. Assigning another one takes effect at once."""
        return self.model.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.model = self.model.with_scheduler(scheduler)

    def __call__(
        self,
        source_prompt: Texts | None = None,
        target_prompt: Texts | None = None,
        *,
        prompt_weights: bool = False,
        max_embeddings_multiples: int = 1,
        negative_prompt: Texts | None = None,
        source_negative_prompt: Texts | None = None,
        target_negative_prompt: Texts | None = None,
        method: str = "adapedit",
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_until: float = 1.0,
        solver: str = "model",
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_prompt: int | None = None,
        height: int | None = None,
        width: int | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        callback: Progress | None = None,
        callback_on_step_end: Any = None,
        preview: Preview | None = None,
        preview_every: int | None = None,
        image: str | Path | Image.Image | None = None,
        fit: Fit = "crop",
        mask: Any = None,
        inversion: Any = None,
        **knobs: Any,
    ) -> Any:
        """One edit, or a list of them. `knobs` are the method's own; other fields: see `EditRequest`.

        A list comes back where prompts are lists, or `seeds`, `num_images_per_prompt` or several generators are given:
        every picture of the first pair of prompts, then of the next, all in one batch.

        image:     a real picture to edit, which the source prompt describes; fit: to the model's size, "crop" (its
                   middle), "pad" or "stretch".
        mask:      where it may change, white, and where it stays, black: of the picture's size. A real picture then
                   comes back at its own size, untouched where it stays.
        inversion: the name of one, or settings; by default "direct".
        seeds:     an edit each. num_images_per_prompt: so many, of `seed` and those that follow.
        generator: what the first latents are drawn from, as in diffusers; of several one for each.
        callback(done, total): called after every step; raising in it cancels.
        callback_on_step_end(pipe, step, timestep, {"latents": ...}): as in diffusers, after each step of an edit's last
                   pass: what it returns as "latents", those of source and target, [2, C, h, w], takes their place, and
                   `pipe._interrupt = True` ends the edit with what it has.
        preview(step, picture): called every `preview_every` steps with a small picture of the target.
        """
        if isinstance(source_prompt, EditRequest):
            raise AdapEditError("got a request, wanted prompts; use edit_batch([request])[0]")
        own = METHODS[method].model_fields if isinstance(method, str) and method in METHODS else ()
        refuse_names(name for name in knobs if name not in own)
        texts = {
            "source_prompt": source_prompt,
            "target_prompt": target_prompt,
            "negative_prompt": negative_prompt,
            "source_negative_prompt": source_negative_prompt,
            "target_negative_prompt": target_negative_prompt,
        }
        call = make_call(
            {
                **{name: text for name, text in texts.items() if text is not None},
                "prompt_weights": prompt_weights,
                "max_embeddings_multiples": max_embeddings_multiples,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "guidance_until": guidance_until,
                "solver": solver,
                "height": height,
                "width": width,
                "original_size": original_size,
                "crops_coords_top_left": crops_coords_top_left,
                "target_size": target_size,
                "method": make_settings(method, **knobs),
                "image": None if image is None else ImageInput.of(image, fit),
                "mask": mask,
                "inversion": inversion,
                "preview_every": preview_every,
            },
            seed=seed,
            seeds=seeds,
            generator=generator,
            num_images_per_prompt=num_images_per_prompt,
        )
        check_preview(preview, preview_every)
        watched = _Watched(preview=preview, step_end=self._step_end(callback_on_step_end))
        found = self._edited(call.requests, callback=callback, draws=call.draws, watched=watched)
        return found if call.several else found[0]

    def set_progress_bar_config(self, **config: Any) -> None:
        """Show a bar on every call from here on, as diffusers does. config: of `tqdm`; disable=True: none."""
        self._bar = {"desc": "Denoising", **config}

    def _step_end(self, callback: Any) -> StepEnd | None:
        """Diffusers' `callback_on_step_end` as what is called between steps."""
        if callback is None:
            return None
        if not callable(callback):
            raise AdapEditError(
                f"callback_on_step_end is {callback!r}, wanted a function of pipe, step, timestep and tensors"
            )
        self._interrupt = False

        def step_end(step: int, timestep: float, latents: Tensor) -> Tensor | None:
            # Outside of inference mode, so that whoever is called may do with them what he likes.
            found = callback(self, step, timestep, {"latents": latents}) or {}
            if self._interrupt:
                raise Enough
            return found.get("latents")

        return step_end

    def edit_batch(
        self,
        requests: Sequence[EditRequest],
        *,
        max_rows: int | None = MAX_ROWS,
        share_sources: bool = True,
        callback: Progress | None = None,
    ) -> list[EditResult]:
        """Unrelated edits together: other prompts, methods, knobs and numbers of steps share a batch.

        max_rows:      rows of one call of the model at most (an edit takes four); edits wait for room. None: no limit.
        share_sources: run a source that several edits have in common once: 2 (1 + K) rows for K edits of it.
                       Pictures are the same within a grey level.
        callback(done, total): called after every step, in steps of all edits; raising in it cancels.

        All requests are checked before any work, and an error names the request by its place. An error of one edit
        while it runs ends the batch; `serve` or `stream` go on with the others.
        """
        check_requests(requests)
        return self._edited(list(requests), max_rows=max_rows, share_sources=share_sources, callback=callback)

    def _edited(
        self,
        requests: list[EditRequest],
        *,
        max_rows: int | None = MAX_ROWS,
        share_sources: bool = True,
        callback: Progress | None = None,
        draws: Sequence[Draw | None] | None = None,
        watched: _Watched | None = None,
    ) -> list[EditResult]:
        check_callback(callback)
        if max_rows is not None:
            check_count("max_rows", max_rows)
        caches, watched = Caches.of(self.model.runner), watched or _Watched()
        edits = self._prepared(requests, caches, max_rows, draws or [None] * len(requests))
        drafts = [edit.draft for edit in edits]
        # Who changes latents between steps changes those of one edit.
        apart = not share_sources or watched.step_end is not None
        groups = [(i,) for i in range(len(edits))] if apart else share(drafts, max_rows=max_rows)
        results: dict[int, EditResult] = {}
        with self.model.runner as runner:
            rows = max_rows or sum(max(edit.draft.rows, (edit.observe or edit.draft).rows) for edit in edits)
            scheduler = Scheduler(runner, max_rows=max(rows, 1), projections=caches.projections)
            copies = HostCopies(self.model.device)
            jobs: dict[Ticket, tuple[int, ...]] = {}
            for group in groups:
                jobs[self._submitted(scheduler, [edits[i] for i in group], caches, copies, watched)] = group
            # Edits that share a source run the steps of one.
            totals = {ticket: max(edits[i].steps for i in group) for ticket, group in jobs.items()}
            try:
                with self._shown(sum(totals.values())) as tell:
                    while not scheduler.idle:
                        ended = scheduler.step()
                        tell(_done(totals))
                        if callback is not None:
                            callback(_done(totals), sum(totals.values()))
                        for ticket in ended:
                            for i, edited in zip(jobs[ticket], ticket.future.result(), strict=True):
                                results[i] = finish(edited, self.model, caches)
            finally:
                scheduler.close()
        for i in range(len(edits)):
            for message in results[i].warnings:
                warnings.warn(f"{results[i].request.target_prompt!r}: {message}", EditWarning, stacklevel=3)
        return [results[i] for i in range(len(edits))]

    def _submitted(
        self, scheduler: Scheduler, edits: list[Edit], caches: Caches, copies: HostCopies, watched: _Watched
    ) -> Ticket:
        watching = Watching(
            model=self.model,
            edits=edits,
            previews=[watched.preview for _ in edits],
            step_end=watched.step_end,
        )
        work = passes(edits, self.model, caches, copies, watching.last)
        return scheduler.submit(work, watch=watching if watching.wanted else None)

    @contextmanager
    def _shown(self, total: int) -> Iterator[Callable[[int], object]]:
        """A bar for so many steps, where one was asked for: what is called with those that are done."""
        if self._bar is None:
            yield lambda done: None
            return
        from tqdm.auto import tqdm

        with tqdm(total=total, **self._bar) as bar:
            yield lambda done: bar.update(done - bar.n)

    def _prepared(
        self,
        requests: list[EditRequest],
        caches: Caches,
        max_rows: int | None,
        draws: Sequence[Draw | None],
    ) -> list[Edit]:
        edits: list[Edit] = []
        for place, (request, draw) in enumerate(zip(requests, draws, strict=True)):
            try:
                check_request(request)
                edits.append(prepare(request, self.model, caches, draw, max_rows=max_rows))
            except AdapEditError as error:
                if len(requests) == 1:
                    raise
                raise type(error)(f"request {place}: {error}") from error
        return edits

    def serve(self, **options: Any) -> EditServer:
        """A server in the background, for edits that arrive when they like: `with pipe.serve() as server:`.

        `server.submit(request)` gives a future, `server.stream(requests)` results as they finish. options: those
        of `EditServer`.
        """
        from adapedit.server import EditServer

        return EditServer(self.model, **options)

    def stream(
        self,
        requests: Iterable[EditRequest],
        *,
        ahead: int | None = None,
        callback: Progress | None = None,
        **options: Any,
    ) -> Iterator[Finished]:
        """Edits as they finish, from requests that are taken as there is room. See `EditServer.stream`."""
        with self.serve(**options) as server:
            yield from server.stream(requests, ahead=ahead, callback=callback)


def _unchecked(model: EditModel, safety_checker: Any) -> EditModel:
    """The model, whose safety checker is not run: said, unless it was said to be none by who asked for the model."""
    if safety_checker not in (None, ...):
        kind = type(safety_checker).__name__
        raise ModelError(
            f"safety_checker is a {kind}, and none is run here; give None, and check the results"
        )
    if model.safety_checker_off and safety_checker is ...:
        warnings.warn(
            f"the safety checker of {model.name} is not run here: pictures are given as they are made; "
            "safety_checker=None says that this is known",
            EditWarning,
            stacklevel=3,
        )
    return model


def _done(totals: dict[Ticket, int]) -> int:
    """Steps that jobs have done of those that they were expected to take; all of them once they have ended."""
    return sum(
        total if ticket.future.done() else min(ticket.steps_done, total) for ticket, total in totals.items()
    )
