"""Scores on disk: one line of JSON each, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from adapedit import AdapEditError
from adapedit.inversion.cache import weights_digest

FORMAT = 2


class StoreError(AdapEditError):
    """A file of scores that belongs to another evaluation, or is none."""


class ScoreStore:
    """A JSONL file: the first line says what was evaluated, each other one is a score.

    Lines are written whole; what a crash left of a last line is cut off when the file is opened again.
    kind: the dataclass of the scores.
    """

    def __init__(self, path: Path, about: dict[str, Any], kind: Any) -> None:
        """Open or make the file. Raises `StoreError` where it is about something else (`about` differs)."""
        self.path, self._kind = path, kind
        about = {"format": FORMAT, **about}
        self.scores: list[Any] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.truncate(path, len(whole))
        if whole:
            self._read(whole.decode(errors="replace").splitlines(), about)
        else:
            self._write(json.dumps(about) + "\n")

    def append(self, scores: Iterable[Any]) -> None:
        """Write scores, and see to it that they are on the disk."""
        scores = list(scores)
        self._write("".join(json.dumps(asdict(score)) + "\n" for score in scores))
        self.scores += scores

    def _write(self, text: str) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(text.encode())
            os.fsync(file.fileno())

    def _read(self, lines: list[str], about: dict[str, Any]) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                fields = dict(json.loads(line))
                if number > 1:
                    self.scores.append(self._kind(**fields))
            except (ValueError, TypeError) as error:
                raise StoreError(
                    f"line {number} of {self.path} is no score ({error}); remove the file or the line"
                ) from error
            if number == 1:
                self._compare(fields, about)

    def _compare(self, found: dict[str, Any], about: dict[str, Any]) -> None:
        for name, value in about.items():
            if name not in found or found[name] != value:
                was = repr(found[name]) if name in found else "not noted"
                raise StoreError(
                    f"{self.path} is of another evaluation ({name} was {was} and is {value!r} now); "
                    "choose another output folder, or remove it"
                )


def about_model(model: Any, guidance_scale: float | None) -> dict[str, Any]:
    """What edits of an evaluation owe to the model, whatever their method; ready for JSON.

    Scores may stand side by side only where all of it is the same. guidance_scale: as asked for; None: the model's own.
    """
    # Names with an underscore are notes of diffusers on itself.
    config = {name: value for name, value in model.scheduler.config.items() if not name.startswith("_")}
    return {
        "model": model.name,
        "weights": model_digest(model),
        "dtype": str(model.runner.dtype).removeprefix("torch."),
        "scheduler": digest({"kind": type(model.scheduler).__name__, **config}),
        "facts": digest(asdict(model.facts)),
        "guidance_scale": model.facts.guidance_scale if guidance_scale is None else guidance_scale,
    }


def digest(content: Any) -> str:
    """Eight hexadecimal digits that change with anything in what is ready for JSON."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True, default=str).encode()):08x}"


def model_digest(model: Any) -> str:
    """Eight hexadecimal digits of a model's weights; of a bundle, of its manifest, which has the sums of its files."""
    manifest = Path(model.name) / "manifest.json"
    if manifest.is_file():
        return f"{zlib.crc32(manifest.read_bytes()):08x}"
    parts = [*vars(model).values(), *vars(model.runner).values()]
    return digest([weights_digest(part) for part in parts if isinstance(part, nn.Module)])


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
