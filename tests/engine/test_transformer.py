"""Lean transformers: the same numbers, and diffusers' own way wherever more is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from adapedit_engine import packing
from adapedit_engine.packing import PackedWeights, can_pack
from adapedit_engine.unet import ControlledUNet
from tests.engine.tiny import noise, tiny_unet

pytestmark = pytest.mark.skipif(not can_pack(nn.Linear(2, 2)), reason="this build of torch has no oneDNN")


@pytest.fixture(params=[False, True], ids=["convolutions", "linear projections"])
def unet(request: pytest.FixtureRequest) -> Any:
    return tiny_unet(use_linear_projection=request.param).to(memory_format=torch.channels_last)


def predicted(unet: Any, rows: int = 3) -> tuple[torch.Tensor, ...]:
    controlled = ControlledUNet(unet)
    text = noise(rows, 7, controlled.specs.text_channels, seed=2)
    with torch.inference_mode(), PackedWeights(unet).attached(), controlled.attached():
        found = controlled(
            noise(rows, controlled.specs.in_channels, 8, 8, seed=1), torch.full((rows,), 5.0), text
        )
    return tuple(found)


@pytest.fixture
def general(unet: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, ...]:
    """What comes out the general way, all else being packed."""
    with monkeypatch.context() as patched:
        patched.setattr(packing, "is_lean", lambda transformer: False)
        return predicted(unet)


def same(unet: Any, one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    """To the bit, but for linear projections: what stands behind gets another memory format, and rounds otherwise."""
    if unet.config.use_linear_projection:
        return all(torch.allclose(left, right, atol=1e-5) for left, right in zip(one, other, strict=True))
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def transformers(unet: Any) -> list[Any]:
    return [module for module in unet.modules() if type(module) is Transformer2DModel]


def test_the_numbers_are_the_same(unet, general, monkeypatch):
    asked: list[torch.Tensor] = []
    for each in transformers(unet):
        monkeypatch.setattr(each, "_operate_on_continuous_inputs", asked.append)
    assert same(unet, predicted(unet), general)
    assert not asked and len(transformers(unet)) > 1


def test_hooks_and_chunks_are_heard(unet, general):
    heard = []
    block = transformers(unet)[0].transformer_blocks[0]
    with block.attn1.register_forward_hook(lambda *_: heard.append("attention")):
        assert same(unet, predicted(unet), general)
    with block.register_forward_pre_hook(lambda *_: heard.append("block")):
        assert same(unet, predicted(unet), general)
    assert heard == ["attention", "block"]
    block.set_chunk_feed_forward(1, dim=0)
    for left, right in zip(predicted(unet), general, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_processors_of_others_are_asked(unet):
    x, text = (
        noise(2, unet.config.in_channels, 8, 8, seed=1),
        noise(2, 7, unet.config.cross_attention_dim, seed=2),
    )
    with torch.inference_mode():
        plain = unet(x, torch.tensor([5.0, 6.0]), text).sample
        with PackedWeights(unet).attached():
            found = unet(x, torch.tensor([5.0, 6.0]), text).sample
    assert torch.allclose(found, plain, atol=1e-5 * float(plain.abs().max()))


def test_what_it_was_given_stays(unet):
    first = transformers(unet)[0]
    controlled = ControlledUNet(unet)
    seen: list[torch.Tensor] = []
    with first.register_forward_pre_hook(lambda _, inputs: seen.extend((inputs[0], inputs[0].clone()))):
        predicted(unet)
    assert torch.equal(*seen) and controlled.specs.cross_layers
