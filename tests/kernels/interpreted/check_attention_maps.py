"""The kernels of attention maps against their reference in float64, through Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit_kernels import attention_maps
from tests.kernels.inputs import AttentionShape, assert_close, attention_inputs, poisoned, widen

SHAPES = {
    "tokens of SD": AttentionShape(3, 2, 16, 77, 40),
    "one pixel over a block, few tokens": AttentionShape(2, 1, 17, 5, 64),
    "tokens that fill a tile": AttentionShape(2, 1, 7, 128, 20),
    "one token, one pixel": AttentionShape(2, 3, 1, 1, 16),
    "the widest heads": AttentionShape(2, 1, 8, 33, 160),
    "many tokens": AttentionShape(2, 1, 5, 333, 80),
}


def _given(shape: AttentionShape, dtype: torch.dtype, convert: Any = lambda tensor: tensor) -> dict[str, Any]:
    arguments = attention_inputs(shape, dtype).plain(convert)
    del arguments["value"]
    return arguments


@pytest.mark.parametrize("rows", [None, [1, 0, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shape: AttentionShape, dtype: torch.dtype, rows: list[int] | None) -> None:
    map_row = None if rows is None else torch.tensor(rows)
    wanted = attention_maps(**_given(shape, dtype, widen), map_row=map_row)
    map_sum = torch.ones(wanted.shape)
    found = attention_maps(
        **_given(shape, dtype, poisoned),
        map_row=map_row,
        map_sum=map_sum,
        map_weight=0.5,
        implementation="triton",
    )
    assert found.data_ptr() == map_sum.data_ptr()
    assert_close(found - 1, 0.5 * wanted, dtype)


def test_calls_share_one_accumulator() -> None:
    """What a call returned is added to in place by the next: no memory and no pass of its own."""
    first, more = (_given(AttentionShape(3, heads, 9, 19, 16), torch.float32) for heads in (2, 3))
    total = attention_maps(**first, scale=0.3, map_weight=0.25, implementation="triton")
    address, alone = total.data_ptr(), attention_maps(**first, scale=0.3)
    assert_close(total, 0.25 * alone, torch.float32)
    total = attention_maps(**more, map_sum=total, map_weight=0.75, implementation="triton")
    assert total.data_ptr() == address
    assert_close(total, 0.25 * alone + 0.75 * attention_maps(**more), torch.float32)


def test_rows_outside_the_batch_are_refused_or_clamped_never_read() -> None:
    given = _given(AttentionShape(3, 1, 16, 5, 16), torch.float32)
    rows = torch.tensor([-4, 9])
    with pytest.raises(ValueError, match="map_row holds rows -4 to 9, wanted 0 to 2"):
        attention_maps(**given, map_row=rows, implementation="triton")
    found = attention_maps(**given, map_row=rows, check_values=False, implementation="triton")
    assert_close(found, attention_maps(**given)[[0, 2]], torch.float32)
