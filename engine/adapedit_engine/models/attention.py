"""Attention processors that read controls. They keep no state: everything they need comes with the call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from adapedit_engine.models.controls import SELF_NAMES, Controls
from adapedit_kernels import attention_maps, edited_attention


@dataclass(kw_only=True, eq=False)
class Capture:
    """What the layers of one call leave behind. Made anew for every call.

    maps:     [M, P, N], the weighted sum over the layers so far.
    features: [M, P, V].
    """

    maps: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The one thing that travels through the UNet to its attention layers.

    spatial_maps: by level (number of halvings of the latent side), [E, pixels of that level].
    projected:    per cross-attention layer, keys and values [B, N, heads * head_dim]; None: project here.
    prepared:     per cross-attention layer, what `prepare_values` makes of the values; None: no row is edited.
    self_layers:  by name of `SELF_NAMES`, the layers in which some row takes from another; None: they may in all.
    """

    controls: Controls = field(default_factory=Controls)
    spatial_maps: Mapping[int, Tensor] = field(default_factory=dict)
    projected: tuple[tuple[Tensor, Tensor], ...] | None = None
    prepared: tuple[Tensor, ...] | None = None
    capture: Capture | None = None
    self_layers: Mapping[str, tuple[int, ...]] | None = None

    def rows(self, name: str, layer: int) -> Tensor | None:
        """The rows [B] that a self-attention layer takes from; None where each takes from itself."""
        table: Tensor | None = getattr(self.controls, name)
        if table is None or (self.self_layers is not None and layer not in self.self_layers.get(name, ())):
            return None
        return table[layer]


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """[B, P, H * D] -> [B, H, P, D], a view."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def project_text(attn: Any, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, N, H * D] of one cross-attention layer: they depend on the prompt alone."""
    if attn.norm_cross is not None:
        encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
    return attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)


def _taken(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor.index_select(0, rows)


class _Processor:
    """What diffusers calls in the place of its own, layer by layer. index: among the layers of its kind, in order."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        call: AttentionCall | None = None,
    ) -> Tensor:
        mixed = self.mix(attn, hidden_states, encoder_hidden_states, call or AttentionCall())
        # Project, and the layer's own scaling.
        projected = attn.to_out[1](attn.to_out[0](mixed))
        return projected if attn.rescale_output_factor == 1.0 else projected / attn.rescale_output_factor

    def mix(self, attn: Any, hidden_states: Tensor, text: Tensor | None, call: AttentionCall) -> Tensor:
        """[B, P, H * D], before the layer's last projection."""
        raise NotImplementedError


# diffusers asks for the signature at every call of every layer; one that is noted down is not worked out again.
setattr(_Processor.__call__, "__signature__", inspect.signature(_Processor.__call__))  # noqa: B010


class SelfAttentionProcessor(_Processor):
    """Fused self-attention whose queries, keys and values may come from other rows of the batch.

    Q and K of the source row give the target its attention probabilities (Prompt-to-Prompt), which are never formed;
    K and V give MasaCtrl.
    """

    def mix(self, attn: Any, hidden_states: Tensor, text: Tensor | None, call: AttentionCall) -> Tensor:
        projections = zip(SELF_NAMES, (attn.to_q, attn.to_k, attn.to_v), strict=True)
        query, key, value = (
            split_heads(_taken(project(hidden_states), call.rows(name, self.index)), attn.heads)
            for name, project in projections
        )
        mixed = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        return mixed.transpose(1, 2).flatten(2)


class CrossAttentionProcessor(_Processor):
    """Cross-attention whose maps may be mixed with another row's, and which can report the rows' own maps.

    level:            number of halvings of the latent side at this layer.
    map_weight:       its share in the averaged maps; 0: it is not at the map resolution and adds nothing.
    reports_features: this layer's input is the visual features.
    """

    def __init__(self, index: int, *, level: int, map_weight: float, reports_features: bool) -> None:
        super().__init__(index)
        self.level, self.map_weight, self.reports_features = level, map_weight, reports_features

    def mix(self, attn: Any, hidden_states: Tensor, text: Tensor | None, call: AttentionCall) -> Tensor:
        if call.projected is not None:
            key, value = call.projected[self.index]
        else:
            assert text is not None
            key, value = project_text(attn, text)
        query, capture = attn.to_q(hidden_states), call.capture
        same: Any = {"heads": attn.heads, "scale": attn.scale, "check_values": False}
        mixed = edited_attention(query, key, value, **same, **self._edit(call))
        if capture is not None and self.map_weight > 0:
            capture.maps = attention_maps(
                query,
                key,
                **same,
                map_row=call.controls.map_row,
                map_sum=capture.maps,
                map_weight=self.map_weight,
            )
        if capture is not None and self.reports_features:
            capture.features = _taken(hidden_states, call.controls.map_row)
        return mixed

    def _edit(self, call: AttentionCall) -> dict[str, Any]:
        if call.prepared is None:
            return {}
        return {
            "edited_row": call.controls.edited_row,
            "source_row": call.controls.source_row,
            "prepared": call.prepared[self.index],
            "spatial_map": call.spatial_maps.get(self.level),
        }
