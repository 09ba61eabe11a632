"""LPIPS weights of random numbers, under the names of those who published the trained ones."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.quality.lpips import Lpips


def published(net: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the publishers' names, scaled so that something reaches the last look."""
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {"classifier.1.weight": torch.zeros(2)}
    for name, value in Lpips(net).state_dict().items():
        kind, place, *_ = name.split(".")
        if kind == "weights":
            tensors[f"lin{place}.model.1.weight"] = torch.rand(1, len(value), 1, 1)
        else:
            spread = 0.1 if value.ndim == 1 else (2 / value[0].numel()) ** 0.5
            tensors[name] = torch.randn(value.shape) * spread
    return tensors
