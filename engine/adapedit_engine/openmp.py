"""One pool of OpenMP threads at a time: as many as there are cores, and no more.

PyTorch's thread pool belongs to the thread that computes. As soon as the pools of a process have more threads than
there are cores, whether anybody uses them or not, GNU's OpenMP no longer lets them wait for each other in a spin: they
sleep at the end of every parallel loop. On two cores a call of the UNet with four rows took half as long again, with
the cores idle for a third of the time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache

import torch

SOFT = 1
"""`omp_pause_soft` of OpenMP 5.0: threads are given back, settings stay."""


def release_threads() -> bool:
    """Give back the OpenMP threads of the calling thread, which starts new ones (some 0.1 ms) when it needs them.

    Changes no result. Returns whether the runtime could: GNU's and LLVM's can from OpenMP 5.0 on.
    """
    pause = _pause()
    return pause is not None and pause(SOFT) == 0


@cache
def _pause() -> Callable[[int], int] | None:
    if os.name == "nt" or not torch.backends.openmp.is_available():
        return None
    # PyTorch loads its runtime for the whole process; a further one that is loaded here would have other pools.
    return getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
