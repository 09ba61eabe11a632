"""One call of the controlled UNet: its outputs, its edits against the slow implementation, its manners."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor

from adapedit_engine.models.controls import Controls
from adapedit_engine.models.unet import ControlledUNet
from tests.engine import slow
from tests.engine.tiny import SIDE, TEXT, TOKENS, largest, noise, there, tiny_unet

BATCH = 4
LAYERS = 7


def call() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    timestep = torch.tensor([900.0, 900.0, 20.0, 444.0])
    return noise(BATCH, 4, SIDE, SIDE, seed=1), timestep, noise(BATCH, TOKENS, TEXT, seed=2)


def random_controls(pixels: int = SIDE**2, **changes: Any) -> Controls:
    fields: dict[str, Any] = {
        "edited_row": torch.arange(BATCH),
        "source_row": torch.tensor([0, 0, 2, 0]),
        "token_map": noise(BATCH, TOKENS, TOKENS, seed=3).softmax(1),
        "own_weight": noise(BATCH, TOKENS, seed=4).sigmoid().round(),
        "spatial_weight": noise(BATCH, TOKENS, seed=5).sigmoid(),
        "spatial_map": noise(BATCH, pixels, seed=6).sigmoid(),
    }
    return Controls(**{**fields, **changes})


def test_without_controls_it_is_the_diffusers_unet():
    unet = tiny_unet()
    sample, timestep, text = call()
    output = ControlledUNet(unet)(sample, timestep, text)
    assert largest(output.noise_pred, unet(sample, timestep, text).sample) < 1e-5


def test_maps_are_float32_under_autocast():
    sample, timestep, text = call()
    with torch.autocast("cpu", torch.bfloat16):
        output = ControlledUNet(tiny_unet())(sample, timestep, text)
    assert there(output.cross_attention_maps).dtype == torch.float32


@pytest.mark.parametrize("map_divisor", [1, 2])
def test_edited_maps_are_those_of_the_formula(map_divisor: int):
    unet = tiny_unet()
    sample, timestep, text = call()
    side = SIDE // map_divisor
    controls = random_controls(side**2)
    output = ControlledUNet(unet, map_divisor=map_divisor)(sample, timestep, text, controls)
    picture = there(controls.spatial_map).reshape(BATCH, 1, side, side)
    source = there(controls.source_row).tolist()
    token_map, own_weight = there(controls.token_map), there(controls.own_weight)
    weight = there(controls.spatial_weight)

    def change(maps: torch.Tensor, cross: bool, name: str) -> torch.Tensor:
        if not cross:
            return maps
        here = int(maps.shape[2] ** 0.5)
        spatial = F.interpolate(picture, (here, here), mode="bilinear", align_corners=False).flatten(1)
        return slow.edited_maps(maps, source, token_map, own_weight, weight, spatial)

    with slow.slow_attention(unet, change):
        expected = unet(sample, timestep, text).sample
    assert largest(output.noise_pred, expected) < 2e-5
    assert largest(output.noise_pred, unet(sample, timestep, text).sample) > 1e-3


@pytest.mark.parametrize("taken", [("query", "key"), ("key", "value")])
def test_self_attention_takes_rows_layer_by_layer(taken: tuple[str, str]):
    """Queries and keys: the source's probabilities. Keys and values: the target looks into the source."""
    unet = tiny_unet()
    sample, timestep, text = call()
    rows = torch.arange(BATCH).repeat(LAYERS, 1)
    rows[3:, 1] = 0
    controls = Controls(**{f"self_{what}_row": rows for what in taken})
    controlled = ControlledUNet(unet)
    result = controlled(sample, timestep, text, controls).noise_pred
    names = [layer.name + ".processor" for layer in controlled.specs.self_layers]
    if taken == ("query", "key"):

        def change(maps: torch.Tensor, cross: bool, name: str) -> torch.Tensor:
            replaced = not cross and names.index(name) >= 3
            return torch.cat([maps[:1], maps[:1], maps[2:]]) if replaced else maps

        with slow.slow_attention(unet, change):
            expected = unet(sample, timestep, text).sample
    else:
        expected = _mutual(unet, names[3:], sample, timestep, text)
    assert largest(result, expected) < 2e-5
    assert largest(result[1], unet(sample, timestep, text).sample[1]) > 1e-3


def _mutual(unet, names: list[str], *inputs: torch.Tensor) -> torch.Tensor:
    """MasaCtrl, slowly: in these layers, hand row 1 the keys and values of row 0."""

    class Mutual(slow.SlowProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            plain = super().__call__(attn, hidden_states, encoder_hidden_states)
            if encoder_hidden_states is not None or self.name not in names:
                return plain
            mixed = super().__call__(attn, hidden_states[1:2], hidden_states[0:1])
            return torch.cat([plain[:1], mixed, plain[2:]])

    before = dict(unet.attn_processors)
    unet.set_attn_processor({name: Mutual(name, lambda maps, *_: maps) for name in before})
    result = unet(*inputs).sample
    unet.set_attn_processor(before)
    return result


@pytest.mark.parametrize("map_divisor", [1, 2])
def test_maps_and_features_are_what_hooks_see(map_divisor: int):
    unet = tiny_unet()
    sample, timestep, text = call()
    pixels = (SIDE // map_divisor) ** 2
    seen, entering = [], []

    def change(maps: torch.Tensor, cross: bool, name: str) -> torch.Tensor:
        if cross and maps.shape[2] == pixels:
            seen.append(maps.mean(1))
            if name.startswith("up_blocks"):
                entering.append(inputs[name.removesuffix(".processor")])
        return maps

    inputs: dict[str, torch.Tensor] = {}
    controlled = ControlledUNet(unet, map_divisor=map_divisor)
    hooks = [
        unet.get_submodule(layer.name).register_forward_pre_hook(
            lambda _, args, name=layer.name: inputs.__setitem__(name, args[0])
        )
        for layer in controlled.specs.cross_layers
    ]
    with slow.slow_attention(unet, change):
        unet(sample, timestep, text)
    for hook in hooks:
        hook.remove()
    output = controlled(sample, timestep, text, random_controls(pixels, source_row=torch.arange(BATCH)))
    assert output.cross_attention_maps.dtype == torch.float32
    assert largest(output.cross_attention_maps, torch.stack(seen).mean(0)) < 1e-5
    assert largest(output.visual_features, entering[-1]) < 1e-5
    assert torch.allclose(output.cross_attention_maps.sum(-1), torch.ones(()))


def test_reported_maps_are_the_rows_own_and_not_the_edited_ones():
    """In the first layer nothing has been edited before, so the maps there are those of a plain call."""
    unet = tiny_unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
    )
    sample, timestep, text = call()
    controlled = ControlledUNet(unet, map_divisor=1)
    plain, edited = controlled(sample, timestep, text), controlled(sample, timestep, text, random_controls())
    assert torch.equal(plain.cross_attention_maps, edited.cross_attention_maps)
    assert not torch.equal(plain.noise_pred, edited.noise_pred)


def test_capturing_and_projecting_ahead_change_no_bit():
    unet = tiny_unet()
    sample, timestep, text = call()
    with ControlledUNet(unet, map_divisor=1).attached() as controlled:
        for controls in (Controls(), random_controls()):
            full = controlled(sample, timestep, text, controls)
            short = controlled(sample, timestep, text, controls, capture=False)
            ahead = controlled(sample, timestep, controls=controls, projected=controlled.project(text))
            assert short.cross_attention_maps is None and short.visual_features is None
            assert torch.equal(full.noise_pred, short.noise_pred)
            assert torch.equal(full.noise_pred, ahead.noise_pred)
            assert torch.equal(full.cross_attention_maps, ahead.cross_attention_maps)


def test_differentiable_and_inputs_untouched():
    unet = tiny_unet().requires_grad_(True)
    sample, timestep, text = call()
    inputs = [tensor.clone() for tensor in (sample, timestep, text)]
    output = ControlledUNet(unet, map_divisor=1)(sample, timestep, text)
    output.cross_attention_maps[..., 2].square().sum().backward()
    gradient = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.grad
    assert gradient is not None and gradient.abs().max() > 0
    assert all(torch.equal(now, before) for now, before in zip((sample, timestep, text), inputs, strict=True))


class Boom(Exception):
    pass


def test_processors_are_put_back_whatever_happens():
    unet = tiny_unet()
    module = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    trained = torch.nn.Linear(1, 1)  # a processor that is a module, as LoRA's once were
    module.processor = trained
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor = AttnProcessor()
    before, keys = dict(unet.attn_processors), list(unet.state_dict())

    def unchanged() -> bool:
        now = unet.attn_processors
        same = now.keys() == before.keys() and all(now[name] is before[name] for name in before)
        return same and module._modules.get("processor") is trained and list(unet.state_dict()) == keys

    with pytest.raises(Boom), ControlledUNet(unet).attached() as controlled:
        assert not unchanged()
        controlled(*call())
        with controlled.attached():
            pass
        assert not unchanged()
        raise Boom
    assert unchanged()
    ControlledUNet(unet)(*call())
    assert unchanged()
    with pytest.raises(RuntimeError):
        ControlledUNet(unet)(noise(1, 5, SIDE, SIDE), torch.ones(1), noise(1, TOKENS, TEXT))
    assert unchanged()


def test_the_unet_itself_still_runs_while_attached():
    unet = tiny_unet()
    expected = unet(*call()).sample
    with ControlledUNet(unet).attached():
        assert largest(unet(*call()).sample, expected) < 1e-5
