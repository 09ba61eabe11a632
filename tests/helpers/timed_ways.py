"""Ways for `benchmarks.turns`, in a module that the processes it starts can import."""

from __future__ import annotations

import os
import time

from benchmarks.turns import Clock


def compute(clock: Clock, seconds: float) -> tuple[float, float]:
    """Compute for so long by the clock; that, and the processor's time."""
    clock.begin()
    start, used = clock(), time.process_time()
    while clock() - start < seconds:
        pass
    return clock() - start, time.process_time() - used


def sleep(clock: Clock, seconds: float) -> tuple[float, float]:
    clock.begin()
    start = clock()
    clock.sleep_until(start + seconds)
    return clock() - start, 0.0


def die(clock: Clock, ready: bool) -> None:
    if ready:
        clock.begin()
    os._exit(7)
