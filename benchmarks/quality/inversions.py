"""What inversions lose without an edit: drawn scenes, inverted and denoised again under their own captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapedit import AdapEditError
from adapedit.inversion import INVERSIONS, make_inversion_settings
from adapedit.inversion.reconstruct import VAE, Reconstruction, reconstruct
from adapedit.sheets import Cell, sheet
from benchmarks.quality.page import write_report
from benchmarks.quality.report import group
from benchmarks.quality.run import Progress, Setup, drawn
from benchmarks.quality.store import ScoreStore, digest
from benchmarks.quality.suite import Case

NAME, SHOWN = "inversions", 4
COLUMNS = ["psnr", "ssim", "seconds"]
# What is found in a cache on disk would be timed as if it had been made.
KNOBS: dict[str, dict[str, Any]] = {"null-text": {"cache": "off"}}


@dataclass(frozen=True, kw_only=True)
class InversionScore:
    """One drawing by one inversion. seconds: of inversion and denoising, for each of those that ran together."""

    case: str
    inversion: str
    psnr: float
    ssim: float
    seconds: float


def run_inversions(
    pipe: Any,
    cases: Sequence[Case],
    folder: Path,
    *,
    setup: Setup,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Give the drawings of `cases` back through each inversion; write inversions.jsonl, .json and .html into `folder`.

    A run that was stopped goes on where it was. only: names of inversions; by default all. Returns the report.
    """
    if not cases:
        raise AdapEditError("there are no cases to invert; raise --limit")
    chosen = {name: make_inversion_settings(name, **KNOBS.get(name, {})) for name in only or INVERSIONS}
    about, labels = setup.about(pipe.model), [VAE, *chosen]
    store = ScoreStore(folder / f"{NAME}.jsonl", about, InversionScore)
    found = {(score.case, score.inversion): score for score in store.scores}
    for start in range(0, len(cases), setup.batch):
        part = cases[start : start + setup.batch]
        missing = [case for case in part if any((case.name, label) not in found for label in labels)]
        scores = [
            InversionScore(
                case=case.name, inversion=one.inversion, psnr=one.psnr, ssim=one.ssim,
                seconds=one.seconds / len(missing),
            )
            for case, each in zip(missing, _given_back(pipe, missing, chosen, setup), strict=True)
            for one in each
        ]  # fmt: skip
        store.append(scores)
        found |= {(score.case, score.inversion): score for score in scores}
        if progress is not None:
            progress(start + len(part), len(cases))
    table = {
        label: {name: [getattr(found[case.name, label], name) for case in cases] for name in COLUMNS}
        for label in labels
    }
    rows = [
        (
            case.source_prompt,
            [Cell(drawn(case.source), "drawing"), *(Cell(o.picture, o.inversion) for o in each)],
        )
        for case, each in zip(cases[:SHOWN], _given_back(pipe, cases[:SHOWN], chosen, setup), strict=True)
    ]
    report = {
        "study": NAME,
        "title": "What inversions lose without an edit",
        "about": {**about, "suite": digest(repr(cases))},
        "settings": {label: settings.model_dump(mode="json") for label, settings in chosen.items()},
        "cases": len(cases),
        "usable": len(cases),
        "columns": COLUMNS,
        "groups": {"all": group(table, ["psnr"])},
        "curves": [],
    }
    sheets = {"Drawings and what comes back": sheet(rows, columns=8, cell=144)}
    return write_report(folder, report, sheets, str(pipe.model.device))


def _given_back(
    pipe: Any, cases: Sequence[Case], inversions: Mapping[str, Any], setup: Setup
) -> list[list[Reconstruction]]:
    """Each drawing's, by the autoencoder alone and by each inversion."""
    pictures = [(drawn(case.source), case.source_prompt) for case in cases]
    steps, scale = setup.num_inference_steps, setup.guidance_scale
    fields: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale}
    return reconstruct(pipe.model, pictures, inversions=inversions, **fields) if cases else []
