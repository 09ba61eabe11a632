"""Scores on disk: one line of JSON each, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from adapedit.evaluation.scores import Score
from adapedit_kernels.errors import AdapEditError

FORMAT = 1


class StoreError(AdapEditError):
    """A file of scores that belongs to another evaluation, or is none."""


class ScoreStore:
    """A JSONL file: the first line says what was evaluated, each other one is a score.

    Lines are written whole; what a crash left of a last line is cut off when the file is opened again.
    kind: of the scores, by its `from_dict` and `to_dict`.
    """

    def __init__(self, path: Path, about: dict[str, Any], kind: Any = Score) -> None:
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
        self._write("".join(json.dumps(score.to_dict()) + "\n" for score in scores))
        self.scores += scores

    def _write(self, text: str) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(text.encode())
            os.fsync(file.fileno())

    def _read(self, lines: list[str], about: dict[str, Any]) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                fields = json.loads(line)
                if number == 1:
                    self._compare(dict(fields), about)
                else:
                    self.scores.append(self._kind.from_dict(fields))
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, StoreError):
                    raise
                raise StoreError(
                    f"line {number} of {self.path} is no score ({error}); remove the file or the line"
                ) from error

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
    return {
        "model": model.name,
        "weights": model_fingerprint(model),
        "dtype": str(model.runner.dtype).removeprefix("torch."),
        "scheduler": _scheduler(model.scheduler),
        "map_divisor": model.runner.specs.map_divisor,
        "self_divisor": model.facts.self_divisor,
        "guidance_scale": model.facts.guidance_scale if guidance_scale is None else guidance_scale,
    }


def _scheduler(scheduler: Any) -> str:
    """Its kind, with eight hexadecimal digits of its configuration."""
    # Names with an underscore are notes of diffusers on itself.
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    content = json.dumps(config, sort_keys=True, default=str)
    return f"{type(scheduler).__name__} {zlib.crc32(content.encode()):08x}"


def fingerprint(*parts: Any) -> str:
    """Eight hexadecimal digits of the weights in modules, or in objects that hold modules."""
    value = 0
    for part in parts:
        modules = [part] if isinstance(part, nn.Module) else list(vars(part).values())
        for module in modules:
            if isinstance(module, nn.Module):
                for weight in module.state_dict().values():
                    value = zlib.crc32(weight.detach().float().cpu().numpy().tobytes(), value)
    return f"{value:08x}"


def model_fingerprint(model: Any) -> str:
    """Eight hexadecimal digits of a model's weights; of a bundle, those of its graphs' checksums."""
    bundle = getattr(model.runner, "bundle", None)
    if bundle is None:
        return fingerprint(model.text_encoder, model.vae, model.runner)
    sums = [
        f"{name} {file.sha256}" for name, file in sorted(bundle.manifest.files.items()) if ".onnx" in name
    ]
    return f"{zlib.crc32(' '.join(sums).encode()):08x}"


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or as it was."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
