"""A runner that fails: at random, and whenever a marked edit is in the batch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from adapedit_engine.runners import Runner
from adapedit_engine.scheduler import CachedRunner

POISON = 1e6
"""A latent above this makes its batch fail: the edit that it belongs to can't be run at all."""


class FaultyRunner(CachedRunner):
    """Raises now and then, and runs out of memory now and then, more often with many rows."""

    def __init__(self, runner: Runner, *, errors: float, out_of_memory: float, seed: int = 0) -> None:
        super().__init__(runner, 2**24)
        self.errors, self.out_of_memory, self._random = errors, out_of_memory, random.Random(seed)
        self.raised = 0

    def infer(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        self_layers: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, Tensor]:
        """See `Runner.infer`."""
        self._maybe_fail(inputs)
        return super().infer(inputs, outputs, self_layers=self_layers)

    def _maybe_fail(self, inputs: Mapping[str, Tensor]) -> None:
        rows = len(inputs["timestep"])
        if float(inputs["sample"].abs().max()) > POISON:
            raise RuntimeError("these latents can't be used")
        if self._random.random() < self.errors:
            self.raised += 1
            raise RuntimeError("the device had a hiccup")
        if rows > 4 and self._random.random() < self.out_of_memory * rows:
            self.raised += 1
            raise MemoryError("CUDA out of memory, as it were")
