"""Masks of local blends: sizes, and several tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adapedit_engine import LocalBlend, PyTorchRunner, begin, tick
from adapedit_engine.blend import BlendError, blend_mask, word_places
from tests.engine.tiny import SIDE, STEPS, TOKENS, edit_plan, noise, tiny_unet


def test_a_mask_at_another_size_is_the_nearest_pixels():
    places, sources = noise(2, 16, seed=1).sigmoid(), torch.tensor([0, 0])
    places[0] = 0
    small = blend_mask(places, sources, map_size=(4, 4), latent_size=(4, 4), threshold=0.5, grow=0)
    large = blend_mask(places, sources, map_size=(4, 4), latent_size=(8, 8), threshold=0.5, grow=0)
    assert torch.equal(large, F.interpolate(small, (8, 8), mode="nearest"))
    assert not small[0].any() and small[1].any()


@pytest.mark.parametrize("grow", [0, 1, 2])
def test_a_mask_grows_by_cells_and_takes_in_the_places_of_the_source(grow):
    places, sources = torch.zeros(3, 49), torch.tensor([0, 0, 2])
    places[0, 3 * 7 + 3], places[1, 0], places[2, 48] = 0.6, 0.6, 0.6
    mask = blend_mask(places, sources, map_size=(7, 7), latent_size=(7, 7), threshold=0.5, grow=grow)[:, 0]
    middle, corner = torch.zeros(7, 7), torch.zeros(7, 7)
    middle[3 - grow : 4 + grow, 3 - grow : 4 + grow] = 1
    corner[: 1 + grow, : 1 + grow] = 1
    assert torch.equal(mask[0], middle)
    assert torch.equal(mask[1], middle.maximum(corner))
    assert torch.equal(mask[2], corner.flip(0, 1))


def test_of_several_tokens_each_has_its_places():
    maps = noise(2, 16, TOKENS, seed=3).sigmoid()
    maps[1, :, 2] *= 1e-3  # looked at a thousandth as much as the other
    weights = torch.zeros(2, TOKENS)
    weights[1, [1, 2]] = 1
    found = word_places(maps, weights)
    expected = [max(float(maps[1, i, j] / maps[1, :, j].max()) for j in (1, 2)) for i in range(16)]
    assert torch.allclose(found[1], torch.tensor(expected))
    assert not found[0].any()


def test_places_of_a_pass_before_are_taken_instead_of_those_so_far():
    places = noise(2, SIDE**2, seed=5).sigmoid()
    sizes = {"map_size": (SIDE, SIDE), "latent_size": (SIDE, SIDE), "threshold": 0.93}
    mask = blend_mask(places, torch.tensor([0, 0]), **sizes)[1, 0].bool()
    assert 0 < mask.float().mean() < 1
    blend = LocalBlend(token_weights=torch.zeros(2, TOKENS), threshold=0.93, start=0.0, places=places)
    with PyTorchRunner(tiny_unet(), map_divisor=1) as runner:
        states = [begin(edit_plan(1, 2, local_blend=blend), runner)]
        for _ in range(STEPS):
            states = tick(states, runner)
            source, target = states[0].latents
            assert torch.equal(source[:, ~mask], target[:, ~mask])
            assert not torch.equal(source[:, mask], target[:, mask])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"places": torch.zeros(3, 4)}, r"places has shape \(3, 4\), wanted \(2, pixels\)"),
        ({"grow": -1}, "grow is -1, wanted 0 or more cells"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(BlendError, match=message):
        LocalBlend(token_weights=torch.zeros(2, TOKENS), **changes).check(tracks=2, tokens=TOKENS)
