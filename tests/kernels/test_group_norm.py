"""Group norm: the reference against numpy, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adapedit_kernels import AdapEditError, group_norm
from tests.kernels.inputs import norm_inputs, to_numpy


@pytest.mark.parametrize("silu", [False, True])
def test_each_group_has_mean_0_and_variance_1_before_it_is_scaled(silu: bool) -> None:
    given = norm_inputs(2, 6, 3, (4, 5), torch.float64)
    x, weight, bias = (to_numpy(given[name]) for name in ("x", "weight", "bias"))
    groups = x.reshape(2, 3, -1)
    normed = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    wanted = normed.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    wanted = wanted / (1 + np.exp(-wanted)) if silu else wanted
    np.testing.assert_allclose(group_norm(**given, silu=silu).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 4}, "groups is 4, wanted a divisor of 6"),
        ({"groups": 0}, "groups is 0, wanted a divisor of 6"),
        ({"bias": torch.zeros(5)}, r"bias has shape \[5\], wanted \[C\] = \[6\]"),
        ({"x": torch.zeros(2, 6, 4)}, "x has shape"),
        ({"weight": torch.zeros(6, dtype=torch.int64)}, "weight is int64"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    given = norm_inputs(2, 6, 3, (4, 5), torch.float32)
    with pytest.raises(AdapEditError, match="group_norm: " + message):
        group_norm(**(given | changes))
