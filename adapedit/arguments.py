"""Arguments from Python that would otherwise fail late, or with an error that doesn't say what to give."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch

from adapedit_kernels.errors import AdapEditError


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise AdapEditError(f"{name} is {value!r}, wanted a whole number from {least} on")


def check_seconds(name: str, value: Any) -> None:
    """Raise unless `value` is None or a number of seconds, which NaN is not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and (not number or math.isnan(value)):
        raise AdapEditError(f"{name} is {value!r}, wanted a number of seconds")


def check_callback(callback: Any) -> None:
    """Raise unless `callback` is None or can be called."""
    if callback is not None and not callable(callback):
        raise AdapEditError(f"callback is {callback!r}, wanted a function callback(done, total)")


def check_seeding(seed: Any, generator: Any) -> None:
    """Raise unless at most one of both is given, and `generator` is one of PyTorch."""
    if generator is None:
        return
    if seed is not None:
        raise AdapEditError("got both seed and generator; give one of them")
    if not isinstance(generator, torch.Generator):
        raise AdapEditError(f"generator is {generator!r}, wanted a torch.Generator; of a number make a seed")


def folder_path(value: Any) -> Path:
    """A folder's path. Raises unless `value` is a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise AdapEditError(f"folder is {value!r}, wanted a path")
    return Path(value)
