"""The kernels of the word relation against their reference in float64, through Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapedit_kernels import RelationKnobs, word_relation
from tests.kernels.inputs import assert_close, mixed_knobs, poisoned, relation_inputs

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


def _wide(inputs: dict[str, Any]) -> dict[str, Any]:
    return {n: t.double() if torch.is_tensor(t) and t.is_floating_point() else t for n, t in inputs.items()}


def _check(inputs: dict[str, Any], knobs: RelationKnobs, dtype: torch.dtype, *, poison: bool = False) -> None:
    wanted = word_relation(**_wide(inputs), knobs=knobs)
    if poison:
        inputs = inputs | {name: poisoned(inputs[name]) for name in ("maps", "features")}
    found = word_relation(**inputs, knobs=knobs, implementation="triton")
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == torch.float32
        assert_close(got, want, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_edits_with_different_knobs_share_a_call(dtype: torch.dtype) -> None:
    _check(relation_inputs(12, 21, 11, 37, dtype), mixed_knobs(12), dtype, poison=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("words", KNOBS.values(), ids=KNOBS.keys())
@pytest.mark.parametrize("sizes", RELATION_SIZES.values(), ids=RELATION_SIZES.keys())
def test_word_relation(sizes: tuple[int, int, int, int], words: dict[str, Any], dtype: torch.dtype) -> None:
    _check(relation_inputs(*sizes, dtype), RelationKnobs.make(sizes[0], **words), dtype, poison=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [127, 200], ids=["nearly a block", "a prompt of several chunks"])
def test_many_tokens(tokens: int, dtype: torch.dtype) -> None:
    # Almost flat: sums that cancel.
    knobs = RelationKnobs.make(1, normalise="softmax", temperature=0.05)
    _check(relation_inputs(1, 9, tokens, 6, dtype), knobs, dtype)


def test_without_a_key_word() -> None:
    inputs, knobs = relation_inputs(2, 9, 8, 6, torch.float32), RelationKnobs.make(2)
    inputs["key_tokens"] = torch.zeros_like(inputs["key_tokens"])
    wanted = word_relation(**_wide(inputs), knobs=knobs)
    found = word_relation(**inputs, knobs=knobs, implementation="triton")
    assert not found.key_embedding.any() and not found.relation.any()
    assert_close(found.word_steps, wanted.word_steps, torch.float32)


def test_features_with_channels_first() -> None:
    inputs, knobs = relation_inputs(2, 12, 9, 20, torch.float32), mixed_knobs(2)
    inputs["features"] = inputs["features"].transpose(1, 2).contiguous().transpose(1, 2)
    _check(inputs, knobs, torch.float32)


def test_strides_that_the_kernel_can_not_take_are_refused() -> None:
    inputs, knobs = relation_inputs(2, 12, 9, 20, torch.float32), mixed_knobs(2)
    with pytest.raises(ValueError, match=r"threshold has strides \[0\], .* call .contiguous"):
        strided = knobs._replace(threshold=torch.tensor(0.3).expand(2))
        word_relation(**inputs, knobs=strided, implementation="triton")
