"""FWT and DPS as the loop asks for them: spatial maps that take in where the source shows what is edited."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapedit_engine.adaptive import Adaptive, AdaptiveError, observe
from tests.engine.tiny import TOKENS, noise

TRACKS, PIXELS = 3, 16
SOURCES = torch.tensor([0, 0, 1])


def seen() -> tuple[torch.Tensor, torch.Tensor]:
    return noise(TRACKS, PIXELS, TOKENS, seed=1).softmax(-1), noise(TRACKS, PIXELS, 5, seed=2)


def adaptive() -> Adaptive:
    keys = torch.zeros(TRACKS, TOKENS, dtype=torch.bool)
    for track in range(TRACKS):
        keys[track, 1 + track] = True
    return Adaptive(
        key_tokens=keys, word_of_token=torch.arange(TOKENS).expand(TRACKS, -1), lambda_spatial=1.5
    )


def test_a_joined_map_is_the_larger_of_a_tracks_own_and_its_sources():
    maps, features = seen()
    own = observe(maps, features, adaptive(), SOURCES)
    joined = observe(maps, features, replace(adaptive(), joined=True), SOURCES)
    for track, source in enumerate(SOURCES.tolist()):
        expected = [max(a, b) for a, b in zip(own.spatial_map[track], own.spatial_map[source], strict=True)]
        assert torch.equal(joined.spatial_map[track], torch.stack(expected))
    assert not torch.equal(joined.spatial_map[1], own.spatial_map[1])
    assert torch.equal(joined.word_steps, own.word_steps)
    assert torch.equal(joined.self_share, own.self_share)


def test_a_source_without_words_of_the_edit_adds_nothing():
    maps, features = seen()
    keys = adaptive().key_tokens.clone()
    keys[0] = False
    alone = replace(adaptive(), key_tokens=keys)
    own = observe(maps, features, alone, SOURCES)
    joined = observe(maps, features, replace(alone, joined=True), SOURCES)
    assert torch.equal(joined.spatial_map[1], own.spatial_map[1])
    assert not own.spatial_map[0].any()


def test_a_widened_map_takes_the_largest_value_around_each_cell():
    maps, features = seen()
    own = observe(maps, features, adaptive(), SOURCES)
    wide = observe(maps, features, replace(adaptive(), spatial_grow=(1,) * TRACKS, map_size=(2, 8)), SOURCES)
    for track in range(TRACKS):
        grid = own.spatial_map[track].view(2, 8)
        for x in range(8):
            around = grid[:, max(0, x - 1) : x + 2].max()  # two rows, each a neighbour of the other
            assert torch.equal(wide.spatial_map[track].view(2, 8)[:, x], around.expand(2))
    assert not torch.equal(wide.spatial_map, own.spatial_map)
    assert torch.equal(wide.word_steps, own.word_steps)


def test_each_map_is_widened_by_its_own_cells():
    maps, features = seen()
    own = observe(maps, features, adaptive(), SOURCES)
    wide = observe(maps, features, replace(adaptive(), spatial_grow=(1,) * TRACKS, map_size=(2, 8)), SOURCES)
    cells = tuple(track % 2 for track in range(TRACKS))
    found = observe(maps, features, replace(adaptive(), spatial_grow=cells, map_size=(2, 8)), SOURCES)
    for track in range(TRACKS):
        expected = wide if cells[track] else own
        assert torch.equal(found.spatial_map[track], expected.spatial_map[track])
    with pytest.raises(AdaptiveError, match=f"spatial_grow has {TRACKS + 1} tracks, wanted {TRACKS}"):
        replace(adaptive(), spatial_grow=(0,) * (TRACKS + 1)).check(tracks=TRACKS, tokens=TOKENS)


@pytest.mark.parametrize(("cells", "size"), [(-1, (4, 4)), (1, None)])
def test_a_map_is_not_widened_without_its_size(cells: int, size: tuple[int, int] | None):
    given = replace(adaptive(), spatial_grow=(0,) * (TRACKS - 1) + (cells,), map_size=size)
    with pytest.raises(AdaptiveError, match=f"spatial_grow is {cells}"):
        given.check(tracks=TRACKS, tokens=TOKENS)
