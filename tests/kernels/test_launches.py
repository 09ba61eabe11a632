"""What a launch makes Triton compile: the same whatever the number of rows, and something for every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from adapedit_kernels.edited_attention.launcher import launch as attend
from adapedit_kernels.guided_step.triton import launch as step
from adapedit_kernels.spatial_similarity.triton import launch as compare
from tests.kernels.inputs import AttentionShape, attention_inputs, step_inputs
from tests.kernels.launches import caught

ROWS = (1, 3, 16, 32)


def attention(rows: int) -> None:
    tensors, controls = attention_inputs(AttentionShape(rows, 2, 9, 19, 16), torch.float16)
    map_sum = torch.zeros(rows, 9, 19)
    attend(*tensors, tuple(controls.values()), map_sum, 1.0, 0.25, edited=True)


def guided(rows: int) -> None:
    given: dict[str, Any] = dict.fromkeys(("noise", "noise_weight", "blend_mask", "blend_source"))
    step(**given | step_inputs(rows, 2, (4, 8, 8), torch.float16, noise=True, blend=True))


@pytest.mark.parametrize("operation", [attention, guided])
def test_every_number_of_rows_is_one_compilation(operation) -> None:
    with caught() as launches:
        for rows in ROWS:
            operation(rows)
    assert len(launches) == len(ROWS) and len({launch.source.hash() for launch in launches}) == 1


@pytest.mark.parametrize("sizes", [((1, 8), (4, 4)), ((4, 4), (1, 1)), ((1, 1), (2, 1))])
def test_maps_with_a_side_of_one_pixel_are_resized(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    (height, width), wanted = sizes
    features, key = torch.randn(2, height * width, 64), torch.randn(2, 64)
    with caught() as launches:
        compare(features, key, torch.ones(2), False, (height, width), wanted)
    resize = launches[-1]
    assert resize.source.fn.__name__ == "resize_kernel"
    assert ".target sm_90a" in resize.compile().asm["ptx"]
