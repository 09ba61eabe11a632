"""How many rows calls take: padded to slots of few sizes, and parted where that is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from adapedit_engine.models.controls import SELF_NAMES
from adapedit_engine.runners import Runner, RunnerError


def slot_for(rows: int, sizes: Sequence[int] | None) -> int:
    """The smallest size that holds `rows`; `rows` itself where sizes are free. Raises `RunnerError` above them."""
    if sizes is None:
        return rows
    for size in sorted(sizes):
        if rows <= size:
            return size
    raise RunnerError(f"{rows} rows do not fit the slots {tuple(sizes)}: lower max_rows or add a larger slot")


CALL_ROWS = 2
"""What a call costs beside its rows, in rows: padding beyond it is dearer than a second call."""


def in_slots(rows: Sequence[int], slot: Callable[[int], int]) -> list[list[int]]:
    """Places of edits with so many rows each, as calls: in one, or in several full ones where that costs less.

    slot: rows that a call of so many really takes.
    """
    calls: list[list[int]] = []
    left = list(range(len(rows)))
    while left:
        wanted = sum(rows[i] for i in left)
        full = next((size for size in range(wanted, 0, -1) if slot(size) == size), wanted)
        taken: list[int] = []
        for i in sorted(left, key=lambda i: -rows[i]):
            if sum(rows[k] for k in taken) + rows[i] <= full:
                taken.append(i)
        taken.sort()
        rest = [i for i in left if i not in taken]
        apart = sum(slot(sum(rows[i] for i in part)) for part in (taken, rest) if part)
        if not (taken and rest) or slot(wanted) <= apart + CALL_ROWS:
            return [*calls, left]
        calls.append(taken)
        left = rest
    return calls


def infer_in_slot(runner: Runner, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
    """`runner.infer`, filled up to the runner's next number of rows with copies of the last that take nothing."""
    rows = inputs["timestep"].shape[0]
    slot = slot_for(rows, runner.capabilities.rows)
    if slot == rows:
        return runner.infer(inputs, outputs)
    padded = {name: _padded(name, tensor, slot) for name, tensor in inputs.items()}
    return {name: tensor[:rows] for name, tensor in runner.infer(padded, outputs).items()}


def _padded(name: str, tensor: Tensor, slot: int) -> Tensor:
    dim = 1 if name in SELF_NAMES else 0
    rows = tensor.shape[dim]
    if name == "source_row" or name in SELF_NAMES:
        own = torch.arange(rows, slot, device=tensor.device)
        return torch.cat([tensor, own.expand(*tensor.shape[:dim], -1)], dim)
    last = tensor.narrow(dim, rows - 1, 1)
    return torch.cat([tensor, last.expand(slot - rows, *tensor.shape[1:])], dim)
