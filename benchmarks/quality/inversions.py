"""What inversions lose without an edit: drawn scenes, inverted and denoised again under their own captions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adapedit import AdapEditError
from adapedit.sheets import Cell, sheet
from benchmarks.quality.judge import masked_psnr, masked_ssim
from benchmarks.quality.page import write_report
from benchmarks.quality.report import group
from benchmarks.quality.run import Progress, Setup, drawn, edit
from benchmarks.quality.store import ScoreStore, digest
from benchmarks.quality.suite import Case

NAME, SHOWN = "inversions", 4
AUTOENCODER = "autoencoder alone"
INVERSIONS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {},
    "null-text": {"cache": "off"},  # what is found in a cache on disk would be timed as if it had been made
    "direct": {},
    "edit-friendly": {},
}
"""What is compared, with the knobs that are not to be their own."""


@dataclass(frozen=True, kw_only=True)
class InversionScore:
    """One drawing by one inversion. seconds: of the edit that changes nothing, for each of those that ran together."""

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
    chosen = {name: {"name": name, **INVERSIONS.get(name, {})} for name in only or INVERSIONS}
    about = setup.about(pipe.model)
    store = ScoreStore(folder / f"{NAME}.jsonl", about, InversionScore)
    known = {(score.case, score.inversion) for score in store.scores}
    labels = [AUTOENCODER, *chosen]
    for start in range(0, len(cases), setup.batch):
        part = cases[start : start + setup.batch]
        for label in labels:
            missing = [case for case in part if (case.name, label) not in known]
            store.append(_scores(pipe, missing, label, chosen.get(label), setup))
        if progress is not None:
            progress(start + len(part), len(cases))
    found = {(score.case, score.inversion): score for score in store.scores}
    columns, table = ["psnr", "ssim", "seconds"], {}
    for label in labels:
        scores = [found[case.name, label] for case in cases]
        table[label] = {name: [getattr(score, name) for score in scores] for name in columns}
    report = {
        "study": NAME,
        "title": "What inversions lose without an edit",
        "about": {**about, "suite": digest(repr(cases))},
        "settings": chosen,
        "cases": len(cases),
        "usable": len(cases),
        "columns": columns,
        "groups": {"all": group(table, ["psnr"])},
        "curves": [],
    }
    return write_report(folder, report, _sheets(pipe, cases[:SHOWN], chosen, setup), str(pipe.model.device))


def _given_back(
    pipe: Any, cases: Sequence[Case], inversion: Mapping[str, Any] | None, setup: Setup
) -> list[tuple[Image.Image, Image.Image]]:
    """Each drawing as the model takes it, and what comes back: through an inversion, or the autoencoder alone."""
    # SDEdit without noise takes no step: its target is what the autoencoder makes of the source.
    variant = {"name": "sdedit", "strength": 0.0} if inversion is None else {"name": "plain"}
    requests = [
        setup.request(
            case.source_prompt, case.source_prompt, case.seed, variant, image=drawn(case.source),
            inversion=inversion,
        )
        for case in cases
    ]  # fmt: skip
    return [
        (result.image.picture, result.target_image if inversion is None else result.source_image)
        for result in edit(pipe, requests)
    ]


def _scores(
    pipe: Any, cases: Sequence[Case], label: str, inversion: Mapping[str, Any] | None, setup: Setup
) -> list[InversionScore]:
    began = time.perf_counter()
    pairs = _given_back(pipe, cases, inversion, setup)
    seconds, scores = time.perf_counter() - began, []
    for case, pair in zip(cases, pairs, strict=True):
        one, two = (np.asarray(picture) for picture in pair)
        everywhere = np.ones(one.shape[:2], bool)
        found = {"psnr": masked_psnr(one, two, everywhere), "ssim": masked_ssim(one, two, everywhere)}
        scores.append(InversionScore(case=case.name, inversion=label, seconds=seconds / len(cases), **found))
    return scores


def _sheets(
    pipe: Any, cases: Sequence[Case], inversions: Mapping[str, Mapping[str, Any]], setup: Setup
) -> dict[str, Any]:
    given = {AUTOENCODER: None, **inversions}
    pictures = {label: _given_back(pipe, cases, inversion, setup) for label, inversion in given.items()}
    rows = []
    for place, case in enumerate(cases):
        cells = [Cell(drawn(case.source), "drawing")]
        cells += [Cell(found[place][1], label) for label, found in pictures.items()]
        rows.append((case.source_prompt, cells))
    return {"Drawings and what comes back": sheet(rows, columns=8, cell=144)}
