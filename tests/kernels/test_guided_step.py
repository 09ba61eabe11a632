"""The guided step: the reference against loops written from the specification, and what is refused."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import pytest
import torch

from adapedit_kernels import AdapEditError, guided_step
from tests.kernels import loops
from tests.kernels.inputs import step_inputs, to_numpy


@pytest.mark.parametrize(("noise", "blend"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("tracks", "guidance"), [(1, 1), (3, 2), (2, 3)])
def test_guided_step_is_the_loop(tracks: int, guidance: int, noise: bool, blend: bool) -> None:
    inputs = step_inputs(tracks, guidance, (2, 3, 5), torch.float64, noise=noise, blend=blend)
    found = guided_step(**inputs)
    names = list(inspect.signature(loops.guided_step).parameters)
    wanted = loops.guided_step(*(to_numpy(inputs.get(name)) for name in names))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


STEP: dict[str, tuple[dict[str, Any], str]] = {
    "latents": ({"noise_pred": torch.zeros(5, 3, 4, 5)}, r"noise_pred has shape .* = \[any, 3, 4, 4\]"),
    "weights": ({"guidance_weights": torch.zeros(2, 3)}, r"guidance_weights has shape .* = \[2, 2\]"),
    "rows": (
        {"guidance_rows": torch.tensor([[0, 1], [2, 5]])},
        "guidance_rows holds rows 0 to 5, wanted 0 to 4",
    ),
    "source": ({"blend_source": torch.tensor([0, 2])}, "blend_source holds rows 0 to 2, wanted 0 to 1"),
    "pair": ({"noise": None}, "noise_weight is given without noise; give both or neither"),
    "mask": ({"blend_mask": torch.zeros(2, 3, 4, 4)}, r"blend_mask has shape .* = \[2, 1, 4, 4\]"),
}


@pytest.mark.parametrize(("changes", "message"), STEP.values(), ids=STEP.keys())
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = step_inputs(2, 2, (3, 4, 4), torch.float32, noise=True, blend=True)
    with pytest.raises(AdapEditError, match="guided_step: " + message):
        guided_step(**(arguments | changes))


def test_kernels_are_one_operator_and_the_reference_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator is one node to compilers, and has no gradient; the reference has the gradients of its formulas."""
    module = sys.modules[guided_step.__module__]
    inputs, called = step_inputs(2, 2, (2, 3, 5), torch.float32, noise=True, blend=True), []
    monkeypatch.setattr(module, "guided_step_operator", lambda *arguments: called.append(arguments))
    inputs["latents"].requires_grad_()
    guided_step(**inputs).sum().backward()
    assert inputs["latents"].grad is not None and not called
    monkeypatch.setattr("adapedit_kernels.dispatch.implementation_for", lambda *_: "triton")
    guided_step(**inputs)
    assert len(called) == 1 and called[0][:2] == (inputs["noise_pred"], inputs["latents"])
