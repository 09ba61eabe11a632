"""Norms by the kernel: the same function of the same weights, for the length of a block."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from adapedit_engine.models import norms
from adapedit_engine.models.norms import ActivatingNorm, Activation, Norm, fast_norms
from adapedit_engine.models.unet import ControlledUNet
from tests.engine.tiny import SIDE, TEXT, TOKENS, largest, noise, tiny_unet


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that say so, and lie in host memory all the same."""
    monkeypatch.setattr(norms, "_is_slow", lambda module: True)


def kinds(unet: nn.Module) -> Counter[Any]:
    wanted = (nn.GroupNorm, nn.SiLU, Norm, ActivatingNorm, Activation)
    return Counter(type(module) for module in unet.modules() if type(module) in wanted)


def test_every_norm_is_changed_and_put_back(on_a_gpu: None) -> None:
    unet = tiny_unet()
    before, state = kinds(unet), list(unet.state_dict())
    with ControlledUNet(unet).attached(), fast_norms(unet):
        inside = kinds(unet)
        assert list(unet.state_dict()) == state
        assert not inside[nn.GroupNorm]
        # Transformers have no SiLU behind their norm; the time embedding's own is left.
        assert inside[Norm] == sum(
            "attentions" in name and name.endswith("norm") for name in dict(unet.named_modules())
        )
        assert inside[ActivatingNorm] == before[nn.GroupNorm] - inside[Norm] and inside[nn.SiLU] == 1
    assert kinds(unet) == before


def test_the_model_computes_what_it_did(on_a_gpu: None) -> None:
    """On the CPU the public function is the reference."""
    unet = tiny_unet()
    given = (noise(2, 4, SIDE, SIDE), torch.tensor([7.0, 900.0]), noise(2, TOKENS, TEXT, seed=1))
    with torch.no_grad():
        wanted = unet(*given).sample
        with fast_norms(unet):
            assert torch.equal(unet(*given).sample, wanted)
            assert largest(torch.compile(unet, backend="eager")(*given).sample, wanted) < 1e-5


def test_where_the_time_embedding_comes_between_norm_and_silu_nothing_is_joined(on_a_gpu: None) -> None:
    unet = tiny_unet(resnet_time_scale_shift="scale_shift")
    with fast_norms(unet):
        inside = kinds(unet)
    assert inside[ActivatingNorm] == 1 and not inside[nn.GroupNorm]


def test_on_the_cpu_norms_are_pytorchs() -> None:
    unet = tiny_unet()
    with fast_norms(unet):
        assert kinds(unet)[nn.GroupNorm]
