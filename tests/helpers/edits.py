"""Prompts for the tiny models, and how far two pictures are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from adapedit import EditRequest

SOURCE, TARGET = "a red dog standing on the grass", "a red dog sitting on the grass"
LONGER = "a small red dog sitting on the grass"
STEPS = 5


def request(
    source: str = SOURCE,
    target: str = TARGET,
    *,
    method: str = "adapedit",
    seed: int = 0,
    steps: int = STEPS,
    guidance_until: float = 1.0,
    **knobs: Any,
) -> EditRequest:
    return EditRequest.make(
        source_prompt=source,
        target_prompt=target,
        seed=seed,
        num_inference_steps=steps,
        guidance_until=guidance_until,
        method={"name": method, **knobs},
    )


def grey_levels(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any channel of any pixel."""
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())
