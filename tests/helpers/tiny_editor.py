"""Checkpoints in the layout of InstructPix2Pix that go with the tiny models, random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from tests.helpers.tiny_model import SCHEDULER, UNET


def save_tiny_editor(folder: Path, *, unet: dict[str, Any] | None = None, **scheduler: Any) -> Path:
    """Write the UNet and the scheduler of a `StableDiffusionInstructPix2PixPipeline`, and return its folder."""
    torch.manual_seed(1)
    model = UNet2DConditionModel(**{**UNET, "in_channels": 8, **(unet or {})})
    with torch.no_grad():
        # Random weights hardly look at their text or at their picture; these do.
        for name, parameter in model.named_parameters():
            if name.endswith(
                ("attn2.to_q.weight", "attn2.to_k.weight", "attn2.to_v.weight", "conv_in.weight")
            ):
                parameter.mul_(4)
    model.save_pretrained(folder / "unet")
    DDIMScheduler(**{**SCHEDULER, **scheduler}).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
