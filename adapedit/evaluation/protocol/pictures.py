"""The pictures of an evaluation, kept beside its scores: to look at, and to be measured again by other metrics."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER, SOURCE = "pictures", "source.png"


class PictureStore:
    """PNG files below `folder`/pictures: a folder for each pair, in it the source and one file for each edit.

    Each file is there whole or not at all. folder: None keeps nothing. about: what the evaluation is of, ready for
    JSON; pictures of another model or of other steps have other folders.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        content = json.dumps(about, sort_keys=True).encode()
        self.folder, self._of = folder, hashlib.blake2b(content, digest_size=4).hexdigest()

    def place(self, name: str, pair: str, variant: str, settings: str) -> str | None:
        """Where an edit's picture belongs, below the folder; names to read, digests to tell apart."""
        if self.folder is None:
            return None
        return f"{FOLDER}/{_slug(name)}-{pair}-{self._of}/{_slug(variant)}-{settings}.png"

    def read(self, place: str | None) -> tuple[Image.Image, Image.Image] | None:
        """Source and edited picture, or None where one of them is not there or can't be read."""
        if place is None or self.folder is None:
            return None
        path = self.folder / place
        try:
            return _open(path.with_name(SOURCE)), _open(path)
        except (OSError, ValueError, SyntaxError):
            return None

    def write(
        self, place: str | None, source: Image.Image, edited: Image.Image
    ) -> tuple[Image.Image, Image.Image]:
        """Keep the pictures of an edit, and return them.

        A source of this evaluation that is there stays: another run may have rounded otherwise, and all edits are
        compared with one.
        """
        if place is None or self.folder is None:
            return source, edited
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        first = path.with_name(SOURCE)
        try:
            source = _open(first)
        except (OSError, ValueError, SyntaxError):
            _save(source, first)
        _save(edited, path)
        return source, edited


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _save(picture: Image.Image, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    picture.save(part, "PNG")
    os.replace(part, path)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-")[:60] or "pair"
