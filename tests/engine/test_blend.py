"""Masks of local blends: sizes, and several tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from adapedit_engine import LocalBlend, PyTorchRunner, begin, denoise, tick
from adapedit_engine.blend import BlendError, blend_mask
from tests.engine.tiny import SIDE, STEPS, TOKENS, edit_plan, noise, tiny_unet


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


def test_maps_of_a_pass_before_are_taken_instead_of_those_so_far():
    maps, weights = noise(2, SIDE**2, TOKENS, seed=5).sigmoid(), torch.zeros(2, TOKENS)
    weights[0, 1] = weights[1, 2] = 1
    sizes = {"map_size": (SIDE, SIDE), "latent_size": (SIDE, SIDE), "threshold": 0.98}
    mask = blend_mask(maps, weights, torch.tensor([0, 0]), **sizes)[1, 0].bool()
    assert 0 < mask.float().mean() < 1
    blend = LocalBlend(token_weights=weights, threshold=0.98, start=0.0, maps=maps)
    with PyTorchRunner(tiny_unet(), map_divisor=1) as runner:
        states = [begin(edit_plan(1, 2, local_blend=blend), runner)]
        for _ in range(STEPS):
            states = tick(states, runner)
            source, target = states[0].latents
            assert torch.equal(source[:, ~mask], target[:, ~mask])
            assert not torch.equal(source[:, mask], target[:, mask])
        twice = denoise([edit_plan(1, 2, local_blend=replace(blend, maps=3 * maps))], runner)[0]
    assert torch.allclose(twice.latents, states[0].latents, atol=1e-6)


def test_maps_that_do_not_fit_are_refused():
    blend = LocalBlend(token_weights=torch.zeros(2, TOKENS), maps=torch.zeros(2, 4, TOKENS + 1))
    with pytest.raises(
        BlendError, match=rf"maps has shape \(2, 4, {TOKENS + 1}\), wanted \(2, pixels, {TOKENS}\)"
    ):
        blend.check(tracks=2, tokens=TOKENS)
