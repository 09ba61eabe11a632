"""ControlledUNet: diffusers' own UNet, with controls as inputs and attention maps as outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapedit_engine.models.attention import (
    AttentionCall,
    Capture,
    CrossAttentionProcessor,
    SelfAttentionProcessor,
    project_text,
)
from adapedit_engine.models.controls import CONTROL_NAMES, Controls
from adapedit_engine.models.layers import (
    ModelSpecs,
    features_layer,
    find_layers,
    resolve_map_level,
    row_conditioning,
    trained_side,
)
from adapedit_engine.models.norms import fast_norms
from adapedit_kernels import prepare_values

INPUT_NAMES = ("sample", "timestep", "encoder_hidden_states", *CONTROL_NAMES)
OUTPUT_NAMES = ("noise_pred", "cross_attention_maps", "visual_features")


class UNetOutput(NamedTuple):
    """noise_pred [B, C, h, w]; cross_attention_maps [M, P, N] float32; visual_features [M, P, V]; None: not asked for.

    M rows are those of `Controls.map_row`, all where that is None. The maps are each row's own, before any edit,
    averaged over heads and over the layers at the map resolution.
    """

    noise_pred: Tensor
    cross_attention_maps: Tensor | None
    visual_features: Tensor | None


class ControlledUNet(nn.Module):
    """A `UNet2DConditionModel` of the families of Stable Diffusion 1.x, 2.x and XL, driven by `Controls`.

    A single call attaches by itself; around many calls, an export or a compilation use `attached()`. Otherwise the
    wrapped model has its own processors. Differentiable: where gradients are wanted nothing is detached or in place.

    Two rules hold, bit for bit, on one batch shape: `noise_pred` does not depend on whether maps are asked for; and a
    row that takes nothing from others does not depend on whether other rows do, nor on whether that is said by `None`
    or by its own row number. So the source of an edit is the plain generation of its prompt.
    """

    def __init__(self, unet: nn.Module, *, map_divisor: int | None = None) -> None:
        """`map_divisor`: latent side over map side (SD: 2, the default where the UNet has that level).

        Raises `UnsupportedModelError` for models outside the family and for divisors without cross-attention.
        """
        super().__init__()
        self_layers, cross_layers = find_layers(unet)
        map_level = resolve_map_level(cross_layers, map_divisor, trained_side(unet))
        features = features_layer(cross_layers, map_level)
        self.unet = unet
        config: Any = unet.config
        first: Any = unet.get_submodule(cross_layers[0].name)
        self.specs = ModelSpecs(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            text_channels=first.cross_attention_dim,
            self_layers=self_layers,
            cross_layers=cross_layers,
            map_level=map_level,
            feature_channels=cross_layers[features].channels,
            halving_pad=config.get("downsample_padding", 1),
            conditioning=row_conditioning(unet),
        )
        # Pairs of module and processor, kept off the module tree: the UNet's own tree stays as it is.
        pairs: list[tuple[Any, Any]] = [
            (unet.get_submodule(layer.name), SelfAttentionProcessor(i)) for i, layer in enumerate(self_layers)
        ]
        # Shares of an average, so that the layers' sum is the average and nothing is left to be divided.
        share = 1 / sum(layer.level == map_level for layer in cross_layers)
        for i, layer in enumerate(cross_layers):
            weight = share if layer.level == map_level else 0.0
            processor = CrossAttentionProcessor(
                i, level=layer.level, map_weight=weight, reports_features=i == features
            )
            pairs.append((unet.get_submodule(layer.name), processor))
        self._pairs = tuple(pairs)

    @contextmanager
    def attached(self) -> Iterator[ControlledUNet]:
        """Set the control processors and fast norms, and put back exactly what was there. May be nested."""
        before = [module.get_processor() for module, _ in self._pairs]
        for module, processor in self._pairs:
            _put_processor(module, processor)
        try:
            with fast_norms(self.unet):
                yield self
        finally:
            for (module, _), processor in zip(self._pairs, before, strict=True):
                _put_processor(module, processor)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        controls: Controls | None = None,
        *,
        projected: Sequence[tuple[Tensor, Tensor]] | None = None,
        conditioning: Mapping[str, Tensor] | None = None,
        capture: bool = True,
        self_layers: Mapping[str, tuple[int, ...]] | None = None,
    ) -> UNetOutput:
        """One prediction for B rows. Nothing is checked here: a plan was, against `specs`.

        sample [B, C_in, h, w]; timestep [B], each row's own; encoder_hidden_states [B, N, D] or, in its place,
        `projected`: what `project` made of it. conditioning: what `specs.conditioning` names, [B, ...] each.
        self_layers: see `AttentionCall`.
        """
        controls = Controls() if controls is None else controls
        capturing = Capture() if capture else None
        if encoder_hidden_states is not None and controls.edited:
            projected = self.project(encoder_hidden_states)
        call = AttentionCall(
            controls=controls,
            spatial_maps=self._spatial_maps(controls, sample.shape[-2], sample.shape[-1]),
            projected=None if projected is None else tuple(projected),
            prepared=_prepared(controls, projected),
            capture=capturing,
            self_layers=self_layers,
        )
        module, processor = self._pairs[0]
        with nullcontext() if module.processor is processor else self.attached():
            noise_pred = self.unet(
                sample,
                timestep,
                encoder_hidden_states=encoder_hidden_states,
                cross_attention_kwargs={"call": call},
                added_cond_kwargs=dict(conditioning) if conditioning else None,
                return_dict=False,
            )[0]
        if capturing is None:
            return UNetOutput(noise_pred, None, None)
        return UNetOutput(noise_pred, capturing.maps, capturing.features)

    def project(self, encoder_hidden_states: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values [B, N, channels] of every cross-attention layer: needed once per prompt."""
        modules = [self.unet.get_submodule(layer.name) for layer in self.specs.cross_layers]
        return tuple(project_text(module, encoder_hidden_states) for module in modules)

    def _spatial_maps(self, controls: Controls, height: int, width: int) -> dict[int, Tensor]:
        """The spatial map at each level that has cross-attention, [E, pixels of that level]."""
        if controls.spatial_map is None:
            return {}
        picture = controls.spatial_map.unflatten(1, self.specs.map_size(height, width)).unsqueeze(1)
        resized = {self.specs.map_level: controls.spatial_map}
        for level in self.specs.levels:
            if level not in resized:
                size = self.specs.size_at(level, height, width)
                resized[level] = F.interpolate(picture, size, mode="bilinear", align_corners=False).flatten(1)
        return resized


def _prepared(
    controls: Controls, projected: Sequence[tuple[Tensor, Tensor]] | None
) -> tuple[Tensor, ...] | None:
    """Prepared values of every layer, as views of one tensor: one product makes them all."""
    if projected is None or not controls.edited:
        return None
    values = [value for _, value in projected]
    names = ("edited_row", "token_map", "own_weight", "spatial_weight")
    given: Any = {name: getattr(controls, name) for name in names}
    prepared = prepare_values(torch.cat(values, -1), **given, spatial=controls.spatial_map is not None)
    return prepared.split([value.shape[-1] for value in values], -1)


def _put_processor(module: Any, processor: Any) -> None:
    # A processor that is itself a module (LoRA, IP-Adapter) lives in the module tree, and plain assignment of
    # a plain object over it is refused; Attention.set_processor would write a line to the log each time.
    module._modules.pop("processor", None)
    module.processor = processor
