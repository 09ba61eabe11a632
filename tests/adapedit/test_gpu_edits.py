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
from adapedit.methods import AdapEdit, PromptToPrompt

from adapedit.prepare import complete, make_context
from benchmarks import common, trace
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


def test_methods_stream_through_one_server(pipe: AdapEditPipeline, tiny: AdapEditPipeline) -> None:
    asked = [
        request(),
        request(single_pass=True, seed=1),
        request(method="sdedit", strength=0.6),
    ]
    found = {item.place: item for item in tiny.stream(asked)}
    assert [found[place].error for place in range(len(asked))] == [None] * len(asked)
    for place, wanted in enumerate(pipe.edit_batch(asked)):
        assert apart(found[place].result, wanted).max() <= 1


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
