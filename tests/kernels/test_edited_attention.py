"""Edited attention: the reference against loops written from the specification, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapedit_kernels import AdapEditError, edited_attention, edited_attention_with_maps
from adapedit_kernels.edited_attention import check_arguments
from tests.kernels import loops
from tests.kernels.inputs import AttentionShape, assert_close, attention_inputs, to_numpy

SHAPES = [
    AttentionShape(4, 2, 5, 7, 3),  # rows repeat and permute, nothing is a round number
    AttentionShape(2, 1, 1, 1, 1),  # the least there is
    AttentionShape(3, 1, 4, 9, 8),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_edited_attention_is_the_loop(shape: AttentionShape, dtype: torch.dtype) -> None:
    tensors, controls = attention_inputs(shape, dtype)
    map_sum = torch.ones(shape.batch, shape.pixels, shape.tokens)
    out = edited_attention(*tensors, **controls, scale=0.4, map_sum=map_sum, map_weight=0.5)
    arrays = [to_numpy(tensor) for tensor in (*tensors, *controls.values())]
    wanted, maps = loops.edited_attention(*arrays, scale=0.4)  # type: ignore[misc]
    assert out.dtype == dtype
    assert_close(out, torch.from_numpy(wanted), dtype)
    assert_close(map_sum, 1 + 0.5 * torch.from_numpy(maps), torch.float32)


def test_rows_that_are_their_own_source_are_plain_attention_to_the_last_bit() -> None:
    shape = AttentionShape(4, 2, 6, 9, 8)
    tensors, controls = attention_inputs(shape, torch.float32, source_row=[0, 0, 2, 2])
    edited, maps = edited_attention_with_maps(*tensors, **controls)
    plain, plain_maps = edited_attention_with_maps(*tensors, edited=False)
    without_maps, none = edited_attention_with_maps(*tensors, edited=False, maps=False)
    assert torch.equal(edited[[0, 2]], plain[[0, 2]])
    assert not torch.allclose(edited[[1, 3]], plain[[1, 3]])
    assert maps is not None and plain_maps is not None and torch.equal(maps, plain_maps)
    assert none is None and torch.equal(without_maps, plain)
    assert_close(edited_attention(*tensors, edited=False), plain, torch.float32)


def test_maps_of_several_calls_are_averaged_on_the_way() -> None:
    """Head counts may differ, and what a call was given is left as it was."""
    calls = [attention_inputs(AttentionShape(3, heads, 6, 9, 8), torch.float64) for heads in (1, 4, 2)]
    alone = [edited_attention_with_maps(*tensors, **controls) for tensors, controls in calls]
    total: Tensor | None = None
    for (tensors, controls), (wanted, _) in zip(calls, alone, strict=True):
        copy = None if total is None else total.clone()
        out, after = edited_attention_with_maps(*tensors, **controls, map_sum=total, map_weight=1 / 3)
        assert torch.equal(out, wanted)
        if total is not None and copy is not None:
            assert torch.equal(total, copy)
        total = after
    assert total is not None
    maps = [maps for _, maps in alone if maps is not None]
    assert_close(total, torch.stack(maps).mean(0), torch.float64)


def test_an_edit_with_own_weight_one_is_plain_attention() -> None:
    tensors, controls = attention_inputs(AttentionShape(3, 2, 6, 9, 8), torch.float64)
    controls["own_weight"] = torch.ones_like(controls["own_weight"])
    controls["spatial_weight"] = torch.zeros_like(controls["spatial_weight"])
    assert_close(
        edited_attention(*tensors, **controls), edited_attention(*tensors, edited=False), torch.float64
    )


def test_edited_attention_has_gradients_of_output_and_maps() -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 1, 3, 4, 2), torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in tensors)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Any:
        return edited_attention_with_maps(query, key, value, **controls)

    assert torch.autograd.gradcheck(run, inputs)


def test_averaged_maps_have_gradients_of_every_call() -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 1, 3, 4, 2), torch.float64)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Any:
        _, maps = edited_attention_with_maps(query, key, value, **controls, map_weight=0.25)
        return edited_attention_with_maps(
            query * query, key, value, edited=False, map_sum=maps, map_weight=0.75
        )

    assert torch.autograd.gradcheck(run, tuple(tensor.requires_grad_() for tensor in tensors))


def _attention(**changes: Any) -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 2, 5, 7, 4), torch.float32)
    edited_attention(**(dict(zip(("query", "key", "value"), tensors, strict=True)) | controls | changes))


ATTENTION = {
    "axes": ({"query": torch.zeros(2, 5, 4)}, r"query has shape \[2, 5, 4\], wanted \[B, H, P, D\]"),
    "heads": (
        {"key": torch.zeros(2, 3, 7, 4)},
        r"key has shape \[2, 3, 7, 4\], wanted \[B, H, N, D\] = \[2, 2, any, 4\]; reshape",
    ),
    "values": ({"value": torch.zeros(2, 2, 6, 4)}, r"value has shape .* = \[2, 2, 7, 4\]"),
    "dtype": (
        {"key": torch.zeros(2, 2, 7, 4).half()},
        r"key is float16, wanted float32; convert it with .to\(\)",
    ),
    "rows": ({"source_row": torch.zeros(2)}, "source_row is float32, wanted int64"),
    "range": ({"source_row": torch.tensor([0, 2])}, "source_row holds rows 0 to 2, wanted 0 to 1"),
    "negative": ({"source_row": torch.tensor([-1, 0])}, "source_row holds rows -1 to 0, wanted 0 to 1"),
    "missing": (
        {"token_map": None},
        r"token_map is None, wanted \[B, N, N\]; give all controls or edited=False",
    ),
    "map": (
        {"spatial_map": torch.zeros(2, 6)},
        r"spatial_map has shape \[2, 6\], wanted \[B, P\] = \[2, 5\]",
    ),
    "sum": ({"map_sum": torch.zeros(2, 7, 5)}, r"map_sum has shape .* wanted \[B, P, N\] = \[2, 5, 7\]"),
    "half sum": ({"map_sum": torch.zeros(2, 5, 7).half()}, "map_sum is float16, wanted float32 or float64"),
    "device": (
        {"own_weight": torch.zeros(2, 7, device="meta")},
        "own_weight is on meta, query on cpu; move them",
    ),
}


@pytest.mark.parametrize(("changes", "message"), ATTENTION.values(), ids=ATTENTION.keys())
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapEditError, match="edited_attention: " + message) as caught:
        _attention(**changes)
    assert "\n" not in str(caught.value)


def test_a_sum_of_maps_that_does_not_fit() -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 1, 4, 9, 8), torch.float32)
    with pytest.raises(
        AdapEditError, match=r"edited_attention: map_sum has shape \[2, 9, 4\], wanted \[B, P, N\]"
    ):
        edited_attention_with_maps(*tensors, **controls, map_sum=torch.zeros(2, 9, 4))
    with pytest.raises(AdapEditError, match="edited_attention: map_sum is given and maps=False, .*leave one"):
        edited_attention_with_maps(*tensors, **controls, maps=False, map_sum=torch.zeros(2, 4, 9))


KERNEL = {
    "tokens": (AttentionShape(2, 1, 4, 129, 8), "129 tokens, the kernel takes 1 to 128; name implementation"),
    "width": (AttentionShape(2, 1, 4, 9, 300), "heads are 300 wide, the kernel takes 8 to 256"),
}


@pytest.mark.parametrize(("shape", "message"), KERNEL.values(), ids=KERNEL.keys())
def test_what_the_kernel_alone_refuses(shape: AttentionShape, message: str) -> None:
    tensors, controls = attention_inputs(shape, torch.float32)
    edited_attention(*tensors, **controls)
    with pytest.raises(AdapEditError, match=message):
        check_arguments(*tensors, list(controls.values()), None, check_values=True, chosen="triton")


def test_strides_that_the_kernel_can_not_take() -> None:
    tensors, controls = attention_inputs(AttentionShape(2, 1, 4, 9, 8), torch.float32)
    query = tensors[0].transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(
        AdapEditError, match=r"query has stride 4 along its last axis, the kernel takes 1; call"
    ):
        check_arguments(
            query, *tensors[1:], list(controls.values()), None, check_values=True, chosen="triton"
        )
