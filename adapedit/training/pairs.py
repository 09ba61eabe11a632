"""True edits for InstructPix2Pix: drawn scenes after random edits, as latents beside those of the scenes themselves."""

from __future__ import annotations

import argparse
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from adapedit.model import BUILTIN
from adapedit.scenes.captions import Mention, caption, random_mention
from adapedit.scenes.render import render
from adapedit.scenes.world import ATTRIBUTES, FIGURE_ATTRIBUTES, Scene
from adapedit.training.data import TRAIN_SEED, held_out, scene_at
from adapedit.training.precision import fast_products
from adapedit.training.reader import to_pixels
from adapedit.training.stored import find, keep, made_from

EDIT_STREAM = 23
"""Seed of the random edits: neither that of any scenes nor that of the suite."""

EDITS = 2
"""Edits of each scene. A scene and its edits are one group: every member is a true edit of every other."""


def edited_scenes(index: int, seed: int = TRAIN_SEED) -> tuple[Scene, ...]:
    """The group of the scene number `index`: itself, then `EDITS` random edits of it.

    An edit changes one attribute, in a fifth of the cases two. The combinations that the generator is never trained
    on are left out here as well, except where the scene itself is one.
    """
    scene = scene_at(index, seed)
    rng = np.random.default_rng((EDIT_STREAM, seed, index))
    group = [scene]
    while len(group) <= EDITS:
        edited = _edited(scene, rng)
        if rng.random() < 0.2:
            edited = _edited(edited, rng)
        kinds = {figure.kind for figure in edited.figures}
        allowed = held_out(scene) or not held_out(edited)
        if edited not in group and len(kinds) == len(edited.figures) and allowed:
            group.append(edited)
    return tuple(group)


def instruction(source: Scene, target: Scene, rng: np.random.Generator) -> str:
    """A caption of the target that names at least what differs from the source; half of the time all that there is."""
    mentions, everything = [], rng.random() < 0.5
    for old, new in zip(source.figures, target.figures, strict=True):
        changed = {name for name in FIGURE_ATTRIBUTES if getattr(old, name) != getattr(new, name)}
        mention = random_mention(rng)
        pose = mention.pose
        if (everything or "pose" in changed) and pose is None:
            pose = "after" if rng.random() < 0.5 else "before"
        mentions.append(
            Mention(
                size=everything or mention.size or "size" in changed,
                colour=everything or mention.colour or "colour" in changed,
                pose=pose,
            )
        )
    place = everything or source.place != target.place or rng.random() < 0.9
    return caption(target, tuple(mentions), place=place).text


def _edited(scene: Scene, rng: np.random.Generator) -> Scene:
    # Poses and kinds redraw a figure and take longest to learn.
    attribute = rng.choice(("pose", "size", "colour", "kind", "place"), p=(0.25, 0.15, 0.2, 0.25, 0.15))
    figure = int(rng.integers(len(scene.figures)))
    before = scene.place if attribute == "place" else getattr(scene.figures[figure], attribute)
    others = [value for value in ATTRIBUTES[attribute] if value != before]
    return scene.edited(attribute, others[rng.integers(len(others))], figure)


@torch.inference_mode()
def _chunk(span: tuple[int, int, int, Path]) -> NDArray[np.float16]:
    start, stop, seed, folder = span
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    parts = []
    for index in range(start, stop, 16):
        scenes = [s for i in range(index, min(index + 16, stop)) for s in edited_scenes(i, seed)[1:]]
        pixels = to_pixels(np.stack([render(scene).image for scene in scenes]))
        with fast_products():
            parts.append(
                vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mode().half()
            )
    latents = torch.cat(parts)
    return latents.reshape(stop - start, EDITS, *latents.shape[1:]).numpy()


def build(
    path: Path, vae: Path, count: int, seed: int = TRAIN_SEED, workers: int = 2, chunk: int = 500
) -> None:
    """Draw and encode the edits of `count` scenes: latents (mean, unscaled) [count, EDITS, C, GRID, GRID] float16.

    The file appears under its name only when whole; chunks that were done before are kept beside it. What is there of
    another autoencoder or of other scenes is made again.
    """
    encoder = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32)
    origin = made_from(encoder, seed, count)
    if find(path, origin) is not None:
        return
    parts = path.with_suffix(".parts")
    note, of_parts = parts / "origin.json", made_from(encoder, seed)
    if not note.exists() or note.read_text() != of_parts:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        note.write_text(of_parts)
    spans = [(start, min(start + chunk, count), seed, vae) for start in range(0, count, chunk)]
    files = [parts / f"{start:06d}-{stop:06d}.npy" for start, stop, *_ in spans]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    with ProcessPoolExecutor(workers) as pool:
        for i, latents in zip(missing, pool.map(_chunk, [spans[i] for i in missing]), strict=True):
            np.save(files[i].with_suffix(".part.npy"), latents)
            os.replace(files[i].with_suffix(".part.npy"), files[i])
            print(f"edited {spans[i][1]}/{count}", flush=True)
    keep(path, np.concatenate([np.load(file) for file in files]), origin)
    shutil.rmtree(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=BUILTIN / "vae")
    parser.add_argument("--out", type=Path, default=Path("out/training/pix2pix/edits.npy"))
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    build(args.out, args.vae, args.count, workers=args.workers)


if __name__ == "__main__":
    main()
