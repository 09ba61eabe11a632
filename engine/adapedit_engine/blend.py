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
    grow:          cells of the maps by which the places are widened to all sides; Prompt-to-Prompt: 1.
    places:        [K1, P] in 0..1, where each track's words are, known beforehand; None: from the words' maps so far,
                   which the blend has a part in: what it keeps out early stays out.
    """

    token_weights: Tensor
    threshold: float = 0.3
    start: float = 0.2
    grow: int = 1
    places: Tensor | None = None

    def check(self, *, tracks: int, tokens: int) -> None:
        """Raise `BlendError` unless this fits a plan of so many tracks and tokens."""
        if tuple(self.token_weights.shape) != (tracks, tokens):
            got = tuple(self.token_weights.shape)
            raise BlendError(f"local_blend.token_weights has shape {got}, wanted ({tracks}, {tokens})")
        if self.places is not None and (self.places.ndim != 2 or len(self.places) != tracks):
            got = tuple(self.places.shape)
            raise BlendError(f"local_blend.places has shape {got}, wanted ({tracks}, pixels)")
        if self.grow < 0:
            raise BlendError(f"local_blend.grow is {self.grow}, wanted 0 or more cells")
        for name, value in (("threshold", self.threshold), ("start", self.start)):
            if not 0 <= value <= 1:
                raise BlendError(f"local_blend.{name} is {value}, wanted a share between 0 and 1")

    def active(self, step_index: int, steps: int) -> bool:
        """Whether the blend acts after step `step_index`."""
        return step_index >= int(self.start * steps)


def word_places(maps: Tensor, token_weights: Tensor) -> Tensor:
    """[K1, P] in 0..1, where chosen tokens are looked at, as a share of the peak; 0 for a track that has none.

    maps [K1, P, N]: averages, any positive factor; token_weights [K1, N]. Of several tokens each by its own peak: of a
    sum, which Prompt-to-Prompt's code takes, the one that is looked at most would blind the mask to the others.
    """
    chosen = maps * (token_weights != 0).to(maps.dtype).unsqueeze(1)  # [K1, P, N]
    return (chosen / chosen.amax(1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)).amax(2)


def widened(places: Tensor, map_size: tuple[int, int], cells: int) -> Tensor:
    """Every pixel takes the largest value of those within so many cells of it to all sides, [K1, P] to [K1, P].

    map_size: height and width, whose product is P.
    """
    grid = places.unflatten(1, (1, *map_size))
    return F.max_pool2d(grid, 2 * cells + 1, stride=1, padding=cells).flatten(1)


def blend_mask(
    places: Tensor,
    source_track: Tensor,
    *,
    map_size: tuple[int, int],
    latent_size: tuple[int, int],
    threshold: float | Tensor,
    grow: int = 1,
) -> Tensor:
    """Where a track keeps its own latents: its own places and those of its source, together.

    places [K1, P] in 0..1; source_track [K1] int64; threshold: a number, or [K1, 1, 1, 1]. Returns [K1, 1, h, w] of 0
    and 1 in the places' dtype: maximum over 2 grow + 1 cells a side, nearest neighbours, threshold.
    """
    heat = widened(places, map_size, grow).unflatten(1, (1, *map_size))
    heat = F.interpolate(heat, latent_size, mode="nearest")
    own = heat > threshold
    return (own | own.index_select(0, source_track)).to(places.dtype)
