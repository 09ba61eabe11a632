"""Requests and pictures for tests of inversions, on the tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from adapedit import AdapEditPipeline, EditRequest, EditResult
from adapedit.edit import complete, make_context
from adapedit.inversion import make_inversion_settings
from adapedit.inversion.base import Wanted, inversion_passes
from adapedit.methods.base import Context
from adapedit.sharing import Caches
from adapedit_engine.scheduler import Scheduler

SOURCE, TARGET = "a red dog standing on the grass", "a red dog sitting on the grass"
STEPS, SIDE = 6, 16


def picture(seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def settings(name: str, **knobs: Any) -> Any:
    if name == "null-text":
        knobs = {"cache": "off", "inner_steps": 3, "learning_rate": 0.05, "early_stop": 0, **knobs}
    if name == "edit-friendly":
        knobs = {"skip": 0.0, **knobs}
    return make_inversion_settings(name, **knobs)


def request(inversion: Any = "direct", method: Any = "plain", **changes: Any) -> EditRequest:
    fields: dict[str, Any] = {
        "source_prompt": SOURCE,
        "target_prompt": TARGET,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "seed": 3,
        "method": {"name": method} if isinstance(method, str) else method,
        "image": picture(),
        "inversion": settings(inversion) if isinstance(inversion, str) else inversion,
    }
    return EditRequest.make(**{**fields, **changes})


def edit(pipe: AdapEditPipeline, *requests: EditRequest) -> list[EditResult]:
    return pipe.edit_batch(list(requests))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def far(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(pixels(one) - pixels(other)).max())


def before(pipe: AdapEditPipeline, asked: EditRequest) -> Context:
    """The context before the inversion."""
    return make_context(complete(asked, pipe.model), pipe.model, Caches.of(pipe.model.runner))


def context_of(pipe: AdapEditPipeline, asked: EditRequest) -> Context:
    """The context after the inversion."""
    done = complete(asked, pipe.model)
    assert done.inversion is not None
    wanted = Wanted(context=before(pipe, asked), inversion=done.inversion, seed=done.seed)
    with pipe.model.runner as runner:
        scheduler = Scheduler(runner)
        ticket = scheduler.submit(inversion_passes([wanted], pipe.model))
        scheduler.drain()
    return ticket.future.result()[0]


def decoded(pipe: AdapEditPipeline, latents: torch.Tensor) -> np.ndarray:
    return pipe.model.decode(latents)[0].permute(1, 2, 0).mul(255).round().numpy()
