"""The references against float64 loops written from the specification, and what else is promised of them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapedit_kernels import edited_attention, edited_attention_with_maps, guided_step
from adapedit_kernels import spatial_similarity as similarity_of
from adapedit_kernels import word_relation as relation_of
from tests.kernels import loops
from tests.kernels.inputs import AttentionShape, assert_close, attention_inputs, relation_inputs, step_inputs

SHAPES = [
    AttentionShape(4, 2, 5, 7, 3),  # rows repeat and permute, nothing is a round number
    AttentionShape(2, 1, 1, 1, 1),  # the least there is
    AttentionShape(3, 1, 4, 9, 8),
]


def _numpy(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.double() if tensor.is_floating_point() else tensor).numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_edited_attention_is_the_loop(shape: AttentionShape, dtype: torch.dtype) -> None:
    tensors, controls = attention_inputs(shape, dtype)
    map_sum = torch.ones(shape.batch, shape.pixels, shape.tokens)
    out = edited_attention(*tensors, **controls, scale=0.4, map_sum=map_sum, map_weight=0.5)
    arrays = [_numpy(tensor) for tensor in (*tensors, *controls.values())]
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


KNOBS: list[dict[str, Any]] = [
    {},
    {"variant": "released", "threshold": 0.002, "threshold_mode": "absolute", "centre": False},
    {"normalise": "softmax", "temperature": 0.05, "lambda_tau": 0.7},
    {"threshold": 0.2, "threshold_mode": "absolute"},  # whole columns are masked at the smaller sizes
    {"threshold": 0.0, "centre": False},
]


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("sizes", [(3, 9, 11, 5), (1, 1, 3, 2), (2, 30, 16, 8)])
def test_word_relation_is_the_loop(sizes: tuple[int, int, int, int], knobs: dict[str, Any]) -> None:
    inputs = relation_inputs(*sizes, torch.float64)
    found = relation_of(**inputs, **knobs)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(relation_of).parameters.items()
        if name in inspect.signature(loops.word_relation).parameters
        and parameter.default is not parameter.empty
    }
    for row in range(sizes[0]):
        single = [_numpy(tensor[row]) for tensor in inputs.values()]
        wanted: Any = loops.word_relation(*single, **(defaults | knobs))
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_allclose(got[row].numpy(), want, atol=1e-9)


def test_one_key_word_of_several_tokens_is_related_to_itself_by_one() -> None:
    inputs = relation_inputs(1, 20, 8, 6, torch.float64)
    inputs["word_of_token"] = torch.tensor([[-1, 0, 1, 1, 1, 2, 3, -1]])
    inputs["key_tokens"] = inputs["word_of_token"] == 1
    found = relation_of(**inputs)
    torch.testing.assert_close(found.relation[0, 2:5], torch.ones(3, dtype=torch.float64))
    assert torch.equal(found.word_steps[0, 2:5], torch.zeros(3, dtype=torch.float64))


def test_without_a_key_word_every_word_is_held() -> None:
    inputs = relation_inputs(2, 20, 8, 6, torch.float32)
    inputs["key_tokens"] = torch.zeros_like(inputs["key_tokens"])
    found = relation_of(**inputs)
    assert not found.key_embedding.any() and not found.relation.any()
    held = found.word_steps[inputs["word_of_token"] >= 0]
    torch.testing.assert_close(held, torch.full_like(held, float(1 - np.exp(-1))))
    torch.testing.assert_close(found.default_steps, torch.full((2,), 0.8))
    assert (relation_of(**inputs, variant="released").word_steps[inputs["word_of_token"] >= 0] == 1).all()


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("size", [None, (4, 3), (8, 9), (2, 1), (5, 7)])
def test_spatial_similarity_is_the_loop(size: tuple[int, int] | None, centre: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 12, 5, dtype=torch.float64) + 1
    key = 3 * torch.randn(3, 5, dtype=torch.float64)
    key[1] = 0
    factors = torch.tensor([0.5, 1.0, 0.8], dtype=torch.float64)
    found = similarity_of(features, key, lambda_spatial=factors, centre=centre, size=size, map_size=(4, 3))
    for row in range(3):
        wanted = loops.spatial_similarity(
            features[row].numpy(), key[row].numpy(), float(factors[row]), centre=centre
        )
        if size is not None:
            wanted = loops.resize(wanted.reshape(4, 3), size).reshape(-1)
        np.testing.assert_allclose(found[row].numpy(), wanted, atol=1e-12)
    assert not found[1].any()


@pytest.mark.parametrize(("noise", "blend"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("tracks", "guidance"), [(1, 1), (3, 2), (2, 3)])
def test_guided_step_is_the_loop(tracks: int, guidance: int, noise: bool, blend: bool) -> None:
    inputs = step_inputs(tracks, guidance, (2, 3, 5), torch.float64, noise=noise, blend=blend)
    found = guided_step(**inputs)
    names = list(inspect.signature(loops.guided_step).parameters)
    wanted = loops.guided_step(*(_numpy(inputs.get(name)) for name in names))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)
