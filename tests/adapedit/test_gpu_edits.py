"""Edits on a CUDA device: those of the CPU, through every way of running them, and without waiting between steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from adapedit import AdapEditPipeline, EditResult
from adapedit.methods.registry import make_method
from adapedit.methods.settings import AdapEdit, PromptToPrompt
from adapedit.prepare import complete, make_context
from adapedit_engine import PyTorchRunner, denoise
from adapedit_engine.runners.compiled import CompiledRunner
from adapedit_engine.scheduler import EngineExecutor, Scheduler
from adapedit_engine.static_steps import StaticSteps
from benchmarks import common, trace
from tests.engine.every_plan import one_pass, plans
from tests.engine.tiny import largest, tiny_unet
from tests.helpers.edits import request
from tests.helpers.pictures import request as of_a_picture
from tests.helpers.tiny_editor import save_tiny_editor

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def float32_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions take TF32 by default, which keeps 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> AdapEditPipeline:
    return AdapEditPipeline.from_pretrained(tiny_folder, device=DEVICE)


@cache
def built_in(device: str, dtype: torch.dtype) -> AdapEditPipeline:
    return AdapEditPipeline.from_pretrained(device=device, torch_dtype=dtype)


def levels(result: EditResult) -> np.ndarray:
    """Both pictures, source first."""
    return np.stack([np.asarray(image, np.int16) for image in (result.source_image, result.target_image)])


def apart(one: EditResult, other: EditResult) -> np.ndarray:
    """Differences of all values of both pictures, in grey levels."""
    return np.abs(levels(one) - levels(other))


@pytest.mark.parametrize("single_pass", [False, True], ids=["two passes", "single pass"])
@pytest.mark.parametrize(
    ("dtype", "mean", "steps_apart"), [(torch.float32, 0.01, 1e-3), (torch.float16, 0.3, 1e-2)]
)
def test_a_whole_edit_is_that_of_the_cpu(
    dtype: torch.dtype, mean: float, steps_apart: float, single_pass: bool
) -> None:
    asked = common.request(0, 8, method=AdapEdit(single_pass=single_pass))
    (wanted,) = built_in("cpu", torch.float32).edit_batch([asked])
    (got,) = built_in(DEVICE, dtype).edit_batch([asked])
    assert apart(got, wanted).mean() < mean
    source, target = levels(wanted)
    assert np.abs(source - target).mean() > 2  # an edit it is
    for one, other in zip(got.words, wanted.words, strict=True):
        assert one.text == other.text and one.word_steps == pytest.approx(other.word_steps, abs=steps_apart)


@pytest.mark.parametrize("name", ["adapedit", "prompt-to-prompt", "masactrl"])
def test_an_edit_of_a_picture_is_that_of_the_cpu(
    name: str, pipe: AdapEditPipeline, tiny: AdapEditPipeline
) -> None:
    asked = of_a_picture(method=name)
    (wanted,), (got,) = pipe.edit_batch([asked]), tiny.edit_batch([asked])
    assert apart(got, wanted).max() <= 1


def test_methods_stream_through_one_server(
    pipe: AdapEditPipeline, tiny: AdapEditPipeline, tmp_path: Path
) -> None:
    editor = str(save_tiny_editor(tmp_path))
    asked = [
        request(),
        request(single_pass=True, seed=1),
        request(method="sdedit", strength=0.6),
        request(method="instruct-pix2pix", instruction="a red dog sitting", checkpoint=editor),
    ]
    found = {item.place: item for item in tiny.stream(asked)}
    assert [found[place].error for place in range(len(asked))] == [None] * len(asked)
    for place, wanted in enumerate(pipe.edit_batch(asked)):
        assert apart(found[place].result, wanted).max() <= 1


@pytest.mark.filterwarnings("error::adapedit_engine.static_steps.GraphWarning")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_steps_replayed_as_graphs_are_those_of_the_loop(compiled: bool) -> None:
    # A compilation takes half a minute for each number of rows: that of four alone.
    names = ("an edit", "a blend by maps", "the single pass") if compiled else tuple(plans())
    wanted, max_rows = [plans()[name] for name in names], 4 if compiled else 12
    make = CompiledRunner if compiled else PyTorchRunner
    with PyTorchRunner(tiny_unet(), map_divisor=1) as on_cpu:
        expected = [denoise([each], on_cpu)[0] for each in wanted]
    with make(tiny_unet().to(DEVICE), map_divisor=1, static_steps=True) as runner:
        scheduler = Scheduler(EngineExecutor(runner), max_rows=max_rows)
        tickets = []
        for each in wanted:
            tickets.append(scheduler.submit(one_pass(each)))
            scheduler.step()
        scheduler.drain()
        again = [denoise([each], runner)[0] for each in wanted]
        slots = StaticSteps.of(runner)
    assert slots is not None and slots.stats.hit_rate > 0.5
    for ticket, other, outcome in zip(tickets, again, expected, strict=True):
        bound = 1e-3 * max(1.0, float(outcome.latents.abs().max()))
        assert largest(ticket.future.result().latents.cpu(), outcome.latents) < bound
        assert largest(other.latents.cpu(), outcome.latents) < bound


@pytest.mark.parametrize(
    "method",
    [PromptToPrompt(self_replace_steps=0.4), AdapEdit(single_pass=True), AdapEdit()],
    ids=["prompt-to-prompt", "single pass", "first pass"],
)
def test_nothing_waits_for_the_device_between_steps(method: Any, tiny: AdapEditPipeline) -> None:
    asked = complete(common.request(0, 4, method=method), tiny.model)
    context, made = make_context(asked, tiny.model), make_method(asked.method, tiny.model.facts)
    wanted = made.observe(context) or made.plan(context, None)
    with tiny.model.runner as runner:
        trace.run(wanted, runner)  # kernels are compiled once
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            trace.run(wanted, runner)
    assert trace.waits_inside(found.events()) == {}
