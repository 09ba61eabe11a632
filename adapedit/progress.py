"""Seconds per stage, and one count of steps over all passes of a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from adapedit_engine.denoising import group_plans
from adapedit_engine.plan import EditPlan

Progress = Callable[[int, int], None]


class Clock:
    """Seconds per stage, and `total`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        """The stage that has just ended."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self.seconds["total"] = now - self._start
        self._last = now


class StepCount:
    """Reports (done, total) over passes that run one after the other; the total is known from the start."""

    def __init__(
        self,
        callback: Progress | None,
        passes: Sequence[Sequence[EditPlan]],
        max_rows: int | None,
        before: int = 0,
    ) -> None:
        """before: steps that went before these passes."""
        self._callback, self._before = callback, before
        self._lengths = [count_ticks(plans, max_rows) for plans in passes]

    def of(self, place: int) -> Progress | None:
        """The callback for the pass at `place`."""
        callback = self._callback
        if callback is None:
            return None
        before = self._before + sum(self._lengths[:place])
        total = self._before + sum(self._lengths)
        return lambda done, _: callback(before + done, total)


def count_ticks(plans: Sequence[EditPlan], max_rows: int | None) -> int:
    """UNet calls that `denoise` makes of these plans."""
    return sum(max(plans[i].steps for i in group) for group in group_plans(plans, max_rows))
