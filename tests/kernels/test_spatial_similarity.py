"""Spatial similarity: the reference against loops written from the specification, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adapedit_kernels import AdapEditError, spatial_similarity
from tests.kernels import loops


@pytest.mark.parametrize(
    "centre", [[True] * 3, [False] * 3, [False, True, True]], ids=["all", "none", "some"]
)
def test_spatial_similarity_is_the_loop(centre: list[bool]) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 12, 5, dtype=torch.float64) + 1
    key = 3 * torch.randn(3, 5, dtype=torch.float64)
    key[1] = 0
    factors = torch.tensor([0.5, 1.0, 0.8], dtype=torch.float64)
    found = spatial_similarity(features, key, factors, torch.tensor(centre))
    for row in range(3):
        single = (features[row].numpy(), key[row].numpy(), float(factors[row]), centre[row])
        np.testing.assert_allclose(found[row].numpy(), loops.spatial_similarity(*single), atol=1e-12)
    assert not found[1].any()


SIMILARITY: dict[str, tuple[dict[str, Any], str]] = {
    "key": (
        {"key_embedding": torch.zeros(2, 4)},
        r"key_embedding has shape \[2, 4\], wanted \[B, V\] = \[2, 5\]",
    ),
    "factor": (
        {"lambda_spatial": torch.ones(1)},
        r"lambda_spatial has shape \[1\], wanted \[B\] = \[2\]",
    ),
    "switch": ({"centre": torch.ones(2)}, "centre is float32, wanted bool"),
    "device": ({"centre": torch.ones(2, dtype=torch.bool, device="meta")}, "centre is on meta, features on"),
    "empty": ({"features": torch.zeros(2, 0, 5)}, r"features \[2, 0, 5\] hold nothing"),
}


@pytest.mark.parametrize(("changes", "message"), SIMILARITY.values(), ids=SIMILARITY.keys())
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"features": torch.zeros(2, 8, 5), "key_embedding": torch.zeros(2, 5)}
    arguments |= {"lambda_spatial": torch.ones(2), "centre": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(AdapEditError, match="spatial_similarity: " + message):
        spatial_similarity(**(arguments | changes))
