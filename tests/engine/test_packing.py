"""Packed layers: the same numbers, faster, and gone when the block ends."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from adapedit_engine import PyTorchRunner, denoise
from adapedit_engine.packing import PackedWeights, can_pack, multiplies_bfloat16
from tests.engine.tiny import edit_plan, largest, noise, tiny_unet

needs_onednn = pytest.mark.skipif(not can_pack(nn.Linear(2, 2)), reason="this build of torch has no oneDNN")


def channels_last(module: Any) -> Any:
    return module.to(memory_format=torch.channels_last)


def test_an_edit_is_the_same_with_packed_weights():
    unet = channels_last(tiny_unet())
    with PyTorchRunner(unet, pack=True) as packed, PyTorchRunner(tiny_unet(), pack=False) as plain:
        (one,), (other,) = denoise([edit_plan(1, 2)], packed), denoise([edit_plan(1, 2)], plain)
    # Rounding over five steps of a network of random weights, whose latents are some 40.
    assert largest(one.latents, other.latents) < 1e-5 * float(other.latents.abs().max())


@needs_onednn
def test_layers_are_left_as_they_were():
    unet = channels_last(tiny_unet())
    layers = [layer for layer in unet.modules() if type(layer) in (nn.Linear, nn.Conv2d)]
    with PyTorchRunner(unet):
        assert all("forward" in vars(layer) for layer in layers)
    assert not any("forward" in vars(layer) for layer in layers)


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2}, {"padding": 1, "dilation": 2}, {"groups": 4}, {"bias": False}]
)
def test_convolutions_of_every_size_after_the_first(settings):
    layer = channels_last(nn.Conv2d(16, 8, 3, **settings))
    pictures = [noise(rows, 16, side, side) for rows, side in ((2, 8), (5, 8), (1, 12))]
    expected = [layer(picture) for picture in pictures]
    with PackedWeights(layer).attached():
        for picture, one in zip(pictures, expected, strict=True):
            found = layer(picture)
            assert torch.allclose(found, one, atol=1e-5)
            assert found.stride() == one.stride()


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_gated_layers_with_gelu_and_product_behind_their_own(bias):
    layer = GEGLU(16, 24, bias=bias)
    inputs = [noise(rows, 5, 16) for rows in (2, 7)]
    for factor in (1, 2):  # a changed weight is packed anew here, too
        layer.proj.weight.mul_(factor)
        expected = [layer(input) for input in inputs]
        with PackedWeights(layer).attached():
            assert "forward" in vars(layer)
            for input, one in zip(inputs, expected, strict=True):
                assert torch.allclose(layer(input), one, atol=1e-5)
    assert "forward" not in vars(layer)


@needs_onednn
@torch.no_grad()
def test_a_gated_layer_whose_product_was_replaced_takes_the_new_one():
    layer, x = GEGLU(16, 24), noise(2, 5, 16)
    packed = PackedWeights(layer)
    for seed in (0, 1):
        torch.manual_seed(seed)
        layer.proj = nn.Linear(16, 48)
        expected = layer(x)
        with packed.attached():
            assert torch.allclose(layer(x), expected, atol=1e-5)


@needs_onednn
@torch.no_grad()
def test_upsampling_is_part_of_the_convolution_behind_it():
    layer = channels_last(Upsample2D(6, use_conv=True, out_channels=4))
    pictures = [noise(rows, 6, height, width) for rows, height, width in ((2, 4, 4), (1, 3, 5), (5, 4, 4))]
    for factor in (1, 2):  # a changed weight is folded anew
        layer.conv.weight.mul_(factor)
        expected = [layer(picture) for picture in pictures]
        with PackedWeights(layer).attached():
            calls = Counter[str]()
            layer.conv.register_forward_hook(lambda *_, calls=calls: calls.update(["conv"]))
            for picture, one in zip(pictures, expected, strict=True):
                found = layer(picture)
                assert torch.allclose(found, one, atol=1e-5)
                assert found.stride() == one.stride()
            assert not calls
            # Latents with an odd side are not doubled: their next size is told.
            assert layer(pictures[0], (7, 8)).shape[-2:] == (7, 8) and calls["conv"] == 1


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("outputs", [8, 16])
@pytest.mark.parametrize(("time", "norm"), [(12, "default"), (None, "default"), (None, "group")])
def test_residual_blocks_in_place_leave_their_input_as_it_was(outputs, time, norm):
    torch.manual_seed(0)
    settings = {"temb_channels": time, "time_embedding_norm": norm, "groups": 4}
    block = channels_last(ResnetBlock2D(in_channels=8, out_channels=outputs, **settings)).eval()
    x = noise(3, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    temb = None if time is None else noise(3, time)
    kept = (x.clone(), None if temb is None else temb.clone())
    expected = block(x, temb)
    with PackedWeights(block).attached():
        assert "forward" in vars(block)
        assert torch.allclose(block(x, temb=temb), expected, atol=1e-6)
    assert torch.equal(x, kept[0]) and (temb is None or torch.equal(temb, kept[1]))


@needs_onednn
@pytest.mark.parametrize(
    "settings", [{"output_scale_factor": 2.0}, {"up": True}, {"time_embedding_norm": "scale_shift"}]
)
def test_other_residual_blocks_are_left_alone(settings):
    block = channels_last(ResnetBlock2D(in_channels=8, temb_channels=12, groups=4, **settings)).eval()
    with PackedWeights(block).attached():
        assert "forward" not in vars(block)


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("side", [16, 4])
def test_small_groups_are_normalised_by_whole_pixels(side):
    norm, x = nn.GroupNorm(16, 64), 5 * noise(9, 64, side, side) + 20
    norm.weight.copy_(noise(64, seed=1))
    norm.bias.copy_(noise(64, seed=2))
    for picture in (x, channels_last(x)):
        expected = norm(picture)
        with PackedWeights(norm).attached():
            found = norm(picture)
        assert torch.allclose(found, expected, atol=1e-4)
        assert found.stride() == expected.stride()


@needs_onednn
@torch.no_grad()
def test_a_large_constant_is_normalised_to_the_shift_alone():
    norm, x = nn.GroupNorm(16, 64), channels_last(torch.full((9, 64, 16, 16), 1000.7))
    with PackedWeights(norm).attached():
        assert norm(x).abs().max() < 1


@needs_onednn
def test_a_model_in_half_precision_is_left_alone():
    """As one on a GPU: a look at the input before each of its layers would be all that packing did."""
    block = ResnetBlock2D(in_channels=64, temb_channels=12, groups=16)
    model = channels_last(nn.Sequential(block, Upsample2D(8, use_conv=True), GEGLU(16, 24))).eval()
    assert can_pack(model) and not can_pack(model.half())
    with PackedWeights(model).attached():
        assert not any("forward" in vars(layer) for layer in model.modules())


@needs_onednn
@pytest.mark.skipif(
    not multiplies_bfloat16(), reason="this CPU emulates bfloat16, and packing leaves it alone"
)
@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(64, 32), (3, 64)),
        (nn.Conv2d(16, 8, 3, padding=1), (2, 16, 8, 8)),
        (GEGLU(16, 24), (2, 5, 16)),
        (Upsample2D(8, use_conv=True), (2, 8, 6, 6)),
        (ResnetBlock2D(in_channels=64, temb_channels=None, groups=16), (9, 64, 16, 16)),
        (nn.GroupNorm(16, 64), (9, 64, 16, 16)),
        (nn.GroupNorm(2, 64), (3, 64, 4, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "x".join(map(str, value)),
)
def test_bfloat16_is_packed_and_no_further_from_the_truth(layer, shape):
    x = noise(*shape)
    given = (None,) if isinstance(layer, ResnetBlock2D) else ()
    truth = layer(x, *given)
    model = channels_last(layer).bfloat16()
    x = x.bfloat16() if x.ndim < 4 else channels_last(x).bfloat16()
    error = largest(model(x, *given).float(), truth)
    assert can_pack(model)
    with PackedWeights(model).attached():
        found = model(x, *given)
    assert found.dtype == torch.bfloat16
    assert largest(found.float(), truth) < 2 * error + 1e-3


@needs_onednn
@torch.no_grad()
def test_a_changed_weight_is_packed_anew():
    layer, x = nn.Linear(8, 4), noise(3, 8)
    packed = PackedWeights(layer)
    for change in (
        lambda: None,
        lambda: layer.weight.mul_(2),
        lambda: layer.weight.copy_(noise(4, 8, seed=3)),
    ):
        change()
        expected = layer(x)
        with packed.attached(), packed.attached():
            assert torch.allclose(layer(x), expected, atol=1e-6)


def merged(layer: nn.Linear) -> None:
    layer.weight.data += noise(4, 8, seed=3)  # as adapters are merged: it raises no version


def loaded(layer: nn.Linear) -> None:
    layer.load_state_dict({"weight": noise(4, 8, seed=4), "bias": noise(4, seed=5)})


def replaced_twice(layer: nn.Linear) -> None:
    for factor in (2, 3):  # the second may lie where the first one lay before
        layer.weight.data = layer.weight.data * factor


@needs_onednn
@pytest.mark.parametrize("change", [merged, loaded, replaced_twice])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_so_is_one_that_does_not_tell_of_its_change(change, mode):
    with mode():
        layer, x = nn.Linear(8, 4), noise(3, 8)
        packed = PackedWeights(layer)
        for _ in range(3):
            with packed.attached():
                assert torch.allclose(layer(x), x @ layer.weight.T + layer.bias, atol=1e-4)
            change(layer)


@needs_onednn
@torch.no_grad()
def test_and_all_others_of_an_edit():
    unet = channels_last(tiny_unet())
    with PyTorchRunner(unet, pack=True) as packed:
        denoise([edit_plan(1, 2)], packed)
    for weight in unet.parameters():
        if weight.ndim > 1:
            weight.data *= 0.9
    with PyTorchRunner(unet, pack=False) as plain:
        (other,) = denoise([edit_plan(1, 2)], plain)
    with packed:
        (one,) = denoise([edit_plan(1, 2)], packed)
    assert largest(one.latents, other.latents) < 1e-5 * float(other.latents.abs().max())


@needs_onednn
def test_blocks_may_overlap():
    layer = nn.Linear(8, 4)
    packed = PackedWeights(layer)
    first, second = packed.attached(), packed.attached()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert "forward" in vars(layer)  # another thread is still in its block
    second.__exit__(None, None, None)
    assert "forward" not in vars(layer)


@needs_onednn
def test_gradients_and_other_dtypes_go_the_plain_way():
    layer = nn.Linear(8, 4)
    with PackedWeights(layer).attached():
        layer(noise(3, 8)).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(noise(3, 8)).dtype == torch.bfloat16


def test_layers_that_compute_otherwise_are_left_alone():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    assert not can_pack(Doubled(2, 2))
    assert not can_pack(nn.Linear(2, 2).half())
    assert not can_pack(nn.Conv2d(2, 2, 3))  # not channels last
    for settings in ({"padding": 1, "padding_mode": "reflect"}, {"padding": "same"}):
        assert not can_pack(channels_last(nn.Conv2d(2, 2, 3, **settings)))
