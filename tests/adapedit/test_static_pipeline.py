"""Whole edits by static steps: the pictures of the loop, from the pipeline and from the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapedit import AdapEditPipeline
from adapedit.result import EditResult
from tests.helpers.edits import request
from tests.helpers.pictures import request as of_a_picture
from tests.helpers.tiny_editor import save_tiny_editor


@pytest.fixture(scope="module")
def static(tiny_folder: Path) -> AdapEditPipeline:
    return AdapEditPipeline.from_pretrained(tiny_folder, static_steps=True)


def same(one: EditResult, other: EditResult) -> bool:
    """Within a grey level."""
    pairs = ((one.source_image, other.source_image), (one.target_image, other.target_image))
    return all(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() <= 1 for a, b in pairs)


REQUESTS = {
    "two passes": request(),
    "a single pass, a local blend": request(single_pass=True, local_blend=True, seed=1),
    "both prompts looked at": request(observed_prompts="both", local_blend=True, blend_by="words"),
    "Prompt-to-Prompt": request(method="prompt-to-prompt"),
    "MasaCtrl": request(method="masactrl"),
    "SDEdit": request(method="sdedit", strength=0.6),
    "a picture": of_a_picture(method="adapedit"),
    "a picture, null-text inversion": of_a_picture(inversion="null-text"),
    "a solver that looks back": request().model_copy(update={"solver": "dpm++"}),
    "an early end of guidance": request().model_copy(update={"guidance_until": 0.5}),
}


def test_pictures_are_those_of_the_loop(pipe, static, tmp_path):
    editor = str(save_tiny_editor(tmp_path))
    asked = [
        *REQUESTS.values(),
        request(method="instruct-pix2pix", instruction="a red dog", checkpoint=editor),
    ]
    for wanted, got in zip(pipe.edit_batch(asked), static.edit_batch(asked), strict=True):
        assert same(wanted, got), got.request
    assert static.model.runner.kept_steps is not None and pipe.model.runner.kept_steps is None


def test_the_server_gives_them_too(pipe, static):
    asked = list(REQUESTS.values())
    with static.serve(max_rows=8) as server:
        found = {item.place: item for item in server.stream(asked)}
        stats = server.stats
    for place, wanted in enumerate(pipe.edit_batch(asked)):
        assert found[place].error is None and same(wanted, found[place].result)
    assert stats.slots is not None and stats.slots.hits > stats.slots.misses > 0
    with pipe.serve() as server:
        assert server.stats.slots is None
