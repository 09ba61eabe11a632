"""Attention processors that read controls. They keep no state: everything they need comes with the call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from adapedit_engine.controls import Controls
from adapedit_kernels import edited_attention_with_maps

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""`edited_attention_with_maps`, or what takes its arguments and gives what it gives."""


@dataclass(kw_only=True, eq=False)
class Capture:
    """What the layers of one call leave behind. Made anew for every call.

    maps:     [B, P, N], the weighted sum over the layers so far.
    features: [B, P, V].
    """

    maps: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The one thing that travels through the UNet to its attention layers.

    spatial_maps: by level (number of halvings of the latent side), [B, pixels of that level].
    projected:    per cross-attention layer, keys and values [B, N, heads * head_dim]; None: project here.
    """

    controls: Controls = field(default_factory=Controls)
    spatial_maps: Mapping[int, Tensor] = field(default_factory=dict)
    projected: tuple[tuple[Tensor, Tensor], ...] | None = None
    capture: Capture | None = None


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """[B, P, H * D] -> [B, H, P, D], a view."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def project_text(attn: Any, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, N, H * D] of one cross-attention layer: they depend on the prompt alone."""
    if attn.norm_cross is not None:
        encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
    return attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)


def _finish(attn: Any, mixed: Tensor) -> Tensor:
    """[B, H, P, D] -> [B, P, channels]: join the heads, project, and the layer's own scaling."""
    hidden_states = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
    return hidden_states if attn.rescale_output_factor == 1.0 else hidden_states / attn.rescale_output_factor


class SelfAttentionProcessor:
    """Fused self-attention whose queries, keys and values may come from other rows of the batch.

    Taking Q and K from the source row gives the target the source's attention probabilities
    (Prompt-to-Prompt); taking K and V gives MasaCtrl. No probabilities are formed for either.
    """

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
        controls = Controls() if call is None else call.controls
        query = self._rows(attn.to_q, hidden_states, controls.self_query_row)
        key = self._rows(attn.to_k, hidden_states, controls.self_key_row)
        value = self._rows(attn.to_v, hidden_states, controls.self_value_row)
        query, key, value = (split_heads(tensor, attn.heads) for tensor in (query, key, value))
        return _finish(attn, F.scaled_dot_product_attention(query, key, value, scale=attn.scale))

    def _rows(self, project: Any, hidden_states: Tensor, rows: Tensor | None) -> Tensor:
        projected = project(hidden_states)
        return projected if rows is None else projected.index_select(0, rows[self.index])


class CrossAttentionProcessor:
    """Cross-attention whose maps may be mixed with another row's, and which can report its own maps.

    index:            number among the cross-attention layers, in execution order.
    level:            number of halvings of the latent side at this layer.
    map_weight:       its share in the averaged maps; 0: it is not at the map resolution and adds nothing.
    reports_features: this layer's input is the visual features.
    attend:           computes the attention.
    """

    def __init__(
        self,
        index: int,
        *,
        level: int,
        map_weight: float,
        reports_features: bool,
        attend: Attend = edited_attention_with_maps,
    ) -> None:
        self.index = index
        self.level = level
        self.map_weight = map_weight
        self.reports_features = reports_features
        self.attend = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        call: AttentionCall | None = None,
    ) -> Tensor:
        call = call or AttentionCall()
        if call.projected is not None:
            key, value = call.projected[self.index]
        else:
            assert encoder_hidden_states is not None
            key, value = project_text(attn, encoder_hidden_states)
        query = attn.to_q(hidden_states)
        query, key, value = (split_heads(tensor, attn.heads) for tensor in (query, key, value))
        capture = call.capture
        wanted = capture is not None and self.map_weight > 0
        # One implementation for every call, edited or not, maps wanted or not: fused attention for the plain
        # ones would round differently, and the source of an edit would no longer be the plain generation.
        mixed, maps = self.attend(
            query,
            key,
            value,
            scale=attn.scale,
            maps=wanted,
            map_sum=capture.maps if capture is not None and wanted else None,
            map_weight=self.map_weight,
            check_values=False,
            **self._edit(call),
        )
        if capture is not None and wanted:
            capture.maps = maps
        if capture is not None and self.reports_features:
            capture.features = hidden_states
        return _finish(attn, mixed)

    def _edit(self, call: AttentionCall) -> dict[str, Any]:
        controls = call.controls
        if not controls.edited:
            return {"edited": False}
        return {
            "source_row": controls.source_row,
            "token_map": controls.token_map,
            "own_weight": controls.own_weight,
            "spatial_weight": controls.spatial_weight,
            "spatial_map": call.spatial_maps[self.level],
        }


# diffusers asks for the signature at every call of every layer; one that is noted down is not worked out again.
for _processor in (SelfAttentionProcessor, CrossAttentionProcessor):
    setattr(_processor.__call__, "__signature__", inspect.signature(_processor.__call__))  # noqa: B010
