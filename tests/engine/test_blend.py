"""Masks of local blends: sizes, and several tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from adapedit_engine.blend import blend_mask
from tests.engine.tiny import TOKENS, noise


def test_blend_mask_at_another_size_is_the_nearest_pixels():
    maps, weights = noise(2, 16, TOKENS, seed=1).sigmoid(), torch.zeros(2, TOKENS)
    weights[1, 1] = 1
    sources = torch.tensor([0, 0])
    small = blend_mask(maps, weights, sources, map_size=(4, 4), latent_size=(4, 4), threshold=0.9)
    large = blend_mask(maps, weights, sources, map_size=(4, 4), latent_size=(8, 8), threshold=0.9)
    assert torch.equal(large, F.interpolate(small, (8, 8), mode="nearest"))
    assert not small[0].any() and small[1].any()


def test_a_mask_of_several_tokens_has_the_places_of_each():
    maps = noise(2, 16, TOKENS, seed=3).sigmoid()
    maps[1, :, 2] *= 1e-3  # looked at a thousandth as much as the other
    weights = torch.zeros(2, TOKENS)
    sources = torch.tensor([0, 0])

    def mask(*tokens: int) -> torch.Tensor:
        chosen = weights.clone()
        chosen[1, list(tokens)] = 1
        options = {"map_size": (4, 4), "latent_size": (4, 4), "threshold": 0.97}
        return blend_mask(maps, chosen, sources, **options)[1].bool()

    assert torch.equal(mask(1, 2), mask(1) | mask(2))
    assert not torch.equal(mask(1, 2), mask(1)) and not mask(1, 2).all()
