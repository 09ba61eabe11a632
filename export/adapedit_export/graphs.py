"""The modules that are traced: every graph of a bundle as a function of named tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adapedit_engine.manifest import EDITS, MAPS, ROWS
from adapedit_engine.models.controls import EDIT_NAMES, SELF_NAMES, Controls
from adapedit_engine.models.text import TextEncoders
from adapedit_engine.models.unet import OUTPUT_NAMES, ControlledUNet

MAX_ROWS = 63  # from 64 on diffusers' upsampling takes another path, which is traced as a limit


@dataclass(frozen=True, kw_only=True)
class Traceable:
    """A module with example inputs in the order of its arguments, and the sides that stay open.

    open_sides: input name -> {dimension: name of the size}.
    outputs:    names.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    open_sides: dict[str, dict[int, str]]
    outputs: tuple[str, ...]


class UNetGraph(nn.Module):
    """The controlled UNet with the keys and values of all layers in one tensor."""

    def __init__(self, controlled: ControlledUNet) -> None:
        super().__init__()
        self.controlled = controlled
        self.widths = text_widths(controlled)

    def forward(
        self, sample: Tensor, timestep: Tensor, projected_text: Tensor, **others: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """others: controls, and what else rows bring, by name."""
        parts = projected_text.split(self.widths, dim=-1)
        noise_pred, maps, features = self.controlled(
            sample,
            timestep,
            controls=Controls.from_dict(others),
            projected=tuple(zip(parts[::2], parts[1::2], strict=True)),
            conditioning={name: others[name] for name in self.controlled.specs.conditioning},
        )
        return noise_pred, maps, features


class TextProjection(nn.Module):
    """Hidden states [B, N, D] to keys and values of all cross-attention layers, [B, N, W]."""

    def __init__(self, controlled: ControlledUNet) -> None:
        super().__init__()
        self.controlled = controlled

    def forward(self, encoder_hidden_states: Tensor) -> Tensor:
        pairs = self.controlled.project(encoder_hidden_states)
        return torch.cat([part for pair in pairs for part in pair], dim=-1)


class VaeDecoder(nn.Module):
    """Latents [B, C, h, w] as the UNet has them to pixels [B, 3, H, W] in 0..1, in the latents' dtype."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scale = 1 / float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        pixels = self.vae.decode((latents * self.scale).to(self.vae.dtype), return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1).to(latents.dtype)


class VaeEncoder(nn.Module):
    """Pixels [B, 3, H, W] in 0..1 to latents [B, C, h, w] as the UNet has them: the mean, nothing drawn."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)

    def forward(self, pixels: Tensor) -> Tensor:
        moments = self.vae.encoder((pixels * 2 - 1).to(self.vae.dtype))
        if self.vae.quant_conv is not None:
            moments = self.vae.quant_conv(moments)
        return (moments.chunk(2, dim=1)[0] * self.scale).to(pixels.dtype)


def _cast(module: Any, dtype: torch.dtype) -> Any:
    """A copy whose floating numbers are in `dtype`, never copied as they were."""
    with torch.no_grad():
        parameters = {
            id(one): nn.Parameter(one.to(dtype), requires_grad=False) for one in module.parameters()
        }
        floating = (one for one in module.buffers() if one.is_floating_point())
        return copy.deepcopy(module, {**parameters, **{id(one): one.to(dtype) for one in floating}})


def text_widths(controlled: ControlledUNet) -> list[int]:
    """Widths of key_0, value_0, key_1, ... in `projected_text`."""
    widths = []
    for layer in controlled.specs.cross_layers:
        module: Any = controlled.unet.get_submodule(layer.name)
        widths += [module.to_k.out_features, module.to_v.out_features]
    return widths


@dataclass(frozen=True, kw_only=True)
class Modules:
    """A checkpoint's modules, and the sizes that they are traced with.

    tokens: N. height, width: of the latents. rows: of a UNet call; None leaves them open. wide_vae: the VAE computes in
    float32 whatever its graphs' inputs are, for it overflows in float16.
    """

    controlled: ControlledUNet
    text: TextEncoders
    vae: Any
    tokens: int
    height: int
    width: int
    rows: int | None
    wide_vae: bool = False

    @property
    def vae_factor(self) -> int:
        """Pixels to one latent cell, per side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def cast(self, graph: str, dtype: torch.dtype) -> Modules:
        """The same with what `graph` runs in `dtype`; the checkpoint stays what it was, and shares what has it already.

        One graph at a time, so that no more than its weights is there twice.
        """
        if graph in ("unet", "text_projection"):
            unet, divisor = _cast(self.controlled.unet, dtype), self.controlled.specs.map_divisor
            return replace(self, controlled=ControlledUNet(unet, map_divisor=divisor))
        if graph == "text_encoder":
            return replace(self, text=_cast(self.text, dtype))
        return replace(self, vae=_cast(self.vae, torch.float32 if self.wide_vae else dtype))

    def traceable(self, graph: str, dtype: torch.dtype = torch.float32) -> Traceable:
        """One graph of a bundle; dtype: of its floating-point inputs, as of its module."""
        if graph == "unet":
            return self._unet(dtype)
        module: nn.Module
        if graph == "text_encoder":
            module, outputs = self.text, self.text.outputs
            inputs = {name: torch.zeros(2, self.tokens, dtype=torch.int64) for name in self.text.inputs}
        elif graph == "text_projection":
            module, outputs = TextProjection(self.controlled), ("projected_text",)
            channels = self.controlled.specs.text_channels
            inputs = {"encoder_hidden_states": torch.zeros(2, self.tokens, channels, dtype=dtype)}
        elif graph == "vae_decoder":
            module, outputs = VaeDecoder(self.vae), ("pixels",)
            channels = self.vae.config.latent_channels
            inputs = {"latents": torch.zeros(2, channels, self.height, self.width, dtype=dtype)}
        else:
            module, outputs = VaeEncoder(self.vae), ("latents",)
            size = (side * self.vae_factor for side in (self.height, self.width))
            inputs = {"pixels": torch.zeros(2, 3, *size, dtype=dtype)}
        sides = {name: {0: ROWS} for name in inputs}
        return Traceable(module=module, inputs=inputs, open_sides=sides, outputs=outputs)

    def _unet(self, dtype: torch.dtype) -> Traceable:
        specs, batch = self.controlled.specs, self.rows or 4
        # Open sides of one size would be traced as one.
        edits, maps = (self.rows, self.rows) if self.rows else (2, 3)
        map_height, map_width = specs.map_size(self.height, self.width)
        controls = Controls.identity(
            batch=batch,
            tokens=self.tokens,
            pixels=map_height * map_width,
            layers=len(specs.self_layers),
            edits=edits,
            maps=maps,
        )
        widths = sum(text_widths(self.controlled))
        inputs = {
            "sample": torch.zeros(batch, specs.in_channels, self.height, self.width, dtype=dtype),
            "timestep": torch.zeros(batch, dtype=torch.float32),
            "projected_text": torch.zeros(batch, self.tokens, widths, dtype=dtype),
            # Clones: inputs that share memory would be traced as one input.
            **{name: tensor.clone() for name, tensor in controls.as_dict().items()},
            **{
                name: torch.zeros(batch, *sides, dtype=torch.float32)
                for name, sides in specs.conditioning.items()
            },
        }
        sides = {name: {1 if name in SELF_NAMES else 0: ROWS} for name in inputs}
        sides |= {name: {0: EDITS} for name in EDIT_NAMES} | {"map_row": {0: MAPS}}
        return Traceable(
            module=UNetGraph(self.controlled),
            inputs=inputs,
            open_sides=sides if self.rows is None else {},
            outputs=OUTPUT_NAMES,
        )
