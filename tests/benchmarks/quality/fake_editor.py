"""An editor that draws instead of generating: each method does what its name says, at once."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from adapedit import EditRequest
from adapedit.configs import ModelFacts
from benchmarks.quality.suite import Case, scene_suite
from benchmarks.scenes.world import random_scene
from tests.benchmarks.quality.fake_reader import PerfectReader

CASES = {case.seed: case for case in scene_suite()}


def fake_model(**parts: Any) -> Any:
    """What reports tell of a model."""
    return SimpleNamespace(
        facts=ModelFacts(),
        device=torch.device("cpu"),
        runner=SimpleNamespace(dtype=torch.float32, specs=SimpleNamespace(text_channels=2)),
        scheduler=SimpleNamespace(config={"beta_start": 0.00085, "_diffusers_version": "0"}),
        **parts,
    )


class DrawingEditor:
    """adapedit draws the true edit, plain another scene, and every other method copies the source."""

    def __init__(self) -> None:
        self.reader = PerfectReader()
        self.requests: list[EditRequest] = []
        part = nn.Linear(2, 2)
        self.model = fake_model(name="drawn", text_encoder=part, vae=part, latent_size=16)

    def edit_batch(self, requests: Sequence[EditRequest]) -> list[Any]:
        self.requests += requests
        return [self._edit(CASES[request.seed], request) for request in requests]

    def _edit(self, case: Case, request: EditRequest) -> Any:
        other = random_scene(np.random.default_rng(case.seed), two_figures=case.figures - 1)
        settings: Any = request.method
        scene = {"adapedit": case.target, "plain": other}.get(settings.name, case.source)
        if settings.name == "adapedit" and (not settings.dps or settings.lambda_s < 0.5):
            scene = case.source
        return SimpleNamespace(
            request=request,
            source_image=self.reader.draw(case.source),
            target_image=self.reader.draw(scene),
        )
