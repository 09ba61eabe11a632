"""Rendered scenes on disk: pixels, masks on the latent grid, and the scenes themselves, by index."""

from __future__ import annotations

import argparse
import os
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapedit.scenes.render import IMAGE_SIZE, render
from adapedit.scenes.world import Scene, random_scene

LATENT_FACTOR = 8
"""Pixels of a picture to one cell of its latents, per side."""

GRID = IMAGE_SIZE // LATENT_FACTOR
TRAIN_SEED, HELD_OUT_SEED = 0, 1


def scene_at(index: int, seed: int = TRAIN_SEED) -> Scene:
    """The scene number `index` of the stream `seed`: a function of the two alone, so no list is kept."""
    return random_scene(np.random.default_rng((seed, index)))


def held_out(scene: Scene) -> bool:
    """Whether the generator is never trained on this combination of attributes: a tenth of all, by checksum."""
    names = [scene.place, *(value for figure in scene.figures for value in vars(figure).values())]
    return zlib.crc32(" ".join(names).encode()) % 10 == 0


def grid_masks(masks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Masks [figures, S, S] to coverage of the latent cells [2, GRID, GRID] uint8 (255 = whole cell)."""
    cells = masks.reshape(len(masks), GRID, LATENT_FACTOR, GRID, LATENT_FACTOR).mean(axis=(2, 4))
    result = np.zeros((2, GRID, GRID), np.uint8)
    result[: len(masks)] = np.round(cells * 255)
    return result


@dataclass(frozen=True)
class RenderedScenes:
    """Memory-mapped pictures [n, S, S, 3] uint8 and masks [n, 2, GRID, GRID] uint8 of scenes 0..n-1 of `seed`."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    seed: int

    @classmethod
    def open(cls, folder: Path, seed: int = TRAIN_SEED) -> RenderedScenes:
        images = np.load(folder / "images.npy", mmap_mode="r")
        return cls(images, np.load(folder / "masks.npy"), seed)


def _chunk(span: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    start, stop, seed = span
    pictures = [render(scene_at(index, seed)) for index in range(start, stop)]
    return np.stack([p.image for p in pictures]), np.stack([grid_masks(p.masks) for p in pictures])


def build(folder: Path, count: int, seed: int = TRAIN_SEED, workers: int = 2, chunk: int = 250) -> None:
    """Render `count` scenes into `folder`; files appear under their names only when whole."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = np.lib.format.open_memmap(folder / "images.part.npy", mode="w+", dtype=np.uint8, shape=shape)
    masks = np.zeros((count, 2, GRID, GRID), np.uint8)
    spans = [(start, min(start + chunk, count), seed) for start in range(0, count, chunk)]
    with ProcessPoolExecutor(workers) as pool:
        for (start, stop, _), (pixels, cells) in zip(spans, pool.map(_chunk, spans), strict=True):
            images[start:stop], masks[start:stop] = pixels, cells
            print(f"rendered {stop}/{count}", flush=True)
    images.flush()
    np.save(folder / "masks.part.npy", masks)
    for name in ("masks", "images"):  # where there are images the stage counts as done
        os.replace(folder / f"{name}.part.npy", folder / f"{name}.npy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training/scenes"))
    parser.add_argument("--count", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=TRAIN_SEED)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    build(args.out, args.count, args.seed, args.workers)


if __name__ == "__main__":
    main()
