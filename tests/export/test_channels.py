"""Checkpoints whose UNet sees more than the latents, in bundles: inpainting and InstructPix2Pix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.loading import load_model
from adapedit.model import checkpoint_of
from adapedit_export.export import export_bundle
from adapedit_export.options import ExportOptions
from tests.helpers.edits import SOURCE, TARGET, grey_levels
from tests.helpers.tiny_model import save_tiny_model

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), np.uint8)
MASK[:, :8] = 255
KINDS: dict[int, dict[str, Any]] = {
    9: {"image": PICTURE, "mask": MASK},
    8: {"image": PICTURE, "method": "instruct-pix2pix", "instruction": "make the dog sit"},
}


@pytest.mark.slow
@pytest.mark.parametrize("channels", KINDS)
def test_onnx_runtime_edits_as_pytorch_does(channels, tmp_path: Path):
    """Held to PyTorch as the bundle is made, too, along an edit."""
    folder = save_tiny_model(tmp_path / "model", unet={"in_channels": channels})
    made = export_bundle(checkpoint_of(load_model(folder)), tmp_path / "bundle", ExportOptions(check_steps=2))
    assert made.manifest.specs.in_channels == channels and "edit" in made.manifest.parity
    pipes = AdapEditPipeline.from_pretrained(folder), AdapEditPipeline.from_bundle(made.folder)
    one, other = (pipe(SOURCE, TARGET, num_inference_steps=3, seed=2, **KINDS[channels]) for pipe in pipes)
    assert grey_levels(one.source_image, other.source_image) <= 1
    assert grey_levels(one.target_image, other.target_image) <= 1
    assert grey_levels(one.source_image, one.target_image) > 1
    with pytest.raises(AdapEditError, match="give image and mask|'instruct-pix2pix' with image") as error:
        pipes[1](SOURCE, TARGET, num_inference_steps=1)
    assert "\n" not in str(error.value)
