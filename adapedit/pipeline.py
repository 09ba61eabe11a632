"""AdapEditPipeline: requests in, edited pictures out; unrelated edits share the UNet's batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from adapedit.approximations import split as split_approximations
from adapedit.checked import REPLAY_BYTES, CheckedEdit, inverted_edits
from adapedit.images import Fit, ImageInput
from adapedit.methods.settings import make_settings
from adapedit.model import EditModel, load_model
from adapedit.progress import Clock, Progress, StepCount
from adapedit.request import (
    EditRequest,
    check_callback,
    check_count,
    check_request,
    check_requests,
    check_seeding,
)
from adapedit.result import EditResult, make_result
from adapedit.sharing import alike_passes, merge, share, split
from adapedit_engine.denoising import denoise
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner
from adapedit_engine.trajectories import Trajectories
from adapedit_kernels.errors import AdapEditError

if TYPE_CHECKING:
    from adapedit.serving import EditServer, Finished

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
        static_steps: bool | None = None,
    ) -> AdapEditPipeline:
        """Load the built-in model, or a diffusers folder or hub name of Stable Diffusion 1.x or 2.x.

        scheduler: a diffusers scheduler in place of DDIM; see `Schedule.from_scheduler` for those that work.
        static_steps: run each step over buffers that stay where they are, as one CUDA graph where the device is one of
        CUDA, and the same without a graph elsewhere; None: on CUDA. See `adapedit_engine.static_steps.StaticSteps`.
        Raises `ModelError` in one line for anything that is no such model.
        """
        return cls(
            load_model(
                model, device=device, dtype=torch_dtype, scheduler=scheduler, static_steps=static_steps
            )
        )

    @classmethod
    def from_bundle(
        cls, bundle: str | Path, runner: str = "onnxruntime", *, verify: bool = True
    ) -> AdapEditPipeline:
        """Load a bundle made by `adapedit export`, executed by a runner of `adapedit_engine.runners.registry`.

        verify: compare the files with the manifest's sums. Raises `BundleError` for a folder that is no whole
        bundle, and `RunnerError` for a runner that can't run here; no other one takes its place.
        """
        from adapedit.bundle import load_bundle

        return cls(load_bundle(bundle, runner, verify=verify))

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
        image: str | Path | Image.Image | None = None,
        fit: Fit = "crop",
        inversion: Any = None,
        **knobs: Any,
    ) -> EditResult:
        """One edit. `knobs` are the method's own, see `adapedit.methods.settings`, and `adapedit.approximations`.

        image:     a real picture to edit, which the source prompt describes; fit: to the model's size, "crop" (its
                   middle), "pad" or "stretch".
        inversion: the name of one, or settings (`adapedit.inversion.make_inversion_settings`); by default "direct".
        generator: its next number becomes the seed, so that the result can name the seed that repeats it.
        callback(done, total): called after every step; raising in it cancels.
        """
        check_seeding(seed, generator)
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        approximations, of_method = split_approximations(knobs)
        request = EditRequest.make(
            **approximations,
            source_prompt=source_prompt,
            target_prompt=target_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=0 if seed is None else seed,
            height=height,
            width=width,
            method=make_settings(method, **of_method),
            image=None if image is None else ImageInput.of(image, fit),
            inversion=inversion,
        )
        return self.edit_batch([request], callback=callback)[0]

    def edit_batch(
        self,
        requests: Sequence[EditRequest],
        *,
        max_rows: int | None = MAX_ROWS,
        share_sources: bool = True,
        callback: Progress | None = None,
    ) -> list[EditResult]:
        """Unrelated edits together: other prompts, methods, knobs and numbers of steps may share a batch.

        max_rows:      rows of one UNet call at most (an edit takes four); more edits run group after group.
        share_sources: run a source that several edits have in common once: 2 (1 + K) rows for K edits of it.
                       Pictures are the same within a grey level.
        callback(done, total): called after every UNet call; raising in it cancels.

        All requests are checked before any work; an error names the request by its place.
        """
        check_requests(requests)
        requests = list(requests)
        check_callback(callback)
        if max_rows is not None:
            check_count("max_rows", max_rows)
        if not requests:
            return []
        clock = Clock()
        edits = []
        for place, request in enumerate(requests):
            try:
                check_request(request)
                edits.append(CheckedEdit.of(request, self.model))
            except AdapEditError as error:
                if len(requests) == 1:
                    raise
                raise type(error)(f"request {place}: {error}") from error
        clock.lap("text")
        edits, calls = inverted_edits(edits, self.model, max_rows, callback)
        if calls:
            clock.lap("invert")
        drafts = [edit.draft for edit in edits]
        observing = {place: edit.observe for place, edit in enumerate(edits) if edit.observe is not None}
        # Of passes that are the same, as those of one edit with other knobs are, one is run.
        alike = alike_passes(observing) if share_sources else [(place,) for place in observing]
        passing = [observing[places[0]] for places in alike]
        first = _groups(passing, share_sources, max_rows)
        second = _groups(drafts, share_sources, max_rows)
        observations = [merge([passing[k] for k in group]) for group in first]
        routes = routed(second, [edit.runner for edit in edits])
        merged = [[merge([drafts[i] for i in group]) for group in groups] for _, groups in routes]
        trajectories = Trajectories(REPLAY_BYTES, self.model.runner, records_all=False)
        # A source that the first pass runs is not run again in the second.
        with self.model.runner as runner, ExitStack() as recorded:
            observations = [
                recorded.enter_context(
                    trajectories.attached(plan, [drafts[i] for k in group for i in alike[k]])
                )
                for plan, group in zip(observations, first, strict=True)
            ]
            known = [observations] + [
                [plan if other else trajectories.foreseen(plan) for plan in plans]
                for (other, _), plans in zip(routes, merged, strict=True)
            ]
            steps = StepCount(callback, known, max_rows, before=calls)
            seen: dict[int, EditOutcome] = {}
            passes = denoise(observations, runner, callback=steps.of(0), max_rows=max_rows)
            for group, outcome in zip(first, passes, strict=True):
                for k, part in zip(group, split(outcome, [passing[k] for k in group]), strict=True):
                    seen |= dict.fromkeys(alike[k], part)
            clock.lap("observe")
            plans = [edit.method.plan(edit.context, seen.get(i)) for i, edit in enumerate(edits)]
        finished: dict[int, EditOutcome] = {}
        for place, (other, groups) in enumerate(routes, start=1):
            merged_plans = [merge([plans[i] for i in group]) for group in groups]
            with other or self.model.runner as runner, ExitStack() as replayed:
                if other is None:
                    merged_plans = [
                        replayed.enter_context(trajectories.attached(plan)) for plan in merged_plans
                    ]
                edited = denoise(merged_plans, runner, callback=steps.of(place), max_rows=max_rows)
            for group, outcome in zip(groups, edited, strict=True):
                parts = split(outcome, [plans[i] for i in group])
                for i, part in zip(group, parts, strict=True):
                    finished[i] = edits[i].method.finish(edits[i].context, seen.get(i), part)
        clock.lap("edit")
        # An open runner of a bundle keeps torch's threads off its cores.
        with self.model.runner, self.model.fast_vae():
            painted = self._painted(finished.values())
        clock.lap("decode")

        results: list[EditResult] = []
        for i, edit in enumerate(edits):
            source, target = finished[i].latents
            results.append(
                make_result(
                    request=edit.request,
                    model=self.model,
                    context=edit.context,
                    edited=finished[i],
                    found=edit.method.findings(edit.context, seen.get(i), finished[i]),
                    source_image=painted[_key(source)],
                    target_image=painted[_key(target)],
                    seconds=clock.seconds,
                )
            )
        for result in results:
            for message in result.warnings:
                warnings.warn(f"{result.request.target_prompt!r}: {message}", EditWarning, stacklevel=2)
        return results

    def serve(self, **options: Any) -> EditServer:
        """A server in the background, for edits that arrive when they like: `with pipe.serve() as server:`.

        `server.submit(request)` gives a future, `server.stream(requests)` results as they finish. options: those
        of `EditServer`.
        """
        from adapedit.serving import EditServer

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

    def _painted(self, outcomes: Iterable[EditOutcome]) -> dict[bytes, Image.Image]:
        """Every track's picture, by its latents: a source that many edits share is decoded once."""
        tracks = {_key(latents): latents for outcome in outcomes for latents in outcome.latents}
        pictures = {}
        for key, latents in tracks.items():
            pixels = self.model.decode(latents[None])[0].permute(1, 2, 0)
            pictures[key] = Image.fromarray(pixels.mul(255).round().to(torch.uint8).numpy())
        return pictures


def routed(
    groups: Sequence[tuple[int, ...]], runners: Sequence[Runner | None]
) -> list[tuple[Runner | None, list[tuple[int, ...]]]]:
    """The groups by what runs them, in the order of their first ones. Edits of one group have one runner."""
    routes: dict[int, tuple[Runner | None, list[tuple[int, ...]]]] = {}
    for group in groups:
        runner = runners[group[0]]
        routes.setdefault(id(runner), (runner, []))[1].append(group)
    return list(routes.values())


def _groups(plans: Sequence[EditPlan], shared: bool, max_rows: int | None) -> list[tuple[int, ...]]:
    return share(plans, max_rows=max_rows) if shared else [(place,) for place in range(len(plans))]


def _key(latents: Tensor) -> bytes:
    return latents.cpu().numpy().tobytes()
