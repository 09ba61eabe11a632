"""Finding the attention layers of a UNet, and refusing what can't be controlled."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from adapedit_engine.models.layers import UnsupportedModelError, features_layer
from adapedit_engine.models.unet import ControlledUNet
from tests.engine.tiny import TOKENS, largest, noise, tiny_unet

SD_BLOCKS: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


def test_layers_in_execution_order_as_in_stable_diffusion():
    specs = ControlledUNet(tiny_unet(**SD_BLOCKS)).specs
    places = [(layer.place, layer.level) for layer in specs.cross_layers]
    assert places == (
        [("down", 0)] * 2 + [("down", 1)] * 2 + [("down", 2)] * 2 + [("mid", 3)]
        + [("up", 2)] * 3 + [("up", 1)] * 3 + [("up", 0)] * 3
    )  # fmt: skip
    assert [layer.level for layer in specs.self_layers] == [level for _, level in places]
    assert specs.map_divisor == 2
    assert specs.map_size(64, 96) == (32, 48)
    assert (
        specs.cross_layers[features_layer(specs.cross_layers, specs.map_level)].name
        == "up_blocks.2.attentions.2.transformer_blocks.0.attn2"
    )
    assert specs.feature_channels == 32


def test_execution_order_is_what_hooks_see():
    unet = tiny_unet(**SD_BLOCKS)
    specs, called = ControlledUNet(unet).specs, []
    for layer in (*specs.self_layers, *specs.cross_layers):
        unet.get_submodule(layer.name).register_forward_hook(lambda *_, name=layer.name: called.append(name))
    unet(noise(1, 4, 16, 16), torch.tensor(1), noise(1, TOKENS, 24))
    assert [name for name in called if name.endswith("attn1")] == [layer.name for layer in specs.self_layers]
    assert [name for name in called if name.endswith("attn2")] == [layer.name for layer in specs.cross_layers]


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (10, 6), (9, 7)])
@pytest.mark.parametrize("padding", [0, 1])
def test_sizes_of_layers_also_for_odd_and_oblong_latents(size: tuple[int, int], padding: int):
    unet = tiny_unet(downsample_padding=padding)
    controlled = ControlledUNet(unet, map_divisor=2)
    sample, timestep, text = noise(2, 4, *size), torch.ones(2), noise(2, TOKENS, 24)
    output = controlled(sample, timestep, text)
    height, width = controlled.specs.map_size(*size)
    assert output.cross_attention_maps.shape == (2, height * width, TOKENS)
    assert output.visual_features.shape == (2, height * width, controlled.specs.feature_channels)
    assert largest(output.noise_pred, unet(sample, timestep, text).sample) < 1e-5


def test_stable_diffusion_2_heads_and_linear_projections():
    changes = {**SD_BLOCKS, "attention_head_dim": (2, 4, 8, 8), "use_linear_projection": True}
    unet = tiny_unet(**changes, upcast_attention=True)
    sample, timestep, text = noise(2, 4, 16, 16), torch.ones(2), noise(2, TOKENS, 24)
    assert (
        largest(ControlledUNet(unet)(sample, timestep, text).noise_pred, unet(sample, timestep, text).sample)
        < 1e-5
    )


def test_map_divisor_must_have_cross_attention():
    assert ControlledUNet(tiny_unet(), map_divisor=1).specs.map_level == 0
    for wrong in (0, 3, 4):
        with pytest.raises(UnsupportedModelError, match=f"map_divisor={wrong}.*divided by 1, 2"):
            ControlledUNet(tiny_unet(), map_divisor=wrong)


def test_map_divisor_where_half_the_side_has_no_words():
    unet = tiny_unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type=None,
    )
    assert ControlledUNet(unet).specs.map_divisor == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "addition_embed_type": "text",
                "addition_embed_type_num_heads": 4,
            },
            "addition_embed_type='text'.*use a checkpoint of Stable Diffusion 1.x, 2.x or XL",
        ),
        ({"num_class_embeds": 10}, "class labels"),
        ({"time_cond_proj_dim": 16}, "guidance embedding"),
        ({"encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type='text_proj'"),
        ({"attention_type": "gated"}, "GLIGEN"),
        (
            {"down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D")},
            "down_blocks.0 is a AttnDownBlock2D, which can't be controlled",
        ),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "UNetMidBlock2DSimpleCrossAttn"),
        ({"only_cross_attention": True}, "has not one self- and one cross-attention layer"),
        ({"dual_cross_attention": True}, "is a DualTransformer2DModel, wanted Transformer2DModel"),
        (
            {
                "down_block_types": ("DownBlock2D",) * 2,
                "up_block_types": ("UpBlock2D",) * 2,
                "mid_block_type": None,
            },
            "no cross-attention",
        ),
    ],
)
def test_models_outside_the_family_are_refused(changes, message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        ControlledUNet(tiny_unet(**changes))


@pytest.mark.parametrize("model", [nn.Linear(1, 1), SimpleNamespace(config={})])
def test_what_is_no_unet_is_refused(model):
    with pytest.raises(UnsupportedModelError, match="wanted a diffusers UNet2DConditionModel"):
        ControlledUNet(model)


def test_unusual_attention_is_refused():
    unet = tiny_unet()
    attention = next(module for name, module in unet.named_modules() if name.endswith("attn1"))
    attention.group_norm = nn.GroupNorm(1, 32)
    with pytest.raises(UnsupportedModelError, match="attn1 has group_norm set"):
        ControlledUNet(unet)
    assert isinstance(unet, UNet2DConditionModel)


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({"cross_attention_dim": 768, "attention_head_dim": 8}, 8),
        (
            {
                "cross_attention_dim": 1024,
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
            },
            5,
        ),
    ],
    ids=["1.4", "2.1"],
)
def test_true_shapes_of_stable_diffusion(changes: dict[str, Any], heads: int):
    """Sixteen layers of each kind; maps at 32 x 32 from five of them, features 640 wide. No memory is taken."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **changes)
    specs = ControlledUNet(unet).specs
    assert len(specs.self_layers) == len(specs.cross_layers) == 16
    assert specs.map_size(64, 64) == (32, 32)
    assert [layer.level for layer in specs.cross_layers].count(specs.map_level) == 5
    assert (specs.feature_channels, specs.text_channels) == (640, changes["cross_attention_dim"])
    assert unet.get_submodule(specs.self_layers[0].name).heads == heads
