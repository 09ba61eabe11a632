"""The kernels of group norm against their reference in float64, through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from adapedit_kernels import group_norm
from tests.kernels.inputs import assert_close, norm_inputs

SIZES = {  # rows, channels, groups, height and width
    "several parts, the last one smaller, SD's ten channels a group": (2, 20, 2, (23, 29)),
    "one part": (3, 24, 4, (4, 5)),
    "two pixels, one channel a group": (1, 3, 3, (2, 1)),
    "exactly a part": (1, 16, 1, (16, 16)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_group_norm(sizes: tuple[int, int, int, tuple[int, int]], silu: bool, dtype: torch.dtype) -> None:
    given = norm_inputs(*sizes, dtype)
    wide = {n: value.double() if torch.is_tensor(value) else value for n, value in given.items()}
    before = given["x"].clone()
    found = group_norm(**given, silu=silu, implementation="triton")
    assert found.dtype == dtype and torch.equal(given["x"], before)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, group_norm(**wide, silu=silu), dtype)


def test_a_mean_that_is_large_beside_what_varies() -> None:
    given = norm_inputs(1, 8, 2, (40, 40), torch.float32)
    given["x"] = given["x"] * 0.01 + 1000
    wide = {n: value.double() if torch.is_tensor(value) else value for n, value in given.items()}
    found = group_norm(**given, implementation="triton")
    assert (found - group_norm(**wide)).abs().max() < 0.02


def test_planes_are_turned() -> None:
    given = norm_inputs(2, 8, 2, (5, 6), torch.float32)
    planes = {**given, "x": given["x"].contiguous()}
    assert torch.equal(
        group_norm(**given, implementation="triton"), group_norm(**planes, implementation="triton")
    )
