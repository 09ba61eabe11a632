"""Inpainting checkpoints: nine channels, of a mask and of what it leaves of the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.images import ImageInput, MaskInput
from tests.helpers.edits import SOURCE, TARGET, request
from tests.helpers.methods import inputs_at, plan_of
from tests.helpers.tiny_model import save_tiny_model

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), np.uint8)
MASK[:, :8] = 255


@pytest.fixture(scope="module")
def inpaints(tmp_path_factory: pytest.TempPathFactory) -> AdapEditPipeline:
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("inpaints"), unet={"in_channels": 9})
    return AdapEditPipeline.from_pretrained(folder)


def test_every_row_sees_what_diffusers_shows_it(inpaints):
    asked = request().model_copy(update={"image": ImageInput.of(PICTURE), "mask": MaskInput.of(MASK)})
    sample = inputs_at(inpaints, plan_of(inpaints, asked), 0)["sample"]
    model = inpaints.model
    theirs = StableDiffusionInpaintPipeline(**model.components, requires_safety_checker=False)
    mask = theirs.mask_processor.preprocess(Image.fromarray(MASK), 16, 16)
    picture = theirs.image_processor.preprocess(Image.fromarray(PICTURE), 16, 16)
    wanted = torch.nn.functional.interpolate(mask, (8, 8))
    mean = model.vae.encode(picture * (mask < 0.5)).latent_dist.mean * model.vae.config.scaling_factor
    assert sample.shape == (4, 9, 8, 8)
    assert torch.equal(sample[:, 4:5], wanted.expand(4, -1, -1, -1))
    assert torch.allclose(sample[:, 5:], mean.expand(4, -1, -1, -1), atol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"method": "masactrl"}, {"method": "sdedit"}, {"inversion": "edit-friendly"}]
)
def test_an_edit_changes_what_may(inpaints, options):
    result = inpaints(SOURCE, TARGET, image=PICTURE, mask=MASK, num_inference_steps=3, **options)
    target = np.asarray(result.target_image)
    assert np.array_equal(target[:, 8:], PICTURE[:, 8:])
    assert (target[:, :8] != PICTURE[:, :8]).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "inpaints: its UNet takes 9 channels, a picture's and a mask's among them; give image and mask"),
        ({"image": PICTURE}, "give image and mask"),
        ({"mask": MASK}, "give image and mask"),
        (
            {"image": PICTURE, "mask": MASK, "inversion": "null-text"},
            "inpainting model's channels; use 'direct'",
        ),
    ],
)
def test_what_an_inpainting_model_can_not_do_is_refused_in_one_line(inpaints, options, said):
    with pytest.raises(AdapEditError, match=said) as error:
        inpaints(SOURCE, TARGET, num_inference_steps=2, **options)
    assert "\n" not in str(error.value)
