"""Where a UNet's attention layers are: found by walking its blocks, never by counting calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from adapedit_kernels.errors import AdapEditError

Place = Literal["down", "mid", "up"]

BLOCKS = (
    "CrossAttnDownBlock2D",
    "DownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UNetMidBlock2D",
    "CrossAttnUpBlock2D",
    "UpBlock2D",
)

# Settings of UNet2DConditionModel that need further inputs, and the value that needs none.
NEEDS_NO_INPUT = {
    "addition_embed_type": "an added text or image embedding (SDXL, Kandinsky)",
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "encoder_hid_dim_type": "an image embedding or a second text projection",
    "time_cond_proj_dim": "a guidance embedding (distilled LCM checkpoints)",
}


class UnsupportedModelError(AdapEditError):
    """A UNet that the engine can't control faithfully."""


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One attention layer, in a form that can be written to a manifest.

    name:     dotted path of the attention module in the UNet.
    place:    which side of the UNet it is on.
    level:    number of halvings of the latent side there; the layer has 1 / 2**level of it.
    channels: width of its input.
    """

    name: str
    place: Place
    level: int
    channels: int


def find_layers(unet: Any) -> tuple[tuple[LayerSpec, ...], tuple[LayerSpec, ...]]:
    """Self- and cross-attention layers of a `UNet2DConditionModel`, each in execution order (down, mid, up).

    Raises `UnsupportedModelError` for models outside the families of Stable Diffusion 1.x and 2.x.
    """
    _check_config(unet)
    self_layers: list[LayerSpec] = []
    cross_layers: list[LayerSpec] = []
    for path, block, place, level in _blocks(unet):
        if type(block).__name__ not in BLOCKS:
            raise UnsupportedModelError(
                f"{path} is a {type(block).__name__}, which can't be controlled; wanted: {', '.join(BLOCKS)}"
            )
        for i, transformer in enumerate(getattr(block, "attentions", None) or ()):
            if not hasattr(transformer, "transformer_blocks"):
                raise UnsupportedModelError(
                    f"{path}.attentions.{i} is a {type(transformer).__name__}, wanted Transformer2DModel"
                )
            for j, inner in enumerate(transformer.transformer_blocks):
                name = f"{path}.attentions.{i}.transformer_blocks.{j}"
                _check_block(name, inner)
                for attn, layers in (("attn1", self_layers), ("attn2", cross_layers)):
                    module = getattr(inner, attn)
                    _check_attention(f"{name}.{attn}", module)
                    layers.append(
                        LayerSpec(name=f"{name}.{attn}", place=place, level=level, channels=module.query_dim)
                    )
    if not cross_layers:
        raise UnsupportedModelError("this UNet has no cross-attention, so there are no words to edit")
    return tuple(self_layers), tuple(cross_layers)


def _blocks(unet: Any) -> Iterator[tuple[str, Any, Place, int]]:
    level = 0
    for i, block in enumerate(unet.down_blocks):
        yield f"down_blocks.{i}", block, "down", level
        level += bool(block.downsamplers) if getattr(block, "downsamplers", None) is not None else 0
    if unet.mid_block is not None:
        yield "mid_block", unet.mid_block, "mid", level
    for i, block in enumerate(unet.up_blocks):
        yield f"up_blocks.{i}", block, "up", level
        level -= bool(block.upsamplers) if getattr(block, "upsamplers", None) is not None else 0


def _check_config(unet: Any) -> None:
    config = getattr(unet, "config", None)
    if config is None or not hasattr(unet, "down_blocks") or not hasattr(unet, "up_blocks"):
        raise UnsupportedModelError(f"got a {type(unet).__name__}, wanted a diffusers UNet2DConditionModel")
    for name, what in NEEDS_NO_INPUT.items():
        if config.get(name) is not None:
            raise UnsupportedModelError(
                f"this UNet wants {what} ({name}={config[name]!r}), which the engine does not feed; "
                "use a checkpoint of the Stable Diffusion 1.x or 2.x family"
            )
    if config.get("attention_type", "default") != "default":
        raise UnsupportedModelError(f"attention_type={config['attention_type']!r} (GLIGEN) is not supported")


def _check_block(name: str, block: Any) -> None:
    if block.only_cross_attention or block.double_self_attention or block.attn2 is None:
        raise UnsupportedModelError(f"{name} has not one self- and one cross-attention layer, as wanted")


def _check_attention(name: str, attn: Any) -> None:
    oddities = {
        "added_kv_proj_dim": attn.added_kv_proj_dim is not None,
        "group_norm": attn.group_norm is not None,
        "spatial_norm": attn.spatial_norm is not None,
        "qk_norm": attn.norm_q is not None or attn.norm_k is not None,
        "kv_heads": attn.inner_kv_dim != attn.inner_dim,
        "residual_connection": bool(attn.residual_connection),
        "is_causal": bool(getattr(attn, "is_causal", False)),
    }
    for setting, present in oddities.items():
        if present:
            raise UnsupportedModelError(
                f"{name} has {setting} set, which the control processors do not reproduce"
            )
