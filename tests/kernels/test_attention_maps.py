"""Attention maps: the reference against loops written from the specification, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapedit_kernels import AdapEditError, attention_maps
from tests.kernels.inputs import AttentionShape, assert_close, attention_inputs

SHAPE = AttentionShape(4, 2, 5, 7, 3)


def _given(shape: AttentionShape = SHAPE, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    arguments = attention_inputs(shape, dtype).plain()
    del arguments["value"]
    return arguments


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [SHAPE, AttentionShape(2, 1, 1, 1, 1)])
def test_maps_are_those_of_the_loop(shape: AttentionShape, dtype: torch.dtype) -> None:
    _, wanted = attention_inputs(shape, dtype).by_loops(0.4)
    found = attention_maps(**_given(shape, dtype), scale=0.4)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(found, wanted, dtype)
    rows = torch.tensor([1, 0, 1])
    assert_close(attention_maps(**_given(shape, dtype), scale=0.4, map_row=rows), wanted[rows], dtype)


def test_maps_of_several_calls_are_averaged_on_the_way() -> None:
    """Head counts may differ, and what a call was given is left as it was."""
    calls = [_given(AttentionShape(3, heads, 6, 9, 8)) for heads in (1, 4, 2)]
    total: Tensor | None = None
    for given in calls:
        copy = None if total is None else total.clone()
        after = attention_maps(**given, map_sum=total, map_weight=1 / 3)
        assert copy is None or torch.equal(total, copy)  # type: ignore[arg-type]
        total = after
    wanted = torch.stack([attention_maps(**given) for given in calls]).mean(0)
    assert_close(total, wanted, torch.float64)  # type: ignore[arg-type]


def test_averaged_maps_have_gradients_of_every_call() -> None:
    given = _given(AttentionShape(2, 1, 3, 4, 2))

    def run(query: Tensor, key: Tensor) -> Any:
        maps = attention_maps(query, key, heads=1, map_weight=0.25)
        return attention_maps(query * query, key, heads=1, map_sum=maps, map_weight=0.75)

    assert torch.autograd.gradcheck(run, tuple(given[name].requires_grad_() for name in ("query", "key")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map_sum": torch.zeros(4, 7, 5)}, r"map_sum has shape .* wanted \[B, P, N\] = \[4, 5, 7\]"),
        ({"map_sum": torch.zeros(4, 5, 7).half()}, "map_sum is float16, wanted float32 or float64"),
        ({"map_row": torch.tensor([4])}, "map_row holds rows 4 to 4, wanted 0 to 3"),
        ({"map_row": torch.tensor([0]), "map_sum": torch.zeros(4, 5, 7)}, r"map_sum .* \[M, P, N\] = \[1, 5, 7\]"),
        ({"heads": 4}, "heads is 4, wanted a divisor of the 6 channels"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapEditError, match="attention_maps: " + message):
        attention_maps(**_given() | changes)
