"""Local blend of Prompt-to-Prompt: the target's latents only where the chosen words are looked at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adapedit_kernels.errors import AdapEditError


class BlendError(AdapEditError):
    """A local blend that does not fit its plan."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalBlend:
    """Keep the source's latents outside the places where chosen tokens were looked at.

    token_weights: [K1, N], non-zero for the chosen tokens of each track (the source's row: its own words).
    threshold:     share of a map's peak above which a pixel belongs to the words.
    start:         share of the trajectory after which the blend acts.
    maps:          [K1, P, N], averages of a pass before; None: those of the edit itself so far, which the blend has
                   a part in: what it keeps out early stays out.
    """

    token_weights: Tensor
    threshold: float = 0.3
    start: float = 0.2
    maps: Tensor | None = None

    def check(self, *, tracks: int, tokens: int) -> None:
        """Raise `BlendError` unless this fits a plan of so many tracks and tokens."""
        if tuple(self.token_weights.shape) != (tracks, tokens):
            got = tuple(self.token_weights.shape)
            raise BlendError(f"local_blend.token_weights has shape {got}, wanted ({tracks}, {tokens})")
        if self.maps is not None and (self.maps.shape[0], *self.maps.shape[2:]) != (tracks, tokens):
            got = tuple(self.maps.shape)
            raise BlendError(f"local_blend.maps has shape {got}, wanted ({tracks}, pixels, {tokens})")
        for name, value in (("threshold", self.threshold), ("start", self.start)):
            if not 0 <= value <= 1:
                raise BlendError(f"local_blend.{name} is {value}, wanted a share between 0 and 1")

    def active(self, step_index: int, steps: int) -> bool:
        """Whether the blend acts after step `step_index`."""
        return step_index >= int(self.start * steps)


def blend_mask(
    maps: Tensor,
    token_weights: Tensor,
    source_track: Tensor,
    *,
    map_size: tuple[int, int],
    latent_size: tuple[int, int],
    threshold: float,
) -> Tensor:
    """Where a track keeps its own latents: its words' places and those of its source's words, together.

    maps [K1, P, N]: averaged so far, any positive factor; token_weights [K1, N]; source_track [K1] int64.
    Returns [K1, 1, h, w] of 0 and 1 in the maps' dtype. Prompt-to-Prompt's: maximum over 3 x 3, nearest
    neighbours, share of the peak; of several tokens the places of each, where its code takes those of their sum. A
    track without chosen tokens has no places of its own.
    """
    chosen = maps * (token_weights != 0).to(maps.dtype).unsqueeze(1)  # [K1, P, N]
    # Each token by its own peak: of a sum the one that is looked at most would blind the mask to the others.
    share = chosen / chosen.amax(1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    heat = share.amax(2).unflatten(1, map_size).unsqueeze(1)
    heat = F.interpolate(F.max_pool2d(heat, 3, stride=1, padding=1), latent_size, mode="nearest")
    own = heat > threshold
    return (own | own.index_select(0, source_track)).to(maps.dtype)
