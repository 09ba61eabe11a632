"""What the process has set as PyTorch's defaults changes no picture: every tensor names its dtype and its device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapedit import AdapEditPipeline, EditResult
from adapedit.inversion.base import INVERSIONS
from adapedit.methods import METHODS
from tests.helpers import pictures
from tests.helpers.edits import LONGER, SOURCE, grey_levels, request
from tests.helpers.tiny_model import save_tiny_model

INSTRUCTED = "instruct-pix2pix"
KNOBS = {"adapedit": {"blend": True}, "prompt-to-prompt": {"local_blend": "dog"}}


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_folder, save_tiny_model(tmp_path_factory.mktemp("editor"), unet={"in_channels": 8})


def edits(folders: tuple[Path, Path]) -> list[EditResult]:
    """One of each method, and a picture's by each inversion, by models that are loaded for it."""
    usual, instructed = (AdapEditPipeline.from_pretrained(folder, device="cpu") for folder in folders)
    asked = [request(SOURCE, LONGER, method=name, steps=3) for name in METHODS if name != INSTRUCTED]
    asked += [request(SOURCE, LONGER, method="prompt-to-prompt", steps=3, local_blend="dog")]
    asked += [request(SOURCE, LONGER, steps=3, two_pass=True)]
    asked += [pictures.request(name, "adapedit", num_inference_steps=3) for name in INVERSIONS]
    of_picture = pictures.request(None, INSTRUCTED, num_inference_steps=3)
    return [*usual.edit_batch(asked), *instructed.edit_batch([of_picture])]


@pytest.fixture
def others(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device(request.param)
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def before(folders: tuple[Path, Path]) -> list[EditResult]:
    return edits(folders)


@pytest.mark.parametrize("others", ["meta", "cpu"], indirect=True)
def test_the_process_s_defaults_change_no_picture(folders, before, others):
    for one, other in zip(edits(folders), before, strict=True):
        assert grey_levels(one.source_image, other.source_image) == 0, one
        assert grey_levels(one.target_image, other.target_image) == 0, one
