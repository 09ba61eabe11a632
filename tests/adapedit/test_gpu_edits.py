"""Edits on a CUDA device: those of the CPU, through every way of running them, and without waiting between steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapedit import AdapEditPipeline, EditResult
from adapedit.edit import complete, make_context
from adapedit.methods import AdapEdit, PromptToPrompt
from adapedit.sharing import Caches
from adapedit_engine.batch import Batch
from adapedit_engine.cuda_graph import CapturedSteps, GraphWarning
from adapedit_engine.step import step
from benchmarks import common
from tests.helpers.edits import request
from tests.helpers.pictures import request as of_a_picture

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


@pytest.mark.parametrize("two_pass", [True, False], ids=["two passes", "single pass"])
@pytest.mark.parametrize(
    ("dtype", "mean", "steps_apart"), [(torch.float32, 0.01, 1e-3), (torch.float16, 0.3, 1e-2)]
)
def test_a_whole_edit_is_that_of_the_cpu(
    dtype: torch.dtype, mean: float, steps_apart: float, two_pass: bool
) -> None:
    asked = common.request(0, 8, method=AdapEdit(two_pass=two_pass))
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


def test_methods_stream_through_one_server(pipe: AdapEditPipeline, tiny: AdapEditPipeline) -> None:
    asked = [
        request(),
        request(two_pass=True, seed=1),
        request(method="sdedit", strength=0.6),
    ]
    found = {item.place: item for item in tiny.stream(asked)}
    assert [found[place].error for place in range(len(asked))] == [None] * len(asked)
    for place, wanted in enumerate(pipe.edit_batch(asked)):
        assert apart(found[place].result, wanted).max() <= 1


METHODS = {
    "prompt-to-prompt": PromptToPrompt(self_replace_steps=0.4),
    "single pass": AdapEdit(local_blend=True),
    "two passes": AdapEdit(two_pass=True),
}


def steps_of(pipe: AdapEditPipeline, name: str) -> CapturedSteps:
    """Captured steps with one edit in them."""
    asked = complete(common.request(0, 6, method=METHODS[name]), pipe.model)
    context = make_context(asked, pipe.model, Caches.of(pipe.model.runner))
    steps = CapturedSteps(Batch(pipe.model.runner, 8, whole=True))
    steps.batch.join(asked.method.plan(context, None))
    return steps


@pytest.mark.parametrize("name", METHODS)
def test_a_captured_step_is_the_launched_one(name: str, tiny: AdapEditPipeline, recwarn: Any) -> None:
    with tiny.model.runner:
        captured, launched = steps_of(tiny, name), steps_of(tiny, name)
        for _ in range(6):
            captured.step(captured.batch.seats)
            step(launched.batch)
        one, other = (steps.batch.latents(steps.batch.seats[0]) for steps in (captured, launched))
    assert float((one - other).abs().max()) < 1e-4 * float(other.abs().max())
    assert not [warning for warning in recwarn if warning.category is GraphWarning]


@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_the_device_when_an_edit_joins_and_inside_a_step(
    name: str, tiny: AdapEditPipeline
) -> None:
    with tiny.model.runner:
        steps = steps_of(tiny, name)
        plan = steps.batch.seats[0].plan
        step(steps.batch)  # kernels are compiled once
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps.batch.join(plan)
            step(steps.batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
