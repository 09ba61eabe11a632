"""The reader learns from drawings alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapedit import AdapEditError
from benchmarks.scenes import reader as stage
from benchmarks.scenes.dataset import (
    draw_scenes,
    scene_at,
    to_pixels,
)
from benchmarks.scenes.drawing import render
from benchmarks.scenes.reader import HEADS, Reader, jitter, labels, loss_of


def test_a_finished_reader_is_written_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "accuracy", lambda reader: {})
    draw_scenes(tmp_path / "scenes", 4, workers=1)
    paths = (tmp_path / "scenes", tmp_path / "state.safetensors", tmp_path / "reader.safetensors")
    stage.train_reader(*paths, steps=2, batch=2)
    trained = paths[2].read_bytes()
    paths[2].unlink()
    stage.train_reader(*paths, steps=2, batch=2)
    assert paths[2].read_bytes() == trained


def test_the_reader_learns_from_drawings() -> None:
    torch.manual_seed(0)
    scenes = [scene_at(i) for i in range(8)]
    pixels = to_pixels(np.stack([render(scene).image for scene in scenes]))
    truth = torch.tensor([[labels(scene)[name] for name in HEADS] for scene in scenes])
    reader = Reader()
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    first = loss_of(reader(pixels), truth).item()
    for _ in range(25):
        optimizer.zero_grad()
        loss = loss_of(reader(pixels), truth)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    assert jitter(pixels).shape == pixels.shape


def test_weights_that_are_missing_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(AdapEditError, match="train it: python -m benchmarks.scenes reader"):
        stage.load_reader(tmp_path / "none")
