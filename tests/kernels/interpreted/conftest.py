"""Fresh memory is poisoned with NaN and has walls, so that reads before a write and stray writes show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

_WALL = 4096  # elements before and after: more than a block of any kernel reaches over


@pytest.fixture(autouse=True)
def walled_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``torch.empty`` and ``torch.empty_like`` give NaN between walls of NaN; the walls must stand at the end."""
    rooms: list[tuple[Tensor, int]] = []
    real_empty = torch.empty

    def empty(*size: Any, **options: Any) -> Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        count = math.prod(shape)
        room = real_empty(count + 2 * _WALL, **options).fill_(float("nan"))
        rooms.append((room, count))
        return room[_WALL : _WALL + count].view(shape)

    def empty_like(tensor: Tensor) -> Tensor:
        return empty(tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    yield
    monkeypatch.undo()
    for room, count in rooms:
        assert room[:_WALL].isnan().all() and room[_WALL + count :].isnan().all(), "a write beyond a result"
