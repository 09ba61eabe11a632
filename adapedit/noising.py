"""How much picture and how much noise the latents of each step hold: what starting in the middle has to know."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from adapedit_engine.cache import ByteCache, tensor_bytes
from adapedit_engine.schedules import scheduler_key

_KNOWN: ByteCache[Tensor] = ByteCache(2**20, lambda levels: tensor_bytes([levels]))
"""Levels that were read before: copying a scheduler takes as long as encoding a prompt of a small model."""


def noise_levels(scheduler: Any, num_inference_steps: int) -> Tensor:
    """[T, 2] float64, (signal, noise): clean latents x and unit noise n are signal x + noise n before step i.

    Read off the scheduler's own `add_noise`, which is linear; the scheduler is not changed, nor is the result to be.
    """
    key = scheduler_key(scheduler, num_inference_steps)
    if key is None:
        return _read(scheduler, num_inference_steps)
    return _KNOWN.get(key, lambda: _read(scheduler, num_inference_steps))


def _read(scheduler: Any, num_inference_steps: int) -> Tensor:
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(num_inference_steps)
    timesteps = fresh.timesteps
    one, none = torch.ones(len(timesteps), 1), torch.zeros(len(timesteps), 1)
    parts = [fresh.add_noise(picture, noise, timesteps) for picture, noise in ((one, none), (none, one))]
    return torch.cat(parts, 1).double()
