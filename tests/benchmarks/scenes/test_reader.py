"""The reader learns from drawings alone; pictures without a fault are near a true drawing, spoilt ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapedit import AdapEditError
from benchmarks.scenes import reader as stage
from benchmarks.scenes.dataset import (
    HELD_OUT_SEED,
    draw_scenes,
    scene_at,
    to_pixels,
)
from benchmarks.scenes.drawing import render
from benchmarks.scenes.reader import (
    HEADS,
    WELL_DRAWN,
    Reader,
    distance,
    fit_scene,
    jitter,
    labels,
    load_reader,
    loss_of,
)
from tests.benchmarks.scenes.spoilt import FAULTS, spoil

COUNT = 12


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
    layouts = torch.tensor([scene.layout.numbers() for scene in scenes])
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)
    first = loss_of(reader(pixels), truth, layouts).item()
    for _ in range(25):
        optimizer.zero_grad()
        loss = loss_of(reader(pixels), truth, layouts)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    assert jitter(pixels).shape == pixels.shape


def test_weights_that_are_missing_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(AdapEditError, match="train it: python -m benchmarks.scenes reader"):
        stage.load_reader(tmp_path / "none")


def distances(fault: str | None) -> np.ndarray:
    reader, rng = load_reader(), np.random.default_rng(0)
    found = []
    for index in range(COUNT):
        picture = render(scene_at(50_000 + index, HELD_OUT_SEED))
        image = picture.image if fault is None else spoil(picture, fault, rng)
        (seen,) = reader.read(to_pixels(image[None]))
        found.append(distance(image, render(fit_scene(image, seen)).image))
    return np.array(found)


def test_true_drawings_are_well_drawn() -> None:
    assert (distances(None) <= WELL_DRAWN).mean() > 0.9


@pytest.mark.parametrize("fault", FAULTS)
def test_spoilt_drawings_are_not(fault: str) -> None:
    assert (distances(fault) > WELL_DRAWN).mean() > 0.85


def test_crooked_lines_are_forgiven_and_faults_are_not() -> None:
    image = render(scene_at(1)).image
    assert distance(image, image) == 0
    assert distance(np.roll(image, 1, axis=1), image) < 0.5 * WELL_DRAWN
    spoilt = image.copy()
    spoilt[40:52, 40:52] = 255 - spoilt[40:52, 40:52]
    assert distance(spoilt, image) > WELL_DRAWN
