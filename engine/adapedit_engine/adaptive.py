"""FWT and DPS inside the loop: word steps and spatial map from what has been seen so far, in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapedit_engine.blend import widened
from adapedit_kernels import RelationKnobs, spatial_similarity, word_relation
from adapedit_kernels.errors import AdapEditError


class AdaptiveError(AdapEditError):
    """Adaptive settings that do not fit their plan."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adaptive:
    """What the loop needs to recompute tau and S of a plan's edited tracks at every step.

    key_tokens:    [K1, N] bool, tokens of the words that the edit is about.
    word_of_token: [K1, N] int64, number of the word that a token belongs to; -1: none (start, end, padding).
    temporal:      recompute word steps (FWT). `word_steps` of the plan holds until maps have been seen.
    spatial:       recompute the spatial map (DPS). `spatial_map` of the plan holds until then.
    relation:      what `RelationKnobs.make` takes besides `lambda_tau`: threshold, normalisation, centring and formula.
    lambda_tau:    factor of the word steps, Eq. 7.
    lambda_spatial: factor of the spatial map, Eq. 9; above 1 the map is cut off at 1.
    joined:        the spatial map of a track is the larger of its own and its source's: an edit has to act where
                   the source shows what it changes, too, or that stays.
    spatial_grow:  [K1], cells by which each track's spatial map is widened to all sides; (): none is. Wants
                   `map_size`, height and width of maps.
    update_every:  steps between two updates.
    self_layers:   [L, K1] bool, self-attention layers whose queries and keys come from the source for the
                   share of the trajectory that FWT gives to tokens without a word; None: as the plan's tables
                   say.
    """

    key_tokens: Tensor
    word_of_token: Tensor
    temporal: bool = True
    spatial: bool = True
    relation: dict[str, Any] = field(default_factory=dict)
    lambda_tau: float = 1.0
    lambda_spatial: float = 1.0
    joined: bool = False
    spatial_grow: tuple[int, ...] = ()
    map_size: tuple[int, int] | None = None
    update_every: int = 1
    self_layers: Tensor | None = None

    def check(self, *, tracks: int, tokens: int) -> None:
        """Raise `AdaptiveError` unless this fits a plan of so many tracks and tokens."""
        for name in ("key_tokens", "word_of_token"):
            got = tuple(getattr(self, name).shape)
            if got != (tracks, tokens):
                raise AdaptiveError(f"adaptive.{name} has shape {got}, wanted ({tracks}, {tokens})")
        if self.self_layers is not None and self.self_layers.shape[-1] != tracks:
            raise AdaptiveError(
                f"adaptive.self_layers has {self.self_layers.shape[-1]} tracks, wanted {tracks}"
            )
        if self.spatial_grow and len(self.spatial_grow) != tracks:
            raise AdaptiveError(f"adaptive.spatial_grow has {len(self.spatial_grow)} tracks, wanted {tracks}")
        for cells in self.spatial_grow:
            if cells < 0 or (cells and self.map_size is None):
                raise AdaptiveError(
                    f"adaptive.spatial_grow is {cells} with map_size {self.map_size}, wanted 0 or more cells of maps "
                    "whose height and width are given"
                )
        if self.update_every < 1:
            raise AdaptiveError(f"adaptive.update_every is {self.update_every}, wanted at least 1")

    def to(self, device: torch.device) -> Adaptive:
        """The same, with its tensors there."""
        layers = None if self.self_layers is None else self.self_layers.to(device)
        key_tokens, word_of_token = self.key_tokens.to(device), self.word_of_token.to(device)
        return replace(self, key_tokens=key_tokens, word_of_token=word_of_token, self_layers=layers)


class Found(NamedTuple):
    """word_steps [K1, N]; spatial_map [K1, P]; self_share [K1], tau of tokens without a word."""

    word_steps: Tensor
    spatial_map: Tensor
    self_share: Tensor


def observe(maps: Tensor, features: Tensor, adaptive: Adaptive, source_track: Tensor) -> Found:
    """Word steps and spatial map of every track from its averaged maps [K1, P, N] and features [K1, P, V].

    source_track: [K1] int64, the plan's. The faithful method calls this once, after a pass of its own; the single pass
    after every step.
    """
    count, device = len(maps), maps.device
    knobs = RelationKnobs.make(count, lambda_tau=adaptive.lambda_tau, device=device, **adaptive.relation)
    found = word_relation(maps, features, adaptive.key_tokens, adaptive.word_of_token, knobs)
    factor = torch.full((count,), adaptive.lambda_spatial, dtype=torch.float32, device=device)
    spatial = spatial_similarity(features, found.key_embedding, factor, knobs.centre)
    # With a factor above 1 the map saturates: a weight above 1 would carry the edit beyond the target's own maps.
    spatial = spatial.clamp(max=1)
    if adaptive.joined:
        spatial = torch.maximum(spatial, spatial.index_select(0, source_track))
    size = adaptive.map_size
    if size is not None and any(adaptive.spatial_grow):
        tracks = zip(spatial.split(1), adaptive.spatial_grow, strict=True)
        spatial = torch.cat([widened(one, size, cells) if cells else one for one, cells in tracks])
    return Found(found.word_steps, spatial, found.default_steps)
