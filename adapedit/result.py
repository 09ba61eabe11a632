"""EditResult: both pictures, what was found about the words, and a folder that is enough to repeat the edit."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapedit import __version__
from adapedit.alignment import Alignment, Word
from adapedit.maps import Cell, overlay, sheet
from adapedit.request import EditRequest
from adapedit_kernels.errors import AdapEditError

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class WordReport:
    """A word of the target prompt: how it was aligned and how long it was held.

    word_steps: tau, the share of the trajectory in which its map was the source's; None where nothing is held.
    relation:   Lambda, the cosine with the edited words; None where it was not computed.
    """

    text: str
    kind: str
    is_key: bool
    replaces: str | None
    word_steps: float | None
    relation: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class EditResult:
    """What an edit gave.

    request:      with every knob that was left open filled in: the same request gives the same pictures.
    source_maps, target_maps: [mh, mw, N] float32, cross-attention averaged over steps, layers and heads.
    spatial_map:  [mh, mw] float32, S; None for methods without one.
    timings:      seconds, of the whole batch that the edit shared.
    warnings:     what the method found suspicious.
    """

    request: EditRequest
    model: str
    source_image: Image.Image
    target_image: Image.Image
    alignment: Alignment
    words: tuple[WordReport, ...]
    source_maps: NDArray[np.float32]
    target_maps: NDArray[np.float32]
    spatial_map: NDArray[np.float32] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def word_map(self, word: Word, *, prompt: str = "target") -> NDArray[np.float32]:
        """The map [mh, mw] of a word of `alignment.target_words` (or source_words), its tokens added up."""
        maps = self.target_maps if prompt == "target" else self.source_maps
        return maps[:, :, list(word.tokens)].sum(2)

    def maps_sheet(self) -> Image.Image:
        """Pictures, spatial map and every word's map, labelled, as one picture."""
        first = [
            Cell(self.source_image, "source", self.request.source_prompt),
            Cell(self.target_image, "target", self.request.target_prompt),
        ]
        if self.spatial_map is not None:
            first.append(
                Cell(
                    overlay(self.target_image, self.spatial_map, peak=1.0), "spatial map S", "bright: edited"
                )
            )
        source = [
            Cell(overlay(self.source_image, self.word_map(word, prompt="source")), word.text, word.kind)
            for word in self.alignment.source_words
        ]
        target = [
            Cell(overlay(self.target_image, self.word_map(word)), word.text, _note(report))
            for word, report in zip(self.alignment.target_words, self.words, strict=True)
        ]
        return sheet([("", first), ("Source: where each word looks", source), ("Target", target)])

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures and maps, ready for JSON."""
        return {
            "format": FORMAT,
            "adapedit": __version__,
            "model": self.model,
            "request": self.request.model_dump(),
            "words": [asdict(word) for word in self.words],
            "timings": {name: round(seconds, 4) for name, seconds in self.timings.items()},
            "warnings": list(self.warnings),
        }

    def save(self, folder: str | Path) -> Path:
        """Write source.png, target.png, maps.png and edit.json; earlier ones are replaced, each whole.

        Raises `AdapEditError` where the folder can't be written; nothing half-written is left.
        """
        folder = Path(folder)
        with output_folder(folder) as part:
            self.source_image.save(part / "source.png")
            self.target_image.save(part / "target.png")
            self.maps_sheet().save(part / "maps.png")
            (part / "edit.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return folder


class output_folder:
    """A temporary folder beside `folder` whose files take their places in it when the block ends well.

    Raises `AdapEditError` on entry where nothing can be written there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __enter__(self) -> Path:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if self.folder.exists() and not os.access(self.folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
            if self.folder.exists() and not self.folder.is_dir():
                raise NotADirectoryError(20, "it is a file")
            self.part = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.folder.parent))
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return self.part

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self.folder.mkdir(exist_ok=True)
                # The description goes last: where it stands, the pictures beside it are its own.
                for path in sorted(self.part.iterdir(), key=lambda path: path.suffix == ".json"):
                    os.replace(path, self.folder / path.name)
        except OSError as problem:
            raise _unwritable(self.folder, problem) from problem
        finally:
            shutil.rmtree(self.part, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(self.folder, error) from error


def _unwritable(folder: Path, error: OSError) -> AdapEditError:
    return AdapEditError(f"can't write to {folder} ({error.strerror or error}); choose another output folder")


def _note(report: WordReport) -> str:
    parts = ["edited" if report.is_key else report.kind]
    if report.word_steps is not None:
        parts.append(f"τ {report.word_steps:.2f}")
    if report.relation is not None:
        parts.append(f"Λ {report.relation:.2f}")
    return ", ".join(parts)
