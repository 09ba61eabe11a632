"""LPIPS weights of random numbers, under the names of those who published the trained ones."""

from __future__ import annotations

import torch
from torch import Tensor

from adapedit.metrics.lpips import BACKBONES


def published(net: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the publishers' names, scaled so that something reaches the last stage."""
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {"classifier.1.weight": torch.zeros(2)}
    for number, stage in enumerate(BACKBONES[net].stages):
        for place, before, after, kernel, _ in stage:
            spread = (2 / (before * kernel * kernel)) ** 0.5
            tensors[f"features.{place}.weight"] = torch.randn(after, before, kernel, kernel) * spread
            tensors[f"features.{place}.bias"] = torch.randn(after) * 0.1
        tensors[f"lin{number}.model.1.weight"] = torch.rand(1, stage[-1][2], 1, 1)
    return tensors
