"""A run of the model under a progress bar on stderr, with warnings as single lines beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from adapedit.model import EditModel
from adapedit.prompts.alignment import Alignment, align
from adapedit.request import EditRequest
from adapedit.result import EditResult, check_output
from adapedit_kernels.errors import AdapEditError


def run_edits(
    requests: Sequence[EditRequest],
    *,
    model: str,
    device: str,
    dtype: str,
    runner: str | None = None,
    out: Path | None = None,
    max_rows: int | None = None,
    labels: Sequence[str] | None = None,
) -> list[EditResult]:
    """Check the output folder, load the model, run the edits together, and say on stderr what they warn of.

    labels: of each edit, where there are several, for its warnings.
    """
    if out is not None:
        check_output(out)
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Loading the model", total=None)
        import torch

        from adapedit.bundle import is_bundle, load_any
        from adapedit.pipeline import MAX_ROWS, AdapEditPipeline

        asked = device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {"device": device, "torch_dtype": getattr(torch, dtype)}
        if runner is None and not is_bundle(model):
            pipe = AdapEditPipeline.from_pretrained(model, **options)
        else:
            pipe = AdapEditPipeline(load_any(model, runner=runner, **options))
            refuse_other_device(asked, pipe.model)
        progress.update(task, description="Denoising")
        results = pipe.edit_batch(
            requests,
            max_rows=MAX_ROWS if max_rows is None else max_rows,
            callback=lambda done, total: progress.update(task, completed=done, total=total),
        )
    told = set()
    for result in results:
        if result.image is not None and result.reconstruction_psnr is not None:
            notes = "".join(f"{note}; " for note in result.image.notes)
            told.add(f"the picture: {notes}comes back at {result.reconstruction_psnr:.1f} dB")
    for message in sorted(told):
        print(f"adapedit: {message}", file=sys.stderr)
    for place, result in enumerate(results):
        which = "" if labels is None else f"{labels[place]}: "
        for message in result.warnings:
            print(f"adapedit: warning: {which}{message}", file=sys.stderr)
    return results


def refuse_other_device(asked: str, model: EditModel) -> None:
    """Raise where a device was asked for and a bundle's runner runs on another."""
    if asked != "auto" and asked.partition(":")[0] != model.device.type:
        raise AdapEditError(
            f"--device is {asked}, and the bundle's runner runs on {model.device.type}; choose another by --runner"
        )


def align_only(request: EditRequest, model: str) -> Alignment:
    """The alignment of the request's prompts by the model's tokenizer; nothing else of the model is read."""
    from adapedit.bundle import load_any_vocabulary
    from adapedit.prepare import refuse_unknown_words

    vocabulary = load_any_vocabulary(model)
    for name in ("source", "target"):
        prompt = getattr(request, f"{name}_prompt")
        refuse_unknown_words(prompt, name, vocabulary.facts.known_words, vocabulary.name)
    return align(
        request.source_prompt, request.target_prompt, vocabulary.tokenizer, max_length=vocabulary.max_tokens
    )
