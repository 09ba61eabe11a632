"""The kernels of the word relation and of spatial similarity against their references in float64, interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit_kernels import spatial_similarity, word_relation
from tests.kernels.inputs import assert_close, poisoned, relation_inputs

RELATION_SIZES = {  # batch, pixels, tokens, channels
    "nothing is a multiple of a block": (2, 21, 19, 37),
    "one pixel, the fewest tokens": (1, 1, 3, 3),
    "one pixel over a block, one channel over one": (1, 17, 7, 33),
}
KNOBS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "released": {"variant": "released", "threshold": 0.002, "threshold_mode": "absolute", "centre": False},
    "softmax": {"normalise": "softmax", "temperature": 0.05, "lambda_tau": 0.7},
    "columns masked whole": {"threshold": 0.9, "threshold_mode": "absolute"},
    "nothing masked": {"threshold": 0.0},
}
SIMILARITY_SIZES = {  # batch, map size, channels
    "nothing is a multiple of a block": (3, (5, 7), 70),
    "more pixels than a block, one channel over one": (1, (6, 6), 65),
    "least": (1, (1, 1), 1),
}


def _wide(inputs: dict[str, Any]) -> dict[str, Any]:
    return {n: t.double() if torch.is_tensor(t) and t.is_floating_point() else t for n, t in inputs.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS.keys())
@pytest.mark.parametrize("sizes", RELATION_SIZES.values(), ids=RELATION_SIZES.keys())
def test_word_relation(sizes: tuple[int, int, int, int], knobs: dict[str, Any], dtype: torch.dtype) -> None:
    inputs = relation_inputs(*sizes, dtype)
    wanted = word_relation(**_wide(inputs), **knobs)
    inputs["maps"], inputs["features"] = poisoned(inputs["maps"]), poisoned(inputs["features"])
    found = word_relation(**inputs, **knobs, implementation="triton")
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == torch.float32
        assert_close(got, want, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [127, 128], ids=["the largest odd number of tokens", "all that fit"])
def test_word_relation_of_many_tokens(tokens: int, dtype: torch.dtype) -> None:
    inputs = relation_inputs(1, 9, tokens, 6, dtype)
    knobs = {"normalise": "softmax", "temperature": 0.05}  # almost flat: sums that cancel
    wanted = word_relation(**_wide(inputs), **knobs)
    for got, want in zip(word_relation(**inputs, **knobs, implementation="triton"), wanted, strict=True):
        assert_close(got, want, dtype)


def test_word_relation_without_a_key_word() -> None:
    inputs = relation_inputs(2, 9, 8, 6, torch.float32)
    inputs["key_tokens"] = torch.zeros_like(inputs["key_tokens"])
    wanted = word_relation(**_wide(inputs))
    found = word_relation(**inputs, implementation="triton")
    assert not found.key_embedding.any() and not found.relation.any()
    assert_close(found.word_steps, wanted.word_steps, torch.float32)


def test_word_relation_of_features_with_channels_first_and_a_factor_a_row() -> None:
    inputs = relation_inputs(2, 12, 9, 20, torch.float32)
    factors = torch.tensor([0.3, 1.4])
    wanted = word_relation(**_wide(inputs), lambda_tau=factors)
    inputs["features"] = inputs["features"].transpose(1, 2).contiguous().transpose(1, 2)
    found = word_relation(**inputs, lambda_tau=factors, implementation="triton")
    assert_close(found.word_steps, wanted.word_steps, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("sizes", SIMILARITY_SIZES.values(), ids=SIMILARITY_SIZES.keys())
def test_spatial_similarity(
    sizes: tuple[int, tuple[int, int], int], centre: bool, dtype: torch.dtype
) -> None:
    batch, map_size, channels = sizes
    torch.manual_seed(batch)
    features = (torch.randn(batch, map_size[0] * map_size[1], channels) + 1).to(dtype)
    key = 3 * torch.randn(batch, channels)
    knobs: dict[str, Any] = {
        "lambda_spatial": torch.rand(batch) + 0.5,
        "centre": centre,
        "map_size": map_size,
    }
    for size in (None, (11, 4), (2, 3)):  # as it is, larger one way and smaller the other, smaller
        wanted = spatial_similarity(features.double(), key.double(), **knobs, size=size)
        found = spatial_similarity(poisoned(features), key, **knobs, size=size, implementation="triton")
        assert_close(found, wanted, dtype)


def test_spatial_similarity_without_a_key_word() -> None:
    features = torch.randn(2, 9, 5)
    assert not spatial_similarity(features, torch.zeros(2, 5), size=(4, 4), implementation="triton").any()
