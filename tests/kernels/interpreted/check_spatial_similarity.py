"""The kernels of spatial similarity against their reference in float64, through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from adapedit_kernels import spatial_similarity
from tests.kernels.inputs import assert_close, poisoned

SIZES = {  # batch, pixels, channels
    "nothing is a multiple of a block": (3, 35, 70),
    "more pixels than a block, one channel over one": (1, 36, 65),
    "least": (1, 1, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "centre", [[True] * 3, [False] * 3, [True, False, False]], ids=["all", "none", "first"]
)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_spatial_similarity(sizes: tuple[int, int, int], centre: list[bool], dtype: torch.dtype) -> None:
    torch.manual_seed(sizes[0])
    features = (torch.randn(sizes) + 1).to(dtype)
    key = 3 * torch.randn(sizes[0], sizes[2])
    knobs = (torch.rand(sizes[0]) + 0.5, torch.tensor(centre[: sizes[0]]))
    wanted = spatial_similarity(features.double(), key.double(), *knobs)
    found = spatial_similarity(poisoned(features), key, *knobs, implementation="triton")
    assert found.dtype == torch.float32
    assert_close(found, wanted, dtype)


def test_without_a_key_word() -> None:
    knobs = (torch.ones(2), torch.tensor([True, False]))
    assert not spatial_similarity(
        torch.randn(2, 9, 5), torch.zeros(2, 5), *knobs, implementation="triton"
    ).any()


def test_strides_that_the_kernel_can_not_take_are_refused() -> None:
    knobs = (torch.ones(4)[::2], torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"lambda_spatial has strides \[2\], .* call .contiguous"):
        spatial_similarity(torch.randn(2, 9, 5), torch.zeros(2, 5), *knobs, implementation="triton")
