"""EditResult: both pictures, what was found about the words, and a folder that is enough to repeat the edit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adapedit import __version__
from adapedit.alignment import Alignment, Word
from adapedit.arguments import folder_path
from adapedit.images import INPUT_FILE, OpenedImage
from adapedit.maps import overlay
from adapedit.methods.context import EditContext, Findings
from adapedit.output import OutputFolder
from adapedit.request import EditRequest
from adapedit.sheets import Cell, Heading, sheet
from adapedit_engine.loop import EditOutcome

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
    made_with:    runner, device, dtype, scheduler and versions, see `EditModel.made_with`.
    timings:      seconds, of the whole batch that the edit shared.
    warnings:     what the method found suspicious.
    image:        the real picture that was edited, as the model took it; `source_image` is then its reconstruction.
    reconstruction_psnr: of `source_image` against it, decibels; at most 60.
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
    made_with: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    image: OpenedImage | None = None
    reconstruction_psnr: float | None = None

    def word_map(self, word: Word, *, prompt: str = "target") -> NDArray[np.float32]:
        """The map [mh, mw] of a word of `alignment.target_words` (or source_words), its tokens added up."""
        maps = self.target_maps if prompt == "target" else self.source_maps
        return maps[:, :, list(word.tokens)].sum(2)

    def maps_sheet(self) -> Image.Image:
        """Pictures, spatial map and every word's map, labelled, as one picture."""
        first = [Cell(self.source_image, "source"), Cell(self.target_image, "target")]
        if self.image is not None:
            first.insert(
                0, Cell(self.image.picture, "input", f"comes back at {self.reconstruction_psnr:.1f} dB")
            )
        if self.spatial_map is not None:
            picture = overlay(self.target_image, self.spatial_map, peak=1.0)
            first.append(Cell(picture, "spatial map S", "bright: the edit may act"))
        source = [
            Cell(overlay(self.source_image, self.word_map(word, prompt="source")), word.text, word.kind)
            for word in self.alignment.source_words
        ]
        target = [
            Cell(overlay(self.target_image, self.word_map(word)), word.text, _note(report))
            for word, report in zip(self.alignment.target_words, self.words, strict=True)
        ]
        rows = [("", first), ("Where each word of the source looks", source), ("and of the target", target)]
        return sheet(rows, headings=self.headings(), columns=8)

    def headings(self) -> tuple[Heading, Heading]:
        """Both prompts for the top of a sheet, what differs standing out."""
        source = tuple((word.text, word.kind != "kept") for word in self.alignment.source_words)
        target = tuple((word.text, word.is_key) for word in self.alignment.target_words)
        return Heading("source", source), Heading("target", target)

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures and maps, ready for JSON."""
        described: dict[str, Any] = {
            "format": FORMAT,
            "adapedit": __version__,
            "model": self.model,
            "made_with": self.made_with,
            "request": self._request(),
            "words": [asdict(word) for word in self.words],
            "timings": {name: round(seconds, 4) for name, seconds in self.timings.items()},
            "warnings": list(self.warnings),
        }
        if self.image is not None and self.reconstruction_psnr is not None:
            described["input"] = {"size": list(self.image.size), "notes": list(self.image.notes)}
            described["reconstruction_psnr"] = round(self.reconstruction_psnr, 3)
        return described

    def _request(self) -> dict[str, Any]:
        """The request as it can be repeated from any working folder: with the whole path of its picture."""
        request, image = self.request.model_dump(mode="json"), self.request.image
        if image is not None and image.kept is None:
            request["image"]["file"] = os.path.abspath(image.file)
        return request

    def save(self, folder: str | Path) -> Path:
        """Write source.png, target.png, maps.png and edit.json; earlier ones are replaced.

        A picture that was given from Python is written as input.png, too, byte for byte.
        Raises `OutputError` where the folder can't be written; nothing half-written is left.
        """
        folder = folder_path(folder)
        with OutputFolder(folder) as part:
            self.source_image.save(part / "source.png")
            self.target_image.save(part / "target.png")
            self.maps_sheet().save(part / "maps.png")
            kept = None if self.request.image is None else self.request.image.kept
            if kept is not None:
                (part / INPUT_FILE).write_bytes(kept)
            (part / "edit.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return folder


def make_result(
    *,
    request: EditRequest,
    model: str,
    made_with: Mapping[str, str],
    context: EditContext,
    edited: EditOutcome,
    found: Findings,
    source_image: Image.Image,
    target_image: Image.Image,
    seconds: Mapping[str, float],
) -> EditResult:
    """Put together what the engine, the method and the decoder gave; `edited` has the source's track first."""
    assert edited.maps is not None

    def grid(values: Tensor) -> NDArray[np.float32]:
        return values.float().cpu().reshape(*context.map_size, *values.shape[1:]).numpy()

    return EditResult(
        request=request,
        model=model,
        made_with=dict(made_with),
        source_image=source_image,
        target_image=target_image,
        alignment=context.alignment,
        words=_reports(context.alignment, found),
        source_maps=grid(edited.maps[0]),
        target_maps=grid(edited.maps[1]),
        spatial_map=None if found.spatial_map is None else grid(found.spatial_map),
        timings=dict(seconds),
        warnings=found.warnings,
        image=context.image,
        reconstruction_psnr=None if context.image is None else psnr(context.image.picture, source_image),
    )


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size, decibels, at most 60."""
    error = np.square(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()
    return 60.0 if error == 0 else min(60.0, float(10 * np.log10(255**2 / error)))


def _reports(alignment: Alignment, found: Findings) -> tuple[WordReport, ...]:
    reports = []
    for word in alignment.target_words:
        place = word.tokens[0]
        replaced = alignment.source_words[word.counterpart] if word.counterpart is not None else None
        reports.append(
            WordReport(
                text=word.text,
                kind=word.kind,
                is_key=word.is_key,
                replaces=replaced.text if replaced is not None and word.kind == "replaced" else None,
                word_steps=None if found.word_steps is None else float(found.word_steps[place]),
                relation=None if found.relation is None else float(found.relation[place]),
            )
        )
    return tuple(reports)


def _note(report: WordReport) -> str:
    parts = ["edited" if report.is_key else report.kind]
    if report.word_steps is not None:
        parts.append(f"tau {report.word_steps:.2f}")
    if report.relation is not None:
        parts.append(f"relation {report.relation:.2f}")
    return ", ".join(parts)
