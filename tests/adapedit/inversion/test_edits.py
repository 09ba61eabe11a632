"""Edits of real pictures: every method with every inversion, in a batch, on the server, under a progress bar."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adapedit import AdapEditPipeline
from adapedit.inversion import INVERSIONS, null_text
from adapedit.methods import METHODS
from tests.helpers.pictures import (
    SOURCE,
    STEPS,
    before,
    decoded,
    edit,
    far,
    picture,
    pixels,
    request,
)
from tests.helpers.tiny_model import save_tiny_model

TEXT_METHODS = [name for name in METHODS if name != "instruct-pix2pix"]  # which wants a model of its own


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> AdapEditPipeline:
    torch.set_num_threads(1)
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), facts={"self_divisor": 1})
    return AdapEditPipeline.from_pretrained(folder)


@pytest.mark.parametrize("method", TEXT_METHODS)
@pytest.mark.parametrize("inversion", list(INVERSIONS))
def test_every_method_edits_with_every_inversion(pipe: AdapEditPipeline, method: str, inversion: str) -> None:
    (result,) = edit(pipe, request(inversion, method))
    assert result.reconstruction_psnr is not None and result.image is not None
    assert np.array_equal(pixels(result.image.picture), pixels(picture()))
    assert result.source_maps.shape == result.target_maps.shape and np.isfinite(result.target_maps).all()


@pytest.mark.parametrize("method", ["adapedit", "prompt-to-prompt", "masactrl"])
def test_an_edit_that_changes_nothing_is_its_source_where_no_track_is_told_its_way(
    pipe: AdapEditPipeline, method: str
) -> None:
    for inversion in ("ddim", "null-text", "edit-friendly"):
        (result,) = edit(pipe, request(inversion, method, target_prompt=SOURCE))
        assert far(result.source_image, result.target_image) <= 1


def test_sdedit_starts_from_the_picture_and_needs_no_inversion(pipe: AdapEditPipeline) -> None:
    nothing, all_of_it = (
        edit(pipe, request("direct", method={"name": "sdedit", "strength": strength}))[0]
        for strength in (0.0, 1.0)
    )
    assert nothing.request.inversion is None
    assert far(nothing.source_image, nothing.target_image) == 0
    context = before(pipe, request("direct"))
    assert np.array_equal(pixels(nothing.source_image), decoded(pipe, context.image_latents))
    plain = request(method="plain", image=None, inversion=None)
    assert far(edit(pipe, plain)[0].target_image, all_of_it.target_image) <= 1


def test_unrelated_edits_leave_each_other_alone(pipe: AdapEditPipeline) -> None:
    """Other pictures, inversions, methods, steps, and edits of no picture at all."""
    asked = [
        request("direct", "adapedit"),
        request("null-text", "prompt-to-prompt"),
        request("edit-friendly", "adapedit", image=picture(1), num_inference_steps=4),
        request("ddim", "masactrl", image=picture(1)),
        request("direct", "sdedit"),
        request(method="adapedit", image=None, inversion=None),
        request("direct", "adapedit", target_prompt="a red cat standing on the grass"),
    ]
    together = pipe.edit_batch(asked, max_rows=16)
    for alone, one in zip(asked, together, strict=True):
        (expected,) = edit(pipe, alone)
        assert far(expected.target_image, one.target_image) <= 1
        assert far(expected.source_image, one.source_image) <= 1


def test_edits_of_one_picture_share_its_inversion_and_its_source(
    pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    infer = pipe.model.runner.infer

    def counted(inputs: Any, outputs: Any = None, **options: Any) -> Any:
        rows.append(inputs["sample"].shape[0])
        return infer(inputs, outputs, **options)

    monkeypatch.setattr(pipe.model.runner, "infer", counted)
    edit(pipe, request("direct"), request("direct", target_prompt="a red cat standing on the grass"))
    assert rows == [1] * STEPS + [6] * STEPS
    rows.clear()
    edit(pipe, request("direct"), request("direct", image=picture(1)))
    assert rows == [2] * STEPS + [8] * STEPS


def test_the_server_gives_what_the_pipeline_gives(pipe: AdapEditPipeline) -> None:
    asked = [
        request("direct", "adapedit"),
        request("null-text", "plain"),
        request("edit-friendly", "adapedit"),
        request("direct", "sdedit"),
        request("direct", "adapedit", target_prompt="a red cat standing on the grass"),
        request("direct", "adapedit", image=picture(1)),
    ]
    expected = pipe.edit_batch(asked)
    with pipe.serve() as server:
        found = [future.result() for future in [server.submit(one) for one in asked]]
        again = server.submit(asked[0]).result()
        assert server.stats.caches["inversions"].hits >= 1
    for one, other in zip(expected, [*found], strict=True):
        assert far(one.target_image, other.target_image) <= 1
        assert one.reconstruction_psnr == pytest.approx(other.reconstruction_psnr, abs=0.2)
    assert far(again.target_image, found[0].target_image) <= 1


def test_on_the_server_others_go_on_between_the_steps_of_an_optimisation(
    pipe: AdapEditPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    step = null_text._Search.step

    def counted(self: Any, *given: Any) -> Any:
        calls.append(server.stats.scheduler.calls)
        return step(self, *given)

    monkeypatch.setattr(null_text._Search, "step", counted)
    plain = request(method="plain", image=None, inversion=None, num_inference_steps=3 * STEPS)
    with pipe.serve() as server:
        edits = [server._prepare(asked, None) for asked in (request("null-text"), plain)]
        with server._wake:  # so that they begin together
            futures = [server._queue(edit, placed=False) for edit in edits]
        assert all(future.result(30) for future in futures)
    assert calls == list(range(STEPS, 2 * STEPS))


def test_progress_counts_the_inversion_and_raising_in_it_cancels(pipe: AdapEditPipeline) -> None:
    seen: list[tuple[int, int]] = []
    pipe.edit_batch([request("null-text")], callback=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, 3 * STEPS + 1))
    assert {total for _, total in seen} == {3 * STEPS}

    def stop(done: int, total: int) -> None:
        if done == STEPS + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.edit_batch([request("null-text")], callback=stop)
    assert edit(pipe, request("direct"))
