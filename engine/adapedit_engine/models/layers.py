"""Where a UNet's attention is, and what else of a model an edit has to know: plain data that a manifest can carry.

Layers are found by walking the blocks, never by counting calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from adapedit_engine.models.text import POOLED
from adapedit_kernels.errors import AdapEditError

Place = Literal["down", "mid", "up"]
# Bounds of what a manifest may say.
Width = Annotated[int, Field(ge=1, le=1 << 20)]
Level = Annotated[int, Field(ge=0, le=8)]

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
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "encoder_hid_dim_type": "an image embedding or a second text projection",
    "time_cond_proj_dim": "a guidance embedding (distilled LCM checkpoints)",
}


FAMILIES = "Stable Diffusion 1.x, 2.x or XL"
TEXT_TIME = "text_time"
"""SDXL's `addition_embed_type`: a pooled embedding of the prompt, and six numbers of the picture's sizes."""
SIZES = "time_ids"
MAX_MAP_SIDE = 48
"""Cells, at the size that a model was trained for: 32 of Stable Diffusion 1.x and of SDXL, 48 of 2.x at 768 pixels."""


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
    level: Level
    channels: Width


Layers = Annotated[tuple[LayerSpec, ...], Field(min_length=1, max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class ModelSpecs:
    """Facts of a controlled UNet that do not depend on the batch.

    in_channels, out_channels: of the UNet; in_channels may be larger (InstructPix2Pix has 8 and 4).
    text_channels:             D of `encoder_hidden_states`.
    self_layers, cross_layers: in execution order; the first gives L of the self-attention controls.
    map_level:                 halvings of the latent side at the map resolution.
    feature_channels:          V of `visual_features`.
    conditioning:              what a row brings besides, by name, with its shape (SDXL: "text_embeds" and "time_ids").
    halving_pad:               1 where an odd side is rounded up when it is halved, 0 where it is rounded down.
    """

    in_channels: Width
    out_channels: Width
    text_channels: Width
    self_layers: Layers
    cross_layers: Layers
    map_level: Level
    feature_channels: Width
    halving_pad: Annotated[int, Field(ge=0, le=1)] = 1
    conditioning: Mapping[str, tuple[Width, ...]] = field(default_factory=dict)

    @property
    def map_divisor(self) -> int:
        """Latent side over map side."""
        return 2**self.map_level

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that have cross-attention, ascending."""
        return tuple(sorted({layer.level for layer in self.cross_layers}))

    def size_at(self, level: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of a layer at `level`, for latents of `height` x `width`."""
        for _ in range(level):
            height, width = (height + self.halving_pad) // 2, (width + self.halving_pad) // 2
        return height, width

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the reported maps, for latents of `height` x `width`."""
        return self.size_at(self.map_level, height, width)


def find_layers(unet: Any) -> tuple[tuple[LayerSpec, ...], tuple[LayerSpec, ...]]:
    """Self- and cross-attention layers of a `UNet2DConditionModel`, each in execution order (down, mid, up).

    Raises `UnsupportedModelError` for models outside the families of Stable Diffusion 1.x, 2.x and XL.
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
                f"use a checkpoint of {FAMILIES}"
            )
    if config.get("addition_embed_type") not in (None, TEXT_TIME):
        raise UnsupportedModelError(
            f"addition_embed_type={config['addition_embed_type']!r} (Kandinsky) is not supported; "
            f"use a checkpoint of {FAMILIES}"
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
            raise UnsupportedModelError(f"{name} has {setting} set, which control processors don't reproduce")


def row_conditioning(unet: Any) -> dict[str, tuple[int, ...]]:
    """What a row brings a UNet besides latents, timestep and prompt, by name, with its shape."""
    config = unet.config
    if config.get("addition_embed_type") != TEXT_TIME:
        return {}
    numbers = 6
    pooled = config.projection_class_embeddings_input_dim - numbers * config.addition_time_embed_dim
    return {POOLED: (pooled,), SIZES: (numbers,)}


def trained_side(unet: Any) -> int:
    """Side of the latents that a UNet was trained for; of two the smaller."""
    size = unet.config.sample_size
    return int(min(size) if isinstance(size, (list, tuple)) else size or 64)


def resolve_map_level(cross_layers: tuple[LayerSpec, ...], map_divisor: int | None, side: int = 64) -> int:
    """Level of the map resolution: by default half of the latent side, as in the paper, where that exists.

    side: of the latents that the model was trained for. Where half of it has more than `MAX_MAP_SIDE` cells, the
    finest level that has not: SDXL's maps are of 32 x 32 at 1024 pixels, where most of its layers are.
    """
    levels = sorted({layer.level for layer in cross_layers})
    if map_divisor is None:
        found = 1 if 1 in levels else levels[0]
        return next((one for one in levels if one >= found and side >> one <= MAX_MAP_SIDE), levels[-1])
    level = map_divisor.bit_length() - 1
    if map_divisor < 1 or 2**level != map_divisor or level not in levels:
        known = ", ".join(str(2**known) for known in levels)
        raise UnsupportedModelError(
            f"map_divisor={map_divisor}: this UNet has cross-attention at the latent side divided by {known}"
        )
    return level


def features_layer(cross_layers: tuple[LayerSpec, ...], map_level: int) -> int:
    """Index of the cross-attention layer whose input is the visual features.

    The last one at the map resolution on the way up; where the way up has none there, the last one of all there.
    """
    there = [i for i, layer in enumerate(cross_layers) if layer.level == map_level]
    upward = [i for i in there if cross_layers[i].place == "up"]
    return (upward or there)[-1]
