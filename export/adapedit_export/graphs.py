"""The modules that are traced: every graph of a bundle as a function of named tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapedit_engine.models.controls import CONTROL_NAMES, SELF_NAMES, Controls
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
        self,
        sample: Tensor,
        timestep: Tensor,
        projected_text: Tensor,
        source_row: Tensor,
        token_map: Tensor,
        own_weight: Tensor,
        spatial_weight: Tensor,
        spatial_map: Tensor,
        self_query_row: Tensor,
        self_key_row: Tensor,
        self_value_row: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = projected_text.split(self.widths, dim=-1)
        noise_pred, maps, features = self.controlled(
            sample,
            timestep,
            controls=Controls(
                source_row=source_row,
                token_map=token_map,
                own_weight=own_weight,
                spatial_weight=spatial_weight,
                spatial_map=spatial_map,
                self_query_row=self_query_row,
                self_key_row=self_key_row,
                self_value_row=self_value_row,
            ),
            projected=tuple(zip(parts[::2], parts[1::2], strict=True)),
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


class TextEncoder(nn.Module):
    """Token ids [B, N] to hidden states [B, N, D]."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text_encoder(input_ids).last_hidden_state


class VaeDecoder(nn.Module):
    """Latents [B, C, h, w] as the UNet has them to pixels [B, 3, H, W] in 0..1."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scale = 1 / float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        pixels = self.vae.decode(latents * self.scale, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)


class VaeEncoder(nn.Module):
    """Pixels [B, 3, H, W] in 0..1 to latents [B, C, h, w] as the UNet has them: the mean, nothing drawn."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)

    def forward(self, pixels: Tensor) -> Tensor:
        moments = (
            self.vae.quant_conv(self.vae.encoder(pixels * 2 - 1))
            if self.vae.quant_conv is not None
            else (self.vae.encoder(pixels * 2 - 1))
        )
        return moments.chunk(2, dim=1)[0] * self.scale


def text_widths(controlled: ControlledUNet) -> list[int]:
    """Widths of key_0, value_0, key_1, ... in `projected_text`."""
    widths = []
    for layer in controlled.specs.cross_layers:
        module: Any = controlled.unet.get_submodule(layer.name)
        widths += [module.to_k.out_features, module.to_v.out_features]
    return widths


def unet_graph(
    controlled: ControlledUNet, *, tokens: int, height: int, width: int, rows: int | None, dtype: torch.dtype
) -> Traceable:
    """The UNet for latents of `height` x `width`; rows None leaves the batch open."""
    specs, batch = controlled.specs, rows or 4
    map_height, map_width = specs.map_size(height, width)
    controls = Controls.identity(
        batch=batch, tokens=tokens, pixels=map_height * map_width, layers=len(specs.self_layers)
    )
    inputs = {
        "sample": torch.zeros(batch, specs.in_channels, height, width, dtype=dtype),
        "timestep": torch.zeros(batch),
        "projected_text": torch.zeros(batch, tokens, sum(text_widths(controlled)), dtype=dtype),
        # Clones: inputs that share memory would be traced as one input.
        **{name: tensor.clone() for name, tensor in controls.as_dict().items()},
    }
    assert tuple(inputs)[3:] == CONTROL_NAMES
    sides = {name: {1 if name in SELF_NAMES else 0: "rows"} for name in inputs} if rows is None else {}
    return Traceable(module=UNetGraph(controlled), inputs=inputs, open_sides=sides, outputs=OUTPUT_NAMES)


def small_graphs(
    controlled: ControlledUNet,
    text_encoder: Any,
    vae: Any,
    *,
    tokens: int,
    height: int,
    width: int,
    factor: int,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> dict[str, Traceable]:
    """Everything but the UNet, each with an open batch. height, width: of the latents."""
    specs = controlled.specs
    hidden = torch.zeros(2, tokens, specs.text_channels, dtype=dtype)
    latents = torch.zeros(2, vae.config.latent_channels, height, width, dtype=vae_dtype)
    pixels = torch.zeros(2, 3, height * factor, width * factor, dtype=vae_dtype)
    ids = torch.zeros(2, tokens, dtype=torch.int64)

    def traceable(module: nn.Module, name: str, example: Tensor, output: str) -> Traceable:
        return Traceable(
            module=module, inputs={name: example}, open_sides={name: {0: "rows"}}, outputs=(output,)
        )

    return {
        "text_encoder": traceable(TextEncoder(text_encoder), "input_ids", ids, "hidden_states"),
        "text_projection": traceable(
            TextProjection(controlled), "encoder_hidden_states", hidden, "projected_text"
        ),
        "vae_decoder": traceable(VaeDecoder(vae), "latents", latents, "pixels"),
        "vae_encoder": traceable(VaeEncoder(vae), "pixels", pixels, "latents"),
    }
