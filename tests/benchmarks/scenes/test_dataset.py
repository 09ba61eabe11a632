"""Drawings and latents on disk are whole, and of what was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderKL

from benchmarks.scenes.dataset import (
    GRID,
    Drawings,
    draw_scenes,
    encode_scenes,
    held_out,
    scene_at,
)
from benchmarks.scenes.vae import make_vae


def test_scenes_are_functions_of_seed_and_index() -> None:
    assert scene_at(7) == scene_at(7) != scene_at(8)
    assert scene_at(7) != scene_at(7, 1)
    share = np.mean([held_out(scene_at(i)) for i in range(600)])
    assert 0.05 < share < 0.16


def test_drawings_are_written_whole(tmp_path: Path) -> None:
    draw_scenes(tmp_path, 6, workers=1, chunk=4)
    scenes = Drawings.open(tmp_path)
    assert scenes.images.shape == (6, 128, 128, 3) and scenes.masks.shape == (6, 2, GRID, GRID)
    assert (scenes.images.reshape(6, -1).std(1) > 10).all()
    assert not list(tmp_path.glob("*.part*"))


def test_latents_that_were_cut_short_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_scenes(tmp_path, 3, workers=1)
    scenes, vae, save = Drawings.open(tmp_path), make_vae().eval(), np.save

    def interrupted(file: Path, array: np.ndarray) -> None:
        save(file, array[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", interrupted)
        encode_scenes(vae, scenes, tmp_path, 2)
    two, three = encode_scenes(vae, scenes, tmp_path, 2), encode_scenes(vae, scenes, tmp_path, 3)
    assert two.shape == (2, 8, GRID, GRID) and len(three) == 3
    # In bfloat16, where the processor has it, batches of two and of three round differently.
    assert np.allclose(three[:2], two, atol=0.02)
    monkeypatch.setattr(type(vae), "encode", lambda *args: pytest.fail("encoded again"))
    assert np.array_equal(encode_scenes(vae, scenes, tmp_path, 9), three)


def test_latents_of_another_autoencoder_or_of_other_scenes_are_made_anew(tmp_path: Path) -> None:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=2,
        norm_num_groups=2,
    ).requires_grad_(False)
    draw_scenes(tmp_path, 2, workers=1)
    scenes = Drawings.open(tmp_path)
    first = encode_scenes(vae, scenes, tmp_path, 2)
    encode_scenes(vae, replace(scenes, seed=5), tmp_path, 2)
    vae.encoder.conv_in.bias.add_(1)
    assert not np.array_equal(first, encode_scenes(vae, scenes, tmp_path, 2))
    assert len(list(tmp_path.glob("latents-*.npy"))) == 3
