"""Tokens, where they are told to look, and what that weighs."""

from __future__ import annotations

import json

import pytest
import torch

from adapedit.configs import FACTS_FILE
from adapedit.loading import load_model
from benchmarks.scenes import generator
from benchmarks.scenes.dataset import (
    GRID,
    scene_at,
)
from benchmarks.scenes.generator import (
    FIGURE_WEIGHT,
    MAX_TOKENS,
    cell_weights,
    make_tokenizer,
    map_loss,
    word_targets,
)
from benchmarks.scenes.world import VOCABULARY, caption
from tests.helpers.tiny_model import save_tiny_model


def test_every_known_word_is_one_token() -> None:
    tokenizer = make_tokenizer(VOCABULARY)
    assert all(tokenizer.tokenize(word) == [word + "</w>"] for word in VOCABULARY)
    ids = tokenizer("A small RED dog", padding="max_length").input_ids
    assert len(ids) == MAX_TOKENS and ids[0] == tokenizer.bos_token_id and ids[5] == tokenizer.eos_token_id


def test_figures_weigh_alike_whatever_their_size() -> None:
    masks = torch.zeros(2, 2, GRID, GRID)
    masks[0, 0, :2, :2], masks[0, 1, 4:12, 4:12] = 1, 1  # the second scene has no figure
    weights = cell_weights(masks)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    background = weights[0, 0, -1, -1]
    extra = [float(((weights[0, 0] - background) * masks[0, figure]).sum()) for figure in (0, 1)]
    assert extra == pytest.approx([FIGURE_WEIGHT * float(background)] * 2, rel=1e-4)
    assert torch.equal(weights[1], torch.ones(1, GRID, GRID))


def test_tokens_are_told_where_to_look() -> None:
    scene = next(s for s in map(scene_at, range(100)) if len(s.figures) == 2)
    words = caption(scene)
    masks = torch.rand(2, GRID, GRID)
    targets, valid = word_targets(words, masks, MAX_TOKENS)
    for position, word in enumerate(words.words, start=1):
        assert bool(valid[position]) == (word.role != "function")
        if word.role == "kind":
            assert word.figure is not None
            assert torch.equal(targets[:, position], masks[word.figure].flatten())
        if word.role == "place":
            assert torch.equal(targets[:, position], 1 - masks.amax(0).flatten())
    assert not valid[0] and not valid[len(words.words) + 1 :].any()


def test_the_map_loss_is_least_where_maps_lie_on_their_masks() -> None:
    targets = torch.zeros(1, 16, 3)
    targets[0, :4, 1] = 1
    valid = torch.tensor([[False, True, False]])
    weight = torch.ones(1)

    def loss(maps: torch.Tensor) -> float:
        return float(map_loss(maps, targets, valid, weight))

    on, flat, one_pixel, off = (torch.full((1, 16, 3), 1e-4) for _ in range(4))
    on[0, :4, 1], flat[0, :, 1], one_pixel[0, 0, 1], off[0, 4:8, 1] = 0.5, 0.5, 0.5, 0.5
    assert loss(on) < loss(one_pixel) < loss(off)
    assert loss(on) < 0.01 < loss(flat) < loss(off)


def test_a_model_is_replaced_and_its_knobs_stay(tmp_path):
    trained, out = save_tiny_model(tmp_path / "trained"), tmp_path / "model"
    assert generator.publish(trained, out, guidance_scale=3.0) > 0
    assert load_model(out).facts.defaults == {}
    facts = json.loads((out / FACTS_FILE).read_text())
    facts["defaults"] = {"adapedit": {"lambda_spatial": 4.0}}
    (out / FACTS_FILE).write_text(json.dumps(facts))
    generator.publish(trained, out)
    found = load_model(out).facts
    assert found.defaults == facts["defaults"]
    assert found.guidance_scale == 2.0


def test_a_model_that_is_too_large_replaces_nothing(tmp_path, monkeypatch):
    trained, out = save_tiny_model(tmp_path / "trained"), tmp_path / "model"
    generator.publish(trained, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(generator, "LIMIT", 1000)
    with pytest.raises(ValueError, match="are wanted"):
        generator.publish(trained, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
