"""The kernel of edited attention against its reference in float64, through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from adapedit_kernels import edited_attention
from adapedit_kernels.edited_attention.triton import choose_tile, write_edited
from tests.kernels.inputs import AttentionShape, assert_close, attention_inputs, poisoned, widen

SHAPES = {
    "smallest map, tokens of SD": AttentionShape(2, 2, 16, 77, 40),
    "one pixel over a block, few tokens": AttentionShape(2, 1, 17, 5, 64),
    "whole blocks of keys": AttentionShape(2, 1, 7, 128, 20),
    "a last block as large as the others": AttentionShape(2, 1, 3, 127, 64),
    "one pixel, one token": AttentionShape(2, 1, 1, 1, 16),
    "one token over a block": AttentionShape(2, 1, 15, 65, 80),
    "the widest heads": AttentionShape(2, 1, 8, 33, 160),
    "many tokens": AttentionShape(2, 1, 5, 333, 24),
    "heads of no width that is used, strides that 8 does not divide": AttentionShape(3, 2, 9, 19, 20),
}
SOURCES = {
    "no row edited": [0, 1, 2, 3],
    "permuted": [2, 3, 1, 0],
    "repeated": [0, 0, 0, 2],
    "every other row edited, from the last": [0, 3, 2, 3],
}


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shape: AttentionShape, dtype: torch.dtype, spatial: bool) -> None:
    inputs = attention_inputs(shape, dtype, spatial=spatial)
    given = inputs.arguments(poisoned)
    given["prepared"] = poisoned(given["prepared"])
    out = edited_attention(**given, implementation="triton")
    assert out.dtype == dtype
    assert_close(out, edited_attention(**inputs.arguments(widen)), dtype)


@pytest.mark.parametrize("width", [40, 80])
def test_the_large_tile(width: int) -> None:
    """Enough pixels for the large tile, and one more; only half precision has one."""
    inputs = attention_inputs(AttentionShape(2, 1, 1025, 18, width), torch.float16, [0], edited_row=[1])
    assert choose_tile(torch.float16, width, 1025, 18).BLOCK_P == 64
    out = edited_attention(**inputs.arguments(), implementation="triton")
    assert_close(out, edited_attention(**inputs.arguments(widen)), torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("source_row", SOURCES.values(), ids=SOURCES.keys())
def test_sources(source_row: list[int], dtype: torch.dtype) -> None:
    inputs = attention_inputs(AttentionShape(4, 2, 9, 21, 24), dtype, source_row)
    out = edited_attention(**inputs.arguments(), scale=0.3, implementation="triton")
    assert_close(out, edited_attention(**inputs.arguments(widen), scale=0.3), dtype)
    plain = edited_attention(**inputs.plain(), scale=0.3)
    for row, source in enumerate(source_row):
        assert torch.equal(out[row], plain[row]) == (row == source)


def test_controls_of_another_dtype() -> None:
    """Half precision with S in float32: what a processor hands over."""
    inputs = attention_inputs(AttentionShape(3, 2, 16, 9, 40), torch.float32, [0, 0], edited_row=[2, 1])
    halves = inputs._replace(tensors=tuple(tensor.half() for tensor in inputs.tensors))  # type: ignore[arg-type]
    out = edited_attention(**halves.arguments(), implementation="triton")
    assert_close(out, edited_attention(**halves.arguments(widen)), torch.float16)


def test_the_log_of_the_sum_of_powers_is_the_rows_own() -> None:
    inputs = attention_inputs(AttentionShape(3, 2, 17, 77, 24), torch.float32, [2, 0], edited_row=[1, 2])
    given, out = inputs.arguments(), torch.zeros_like(inputs.tensors[0])
    found = poisoned(torch.zeros(2, 2, 17)).contiguous()
    edits = [given[name] for name in ("edited_row", "source_row", "prepared", "spatial_map")]
    write_edited(given["query"], given["key"], out, 2, edits, 0.3, log_sum_exp=found)
    query, key = (t.double().unflatten(-1, (2, -1)).transpose(1, 2)[[1, 2]] for t in inputs.tensors[:2])
    assert_close(found, (0.3 * query @ key.transpose(-1, -2)).logsumexp(-1), torch.float32)
    assert_close(out[[1, 2]], edited_attention(**inputs.arguments(widen), scale=0.3)[[1, 2]], torch.float32)
    assert not out[0].any()


def test_rows_outside_the_batch_are_refused_or_clamped_never_read() -> None:
    inputs = attention_inputs(AttentionShape(3, 1, 16, 5, 16), torch.float32, [0, 2, 0])
    wanted, given = edited_attention(**inputs.arguments(widen)), inputs.arguments()
    given["source_row"] = torch.tensor([0, 9, -4])
    with pytest.raises(ValueError, match="source_row holds rows -4 to 9, wanted 0 to 2"):
        edited_attention(**given, implementation="triton")
    out = edited_attention(**given, check_values=False, implementation="triton")
    assert_close(out, wanted, torch.float32)


def test_the_kernel_has_no_gradient_and_says_so() -> None:
    inputs = attention_inputs(AttentionShape(2, 1, 16, 5, 16), torch.float32)
    inputs.tensors[0].requires_grad_()
    with pytest.raises(ValueError, match=r"'triton' has no gradient .* call it under torch.no_grad"):
        edited_attention(**inputs.arguments(), implementation="triton")
    with torch.no_grad():
        assert not edited_attention(**inputs.arguments(), implementation="triton").requires_grad
