"""Contact sheets of several edits of one pair of prompts, as in the paper's Figures 5 and 7."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from adapedit.cli import show
from adapedit.result import EditResult, OutputFolder
from adapedit.sheets import Cell, Heading, sheet

COLUMNS = 6


def edits_sheet(results: Sequence[EditResult], labels: Sequence[str]) -> Image.Image:
    """The source, then every target; where the sources differ, each target under its own."""
    first = results[0]
    headings = [
        *first.headings(),
        Heading("with", tuple((word, False) for word in _settings(results).split())),
    ]
    targets = [
        Cell(result.target_image, label, _note(result)) for result, label in zip(results, labels, strict=True)
    ]
    pictures = [result.source_image.tobytes() for result in results]
    if all(picture == pictures[0] for picture in pictures):
        rows: list[tuple[str, list[Cell]]] = [("", [Cell(first.source_image, "source"), *targets])]
    else:
        rows = []
        for start in range(0, len(results), COLUMNS):
            part = slice(start, start + COLUMNS)
            sources = [
                Cell(r.source_image, "source", label)
                for r, label in zip(results[part], labels[part], strict=True)
            ]
            rows += [("", sources), ("", targets[part])]
    cell = 256 if first.source_image.width > 256 else 192
    return sheet(rows, headings=headings, cell=cell, columns=COLUMNS)


def save(
    out: Path,
    name: str,
    results: Sequence[EditResult],
    labels: Sequence[str],
    about: dict[str, Any],
    as_json: bool,
) -> None:
    """Write NAME.png and NAME.json, and say so."""
    files = [f"{name}.png", f"{name}.json"]
    description = {**about, "edits": [result.to_dict() for result in results]}
    with OutputFolder(out) as part:
        edits_sheet(results, labels).save(part / files[0])
        (part / files[1]).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if as_json:
        show.print_json({**description, "out": str(out), "files": files})
    else:
        show.print_saved(out, files, results)


def _settings(results: Sequence[EditResult]) -> str:
    """What all edits have in common, for the top of the sheet."""
    request = results[0].request
    same = {
        "seed": f"seed {request.seed}",
        "num_inference_steps": f"{request.num_inference_steps} steps",
        "guidance_scale": f"guidance {request.guidance_scale}",
    }
    parts = [
        text for name, text in same.items() if len({getattr(result.request, name) for result in results}) == 1
    ]
    return ", ".join([*parts, f"model {results[0].model}"])


def _note(result: EditResult) -> str:
    held = [word.word_steps for word in result.words if word.word_steps is not None and not word.is_key]
    if not held:
        return ""
    low, high = f"{min(held):.0%}", f"{max(held):.0%}"
    return f"words held {low}" if low == high else f"words held {low} to {high}"
