"""Schedules that were probed before: probing fifty steps takes as long as some edits of a small model."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapedit_engine.cache import ByteCache, CacheStats, digest, tensor_bytes
from adapedit_engine.schedule import Schedule


class ScheduleCache:
    """`Schedule.from_scheduler`, once for each state of a scheduler, number of steps and options.

    max_bytes: of the tables that are kept; one of fifty steps has two to four kilobytes.
    """

    def __init__(self, max_bytes: int = 2**20) -> None:
        self._known: ByteCache[Schedule] = ByteCache(max_bytes, schedule_bytes)

    def get(self, scheduler: Any, num_inference_steps: int, **step_options: Any) -> Schedule:
        """See `Schedule.from_scheduler`. A scheduler whose state can't be compared is probed each time."""
        key = scheduler_key(scheduler, num_inference_steps, step_options)
        if key is None:
            return Schedule.from_scheduler(scheduler, num_inference_steps, **step_options)
        return self._known.get(
            key, lambda: Schedule.from_scheduler(scheduler, num_inference_steps, **step_options)
        )

    @property
    def stats(self) -> CacheStats:
        return self._known.stats


def schedule_bytes(schedule: Schedule) -> int:
    """Bytes of a schedule's tables."""
    values = (getattr(schedule, entry.name) for entry in fields(schedule))
    return tensor_bytes([value for value in values if isinstance(value, Tensor)])


def scheduler_key(scheduler: Any, *more: Any) -> Hashable | None:
    """A scheduler's class and all that it holds, and further plain values. None: it holds something else."""
    content = hashlib.blake2b(digest_size=16)
    try:
        _write(content, vars(scheduler))
        _write(content, more)
    except TypeError:
        return None
    return type(scheduler), content.digest()


def _write(content: Any, value: Any) -> None:
    content.update(type(value).__name__.encode())
    if isinstance(value, Mapping):
        _write(content, sorted(value.items()))
    elif isinstance(value, list | tuple):
        content.update(str(len(value)).encode())
        for entry in value:
            _write(content, entry)
    elif isinstance(value, np.ndarray):
        _write(content, torch.from_numpy(np.ascontiguousarray(value)))
    elif isinstance(value, Tensor):
        content.update(digest(value))
    elif value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        content.update(repr(value).encode())
    else:
        raise TypeError(f"{type(value).__name__} is no plain value")
