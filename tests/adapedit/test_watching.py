"""Between steps: previews of what is to come, and callbacks that change latents or end an edit."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.watching import PREVIEW_CELLS, predicted_clean, small_picture
from adapedit_engine.schedule import Schedule
from tests.helpers.edits import LONGER, SOURCE, TARGET, grey_levels, request


def shown(pipe: AdapEditPipeline, **options: Any) -> tuple[Any, list[tuple[int, Image.Image]]]:
    seen: list[tuple[int, Image.Image]] = []
    result = pipe(
        SOURCE,
        TARGET,
        **{"num_inference_steps": 6, "preview_every": 2, **options},
        preview=lambda step, picture: seen.append((step, picture)),
    )
    return result, seen


@pytest.mark.parametrize("method", ["adapedit", "sdedit", "plain"])
@pytest.mark.parametrize("more", [{}, {"guidance_until": 0.5}, {"solver": "dpm++"}])
def test_previews_come_as_often_as_asked_and_end_with_the_picture(pipe, method, more):
    result, seen = shown(pipe, method=method, **more)
    steps = [2] if method == "sdedit" else [2, 4, 6]  # of six, sdedit runs the last three
    assert [step for step, _ in seen] == steps
    assert all(picture.size == result.target_image.size for _, picture in seen)
    if method != "sdedit":
        assert grey_levels(seen[-1][1], result.target_image) <= 1
    unwatched = pipe(SOURCE, TARGET, method=method, num_inference_steps=6, **more)
    assert grey_levels(unwatched.target_image, result.target_image) == 0


@pytest.mark.parametrize("knobs", [{"two_pass": True}, {"image": np.full((16, 16, 3), 90, np.uint8)}])
def test_passes_before_the_edit_are_not_shown(pipe, knobs):
    _, seen = shown(pipe, **knobs)
    assert [step for step, _ in seen] == [2, 4, 6]


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_of_a_picture_that_is_known_every_preview_is_that_picture(kind):
    """Along `signal x + noise e` the prediction is x, wherever the two levels lie."""
    schedule = Schedule.from_scheduler(kind(), 7)
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    along = [float(s) * clean + float(n) * noise for s, n in schedule.levels]
    for step in range(1, len(schedule) + 1):
        found = predicted_clean(schedule, step, along[step - 1], along[step])
        assert torch.allclose(found, clean, atol=1e-4)


def test_large_latents_are_decoded_small(pipe, monkeypatch):
    decoded: list[tuple[int, ...]] = []
    decode = type(pipe.model)._decode

    def note(self: Any, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(tuple(latents.shape))
        return decode(self, latents)

    monkeypatch.setattr(type(pipe.model), "_decode", note)
    picture = small_picture(torch.zeros(4, PREVIEW_CELLS, 2 * PREVIEW_CELLS), pipe.model)
    assert decoded == [(1, 4, PREVIEW_CELLS // 2, PREVIEW_CELLS)] and picture.size == (64, 32)


def test_in_a_server_each_is_shown_its_own(pipe):
    """Edits that share a source and its steps, and one that does not, each with its own rhythm."""
    seen: dict[int, list[tuple[int, Image.Image]]] = {0: [], 1: [], 2: []}
    threads = set()
    wanted = [request(steps=4), request(SOURCE, LONGER, steps=4), request(seed=7, steps=3)]
    wanted = [
        one.model_copy(update={"preview_every": every}) for one, every in zip(wanted, (1, 2, 3), strict=True)
    ]

    def show(place: int, step: int, picture: Image.Image) -> None:
        threads.add(threading.current_thread().name)
        seen[place].append((step, picture))
        if place == 2:
            raise ValueError("who looks may fail, and the edit goes on")

    with pipe.serve() as server:
        futures = [
            server.submit(one, preview=lambda step, picture, place=place: show(place, step, picture))
            for place, one in enumerate(wanted)
        ]
        results = [future.result() for future in futures]
    assert {place: [step for step, _ in pictures] for place, pictures in seen.items()} == {
        0: [1, 2, 3, 4],
        1: [2, 4],
        2: [3],
    }
    assert len(threads) == 1
    for place, result in enumerate(results):
        assert grey_levels(seen[place][-1][1], result.target_image) <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preview": print}, "preview wants to know how often: give preview_every"),
        ({"preview": 3, "preview_every": 2}, r"preview is 3, wanted a function preview\(step, picture\)"),
        ({"preview_every": 0}, "preview_every is 0: "),
        ({"preview_every": True}, "preview_every is True: a number was wanted"),
        ({"callback_on_step_end": 3}, "wanted a function of pipe, step, timestep and tensors"),
    ],
)
def test_who_can_not_be_told_is_refused(pipe, options, said):
    with pytest.raises(AdapEditError, match=said):
        pipe(SOURCE, TARGET, **options)


def test_what_a_preview_raises_ends_the_edit(pipe):
    def fail(step: int, picture: Image.Image) -> None:
        raise ValueError("seen enough")

    with pytest.raises(ValueError, match="seen enough"):
        pipe(SOURCE, TARGET, num_inference_steps=3, preview_every=2, preview=fail)
