"""Row slots of fixed sizes, for runners that want few batch shapes (CUDA graphs, TensorRT profiles)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor

from adapedit_engine.controls import SELF_NAMES
from adapedit_engine.padding import slot_for
from adapedit_engine.runners import Runner
from adapedit_engine.specs import ModelSpecs

SLOT_SIZES = (1, 2, 4, 8, 16, 32)


def slots_up_to(max_rows: int) -> tuple[int, ...]:
    """The slots for calls of at most so many rows: doubled until they hold that."""
    sizes = [1]
    while sizes[-1] < max_rows:
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


class PaddedRunner:
    """A runner whose calls are filled up to the next slot with copies of the last row, cut off from the outputs.

    A padding row takes from itself alone and nobody takes from it.
    """

    def __init__(self, runner: Runner, sizes: Sequence[int] = SLOT_SIZES) -> None:
        self.runner, self.slot_sizes = runner, tuple(sorted(sizes))

    @property
    def specs(self) -> ModelSpecs:
        return self.runner.specs

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def dtype(self) -> torch.dtype:
        return self.runner.dtype

    @property
    def needs_all_controls(self) -> bool:
        return self.runner.needs_all_controls

    def __enter__(self) -> PaddedRunner:
        self.runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.runner.__exit__(kind, error, traceback)

    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        return self.runner.condition(encoder_hidden_states)

    def infer(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Runner.infer`."""
        rows = inputs["timestep"].shape[0]
        slot = slot_for(rows, self.slot_sizes)
        if slot == rows:
            return self.runner.infer(inputs, outputs)
        padded = {name: _padded(name, tensor, slot) for name, tensor in inputs.items()}
        return {name: tensor[:rows] for name, tensor in self.runner.infer(padded, outputs).items()}


def _padded(name: str, tensor: Tensor, slot: int) -> Tensor:
    dim = 1 if name in SELF_NAMES else 0
    rows = tensor.shape[dim]
    if name == "source_row" or name in SELF_NAMES:
        own = torch.arange(rows, slot, device=tensor.device)
        return torch.cat([tensor, own.expand(*tensor.shape[:dim], -1)], dim)
    last = tensor.narrow(dim, rows - 1, 1)
    return torch.cat([tensor, last.expand(slot - rows, *tensor.shape[1:])], dim)
