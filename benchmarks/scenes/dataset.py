"""Drawn scenes on disk (pixels and masks on the latent grid), and the latents that an autoencoder makes of them."""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from adapedit.inversion.cache import weights_digest
from benchmarks.scenes.drawing import IMAGE_SIZE, render
from benchmarks.scenes.trainee import fast_products
from benchmarks.scenes.world import Scene, random_scene

OUT = Path("out/training")
"""Where the stages keep what they made, below the working folder."""

LATENT_FACTOR = 8
"""Pixels of a picture to one cell of its latents, per side."""

GRID = IMAGE_SIZE // LATENT_FACTOR
TRAIN_SEED, HELD_OUT_SEED = 0, 1


def scene_at(index: int, seed: int = TRAIN_SEED) -> Scene:
    """The scene number `index` of the stream `seed`: a function of the two alone, so no list is kept."""
    return random_scene(np.random.default_rng((seed, index)))


def held_out(scene: Scene) -> bool:
    """Whether the generator is never trained on this combination of attributes: a tenth of all, by checksum."""
    names = [
        scene.place,
        *(value for figure in scene.figures for value in vars(figure).values()),
    ]
    return zlib.crc32(" ".join(names).encode()) % 10 == 0


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """[B, S, S, 3] uint8 to [B, 3, S, S] float32 in -1..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def grid_masks(masks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Masks [figures, S, S] to coverage of the latent cells [2, GRID, GRID] uint8 (255 = whole cell)."""
    cells = masks.reshape(len(masks), GRID, LATENT_FACTOR, GRID, LATENT_FACTOR).mean(axis=(2, 4))
    result = np.zeros((2, GRID, GRID), np.uint8)
    result[: len(masks)] = np.round(cells * 255)
    return result


@dataclass(frozen=True)
class Drawings:
    """Memory-mapped pictures [n, S, S, 3] uint8 and masks [n, 2, GRID, GRID] uint8 of scenes 0..n-1 of `seed`."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    seed: int

    @classmethod
    def open(cls, folder: Path, seed: int = TRAIN_SEED) -> Drawings:
        images = np.load(folder / "images.npy", mmap_mode="r")
        return cls(images, np.load(folder / "masks.npy"), seed)


def _chunk(span: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    start, stop, seed = span
    pictures = [render(scene_at(index, seed)) for index in range(start, stop)]
    return np.stack([p.image for p in pictures]), np.stack([grid_masks(p.masks) for p in pictures])


def draw_scenes(
    folder: Path = OUT / "scenes",
    count: int = 36000,
    seed: int = TRAIN_SEED,
    workers: int = 2,
    chunk: int = 250,
) -> None:
    """Draw `count` scenes into `folder`, unless they are there; files appear under their names only when whole."""
    if (folder / "images.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = np.lib.format.open_memmap(folder / "images.part.npy", mode="w+", dtype=np.uint8, shape=shape)
    masks = np.zeros((count, 2, GRID, GRID), np.uint8)
    spans = [(start, min(start + chunk, count), seed) for start in range(0, count, chunk)]
    with ProcessPoolExecutor(workers) as pool:
        for (start, stop, _), (pixels, cells) in zip(spans, pool.map(_chunk, spans), strict=True):
            images[start:stop], masks[start:stop] = pixels, cells
            print(f"drawn {stop}/{count}", flush=True)
    images.flush()
    np.save(folder / "masks.part.npy", masks)
    for name in ("masks", "images"):  # where there are images the stage counts as done
        os.replace(folder / f"{name}.part.npy", folder / f"{name}.npy")


@torch.inference_mode()
def encode_scenes(
    vae: AutoencoderKL, scenes: Drawings, folder: Path, count: int, batch: int = 32
) -> NDArray[np.float16]:
    """Latents (mean, unscaled) of the first `count` scenes, [n, C, GRID, GRID] float16, kept in `folder`.

    The file is named by the autoencoder's weights, the scenes' seed and their number: others are no use.
    """
    count = min(count, len(scenes.images))
    path = folder / f"latents-{weights_digest(vae)[:8]}-{scenes.seed}-{count}.npy"
    if path.exists():
        found: NDArray[np.float16] = np.load(path)
        return found
    parts = []
    for start in range(0, count, batch):
        pixels = to_pixels(scenes.images[start : min(start + batch, count)])
        pixels = pixels.to(vae.device, memory_format=torch.channels_last)
        with fast_products(vae.device.type):
            encoded = vae.encode(pixels)
        parts.append(encoded.latent_dist.mean.half().cpu().numpy())
        if start % (batch * 50) == 0:
            print(f"encoded {start}/{count}", flush=True)
    latents = np.concatenate(parts)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".part.npy"), latents)
    os.replace(path.with_suffix(".part.npy"), path)
    return latents
