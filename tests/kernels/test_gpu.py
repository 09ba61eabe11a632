"""The kernels on a CUDA device against their references in float64, in all three dtypes; graphs and streams."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from adapedit_kernels import (
    RelationKnobs,
    attention_maps,
    chosen_implementation,
    edited_attention,
    group_norm,
    guided_step,
    spatial_similarity,
    word_relation,
)
from tests.kernels.inputs import (
    AttentionShape,
    attention_inputs,
    error_ratio,
    mixed_knobs,
    norm_inputs,
    relation_inputs,
    step_inputs,
    widen,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
        reason="needs a CUDA device and Triton",
    ),
]

LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", LIMITS.keys(), ids=["float32", "float16", "bfloat16"])
SHAPES = {
    "SD, 64 squared": AttentionShape(4, 8, 4096, 77, 40),
    "SD, 32 squared": AttentionShape(4, 8, 1024, 77, 80),
    "SD, 16 squared": AttentionShape(4, 8, 256, 77, 160),
    "SD 2, heads of 64": AttentionShape(4, 5, 4096, 77, 64),
    "the most pixels": AttentionShape(2, 1, 16384, 77, 40),
    "one pixel over a block, the largest odd number of tokens": AttentionShape(3, 2, 65, 127, 64),
    "whole blocks of keys": AttentionShape(2, 2, 1025, 128, 160),
    "the most tokens of maps": AttentionShape(2, 2, 17, 512, 64),
    "strides that 8 does not divide": AttentionShape(3, 2, 9, 19, 20),
    "one pixel, one token": AttentionShape(2, 1, 1, 1, 16),
}


def _cuda(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() if isinstance(value, Tensor) else value for name, value in values.items()}


def _wide(values: dict[str, Any]) -> dict[str, Any]:
    """In float64 for the reference."""
    floating = {n for n, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return {n: v.double() if n in floating else v for n, v in values.items()}


def _assert_right(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert got.is_cuda and got.shape == wanted.shape
    ratio = error_ratio(got, wanted)
    assert ratio <= LIMITS[dtype], f"error ratio {ratio:.2e}, limit {LIMITS[dtype]:.1e}"


def test_auto_takes_the_kernels() -> None:
    assert chosen_implementation("auto", "cuda") == "triton"


def _to_cuda(tensor: Tensor) -> Tensor:
    return tensor.cuda()


@DTYPES
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_edited_attention(shape: AttentionShape, spatial: bool, dtype: torch.dtype) -> None:
    inputs = attention_inputs(shape, dtype, spatial=spatial)
    wanted = edited_attention(**_cuda(inputs.arguments(widen)), implementation="reference")
    _assert_right(edited_attention(**inputs.arguments(_to_cuda)), wanted, dtype)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_attention_maps(shape: AttentionShape, dtype: torch.dtype) -> None:
    given = _cuda(attention_inputs(shape, dtype).plain())
    del given["value"]
    rows = torch.tensor([1, 0], device="cuda")
    wanted = attention_maps(**_wide(given), map_row=rows, implementation="reference")
    map_sum = torch.ones(2, shape.pixels, shape.tokens, device="cuda")
    attention_maps(**given, map_row=rows, map_sum=map_sum, map_weight=0.5)
    _assert_right(map_sum - 1, 0.5 * wanted, dtype)


@DTYPES
def test_rows_that_are_not_edited_do_not_depend_on_the_edit(dtype: torch.dtype) -> None:
    inputs = attention_inputs(AttentionShape(4, 8, 1024, 77, 80), dtype, [1], edited_row=[3])
    plain = edited_attention(**inputs.plain(_to_cuda))
    edited = edited_attention(**inputs.arguments(_to_cuda))
    assert torch.equal(plain[:3], edited[:3])
    assert error_ratio(edited[3], plain[3]) > 0.1


@DTYPES
@pytest.mark.parametrize("sizes", [(8, 1024, 77, 640), (9, 21, 19, 37)], ids=["SD", "odd sizes"])
def test_word_relation(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    given, knobs = (
        _cuda(relation_inputs(*sizes, dtype)),
        RelationKnobs(*(k.cuda() for k in mixed_knobs(sizes[0]))),
    )
    wanted = word_relation(**_wide(given), knobs=knobs, implementation="reference")
    for got, want in zip(word_relation(**given, knobs=knobs), wanted, strict=True):
        _assert_right(got, want, dtype)


@DTYPES
def test_spatial_similarity(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features, key = (torch.randn(3, 1024, 640) + 1).to("cuda", dtype), torch.randn(3, 640).to("cuda", dtype)
    given = {"features": features, "key_embedding": key, "lambda_spatial": torch.rand(3, device="cuda")}
    given["centre"] = torch.tensor([True, False, True], device="cuda")
    wanted = spatial_similarity(**_wide(given), implementation="reference")
    _assert_right(spatial_similarity(**given), wanted, dtype)


@DTYPES
@pytest.mark.parametrize("blend", [False, True])
def test_guided_step(blend: bool, dtype: torch.dtype) -> None:
    given = _cuda(step_inputs(8, 2, (4, 64, 64), dtype, noise=True, blend=blend))
    _assert_right(guided_step(**given), guided_step(**_wide(given), implementation="reference"), dtype)


@DTYPES
@pytest.mark.parametrize(("channels", "side"), [(320, 64), (960, 64), (2560, 16), (1280, 8)])
def test_group_norm(channels: int, side: int, dtype: torch.dtype) -> None:
    given = _cuda(norm_inputs(4, channels, 32, (side, side), dtype))
    wanted = group_norm(**_wide(given), silu=True, implementation="reference")
    _assert_right(group_norm(**given, silu=True), wanted, dtype)


def test_a_row_outside_the_batch_is_refused_before_the_launch() -> None:
    given = attention_inputs(AttentionShape(3, 1, 16, 5, 16), torch.float16).arguments(_to_cuda)
    given["source_row"] = torch.tensor([0, 9, -4], device="cuda")
    with pytest.raises(ValueError, match="source_row holds rows -4 to 9, wanted 0 to 2"):
        edited_attention(**given)


def test_captured_in_a_cuda_graph_and_replayed() -> None:
    inputs = attention_inputs(AttentionShape(4, 8, 256, 77, 40), torch.float16)
    given = inputs.arguments(_to_cuda)
    wanted = edited_attention(**given, check_values=False)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = edited_attention(**given, check_values=False)
    out.zero_()
    graph.replay()
    assert torch.equal(out, wanted)
    given["source_row"].copy_(given["edited_row"])  # the same graph takes other edits: here none
    graph.replay()
    assert torch.equal(out, edited_attention(**inputs.plain(_to_cuda)))


def test_compiled_with_inductor_in_one_graph() -> None:
    given = attention_inputs(AttentionShape(4, 8, 256, 77, 40), torch.float16).arguments(_to_cuda)

    def double(**arguments: Any) -> Tensor:
        return 2 * edited_attention(**arguments, check_values=False)

    assert torch.equal(torch.compile(double, fullgraph=True)(**given), double(**given))
