"""What the loop has to know about a model, as plain data: a bundle's manifest can carry it."""

from __future__ import annotations

from dataclasses import dataclass

from adapedit_engine.layers import LayerSpec, UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class ModelSpecs:
    """Facts of a controlled UNet that do not depend on the batch.

    in_channels, out_channels: of the UNet; in_channels may be larger (InstructPix2Pix has 8 and 4).
    text_channels:             D of `encoder_hidden_states`.
    self_layers, cross_layers: in execution order; the first gives L of the self-attention controls.
    map_level:                 halvings of the latent side at the map resolution.
    feature_channels:          V of `visual_features`.
    halving_pad:               1 where an odd side is rounded up when it is halved, 0 where it is rounded
                               down.
    """

    in_channels: int
    out_channels: int
    text_channels: int
    self_layers: tuple[LayerSpec, ...]
    cross_layers: tuple[LayerSpec, ...]
    map_level: int
    feature_channels: int
    halving_pad: int = 1

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

    def features_layer(self) -> int:
        """Index of the cross-attention layer whose input is the visual features.

        The last one at the map resolution on the way up; where the way up has none there, the last one of all
        there.
        """
        return features_layer(self.cross_layers, self.map_level)


def resolve_map_level(cross_layers: tuple[LayerSpec, ...], map_divisor: int | None) -> int:
    """Level of the map resolution; by default half of the latent side, as in the paper, where that exists."""
    levels = sorted({layer.level for layer in cross_layers})
    if map_divisor is None:
        return 1 if 1 in levels else levels[0]
    level = map_divisor.bit_length() - 1
    if map_divisor < 1 or 2**level != map_divisor or level not in levels:
        known = ", ".join(str(2**known) for known in levels)
        raise UnsupportedModelError(
            f"map_divisor={map_divisor}: this UNet has cross-attention at the latent side divided by {known}"
        )
    return level


def features_layer(cross_layers: tuple[LayerSpec, ...], map_level: int) -> int:
    """See `ModelSpecs.features_layer`."""
    there = [i for i, layer in enumerate(cross_layers) if layer.level == map_level]
    upward = [i for i in there if cross_layers[i].place == "up"]
    return (upward or there)[-1]
