"""The kernel of edited attention against its reference in float64, through Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit_kernels import edited_attention, edited_attention_with_maps
from adapedit_kernels.edited_attention.triton import choose_tile
from tests.kernels.inputs import AttentionShape, assert_close, attention_inputs, poisoned

SHAPES = {
    "smallest map, tokens of SD": AttentionShape(2, 2, 16, 77, 40),
    "one pixel over a block, few tokens": AttentionShape(2, 1, 17, 5, 64),
    "all tokens that fit": AttentionShape(2, 1, 7, 128, 20),
    "the largest odd number of tokens": AttentionShape(2, 1, 3, 127, 64),
    "one pixel, one token": AttentionShape(2, 1, 1, 1, 16),
    "one token over a padded tile": AttentionShape(2, 1, 15, 65, 80),
    "one token over a chunk, the widest heads": AttentionShape(2, 1, 8, 33, 160),
    "heads of no width that is used, strides that 8 does not divide": AttentionShape(3, 2, 9, 19, 20),
}
SOURCES = {
    "no row edited": [0, 1, 2, 3],
    "permuted": [2, 3, 1, 0],
    "repeated": [0, 0, 0, 2],
    "every other row edited, from the last": [0, 3, 2, 3],
}


def _wanted(tensors: Any, controls: Any, **options: Any) -> Any:
    wide: Any = [tensor.double() for tensor in tensors]
    wide_controls: Any = {n: c if n == "source_row" else c.double() for n, c in controls.items()}
    query, key, value = wide
    return edited_attention_with_maps(query, key, value, **wide_controls, **options)


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shape: AttentionShape, dtype: torch.dtype, maps: bool) -> None:
    tensors, controls = attention_inputs(shape, dtype)
    wanted, wanted_maps = _wanted(tensors, controls)
    map_sum = poisoned(torch.ones(shape.batch, shape.pixels, shape.tokens)) if maps else None
    out = edited_attention(
        *map(poisoned, tensors),
        **{name: poisoned(control) for name, control in controls.items()},
        map_sum=map_sum,
        map_weight=0.5,
        implementation="triton",
    )
    assert out.dtype == dtype
    assert_close(out, wanted, dtype)
    if map_sum is not None:
        assert_close(map_sum - 1, 0.5 * wanted_maps, dtype)


@pytest.mark.parametrize(("width", "chunk"), [(40, 32), (80, 16)])
def test_the_large_tile(width: int, chunk: int) -> None:
    """Enough pixels for the large tile, and one more; only half precision has one."""
    tensors, controls = attention_inputs(AttentionShape(2, 1, 1025, 18, width), torch.float16)
    tile = choose_tile(torch.float16, width, 1025, 18, maps=False)
    assert tile.BLOCK_P == 64
    assert chunk == tile.CHUNK
    out = edited_attention(*map(poisoned, tensors), **controls, implementation="triton")
    assert_close(out, _wanted(tensors, controls)[0], torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("source_row", SOURCES.values(), ids=SOURCES.keys())
def test_sources(source_row: list[int], dtype: torch.dtype) -> None:
    tensors, controls = attention_inputs(AttentionShape(4, 2, 9, 21, 24), dtype, source_row)
    out = edited_attention(*tensors, **controls, scale=0.3, implementation="triton")
    assert_close(out, _wanted(tensors, controls, scale=0.3)[0], dtype)


def test_layout_of_a_unet_and_controls_of_another_dtype() -> None:
    """Heads beside one another in memory, half precision with controls in float32: what a processor hands over."""
    tensors, controls = attention_inputs(AttentionShape(2, 2, 16, 9, 40), torch.float32)
    halves: Any = [t.half().transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    out, maps = edited_attention_with_maps(*halves, **controls, implementation="triton")
    wanted, wanted_maps = _wanted(halves, controls)
    assert maps is not None and out.transpose(1, 2).is_contiguous()
    assert_close(out, wanted, torch.float16)
    assert_close(maps, wanted_maps, torch.float16)


def test_calls_share_one_accumulator() -> None:
    """What a call returned is added to in place by the next: no memory and no pass of its own."""
    inputs = [attention_inputs(AttentionShape(3, heads, 9, 19, 16), torch.float32) for heads in (2, 3)]
    (tensors, controls), (more, more_controls) = inputs
    _, first = edited_attention_with_maps(*tensors, **controls, map_weight=0.25, implementation="triton")
    assert first is not None
    assert_close(first, 0.25 * _wanted(tensors, controls)[1], torch.float32)
    address = first.data_ptr()
    out, both = edited_attention_with_maps(
        *more, **more_controls, map_sum=first, map_weight=0.75, implementation="triton"
    )
    assert both is not None and both.data_ptr() == address
    wanted, wanted_maps = _wanted(more, more_controls)
    assert_close(out, wanted, torch.float32)
    assert_close(both, 0.25 * _wanted(tensors, controls)[1] + 0.75 * wanted_maps, torch.float32)


def test_promise_that_no_row_is_edited() -> None:
    tensors, _ = attention_inputs(AttentionShape(2, 2, 16, 9, 40), torch.float32)
    out, maps = edited_attention_with_maps(*tensors, edited=False, implementation="triton")
    without, none = edited_attention_with_maps(*tensors, edited=False, maps=False, implementation="triton")
    wanted, wanted_maps = edited_attention_with_maps(*(t.double() for t in tensors), edited=False)
    assert_close(out, wanted, torch.float32)
    assert_close(maps, wanted_maps, torch.float32)
    assert none is None
    assert_close(without, wanted, torch.float32)


def test_rows_outside_the_batch_are_refused_or_clamped_never_read() -> None:
    tensors, controls = attention_inputs(AttentionShape(3, 1, 16, 5, 16), torch.float32, [0, 9, -4])
    with pytest.raises(ValueError, match="source_row holds rows -4 to 9, wanted 0 to 2"):
        edited_attention(*tensors, **controls, implementation="triton")
    out = edited_attention(*tensors, **controls, check_values=False, implementation="triton")
    controls["source_row"] = torch.tensor([0, 2, 0])
    assert_close(out, _wanted(tensors, controls)[0], torch.float32)


def test_the_kernel_has_no_gradient_and_says_so() -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 1, 16, 5, 16), torch.float32)
    tensors[0].requires_grad_()
    with pytest.raises(ValueError, match=r"'triton' has no gradient .* call it under torch.no_grad"):
        edited_attention(*tensors, **controls, implementation="triton")
    with torch.no_grad():
        assert not edited_attention(*tensors, **controls, implementation="triton").requires_grad
