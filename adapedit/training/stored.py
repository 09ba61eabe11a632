"""Latents on disk, with what they were made from beside them: those of another autoencoder are no use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from adapedit.inversion.cache import weights_digest


def made_from(vae: AutoencoderKL, seed: int, count: int | None = None) -> str:
    """A line that tells latents apart: the digest of the autoencoder's weights, the scenes' seed and their number."""
    return json.dumps({"vae": weights_digest(vae), "seed": seed, "count": count}) + "\n"


def find(path: Path, origin: str) -> NDArray[np.float16] | None:
    """The latents of a file, or None where it is not there or nothing says that they were made from `origin`."""
    note = _note(path)
    if not path.exists() or not note.exists() or note.read_text() != origin:
        return None
    latents: NDArray[np.float16] = np.load(path)
    return latents


def keep(path: Path, latents: NDArray[np.float16], origin: str) -> None:
    """Write latents and what they were made from; an interruption leaves none that are taken for others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    np.save(part, latents)
    _note(path).unlink(missing_ok=True)
    os.replace(part, path)
    _note(path).write_text(origin)


def _note(path: Path) -> Path:
    return path.with_suffix(".json")
