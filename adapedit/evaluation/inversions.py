"""What inversions lose without an edit: drawn scenes, inverted and denoised again under their own captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adapedit.evaluation.page import cell, document, image_tag, listing, table
from adapedit.evaluation.run import PACKAGES
from adapedit.evaluation.statistics import mean_interval, paired_comparison
from adapedit.evaluation.store import ScoreStore, about_model, write_whole
from adapedit.evaluation.suite import Case, digest
from adapedit.inversion import INVERSIONS, NullText, make_inversion_settings
from adapedit.inversion.reconstruct import VAE, Reconstruction, reconstruct
from adapedit.scenes.render import render
from adapedit.sheets import Cell, sheet
from adapedit_kernels.errors import AdapEditError

NAME, SHOWN = "inversion", 4
MEASURES = ("psnr", "ssim", "latent_rmse")
MEANING = {
    "psnr": "decibels to the drawing, at most 60",
    "ssim": "structural similarity to the drawing",
    "latent_rmse": "root mean square distance of the last latents to the drawing's own; the VAE has no part in it",
    "seconds": "of an inversion with its denoising, for each of the pictures that ran together",
}


@dataclass(frozen=True, kw_only=True)
class InversionScore:
    """One drawing by one inversion."""

    case: str
    inversion: str
    psnr: float
    ssim: float
    latent_rmse: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> InversionScore:
        """The reverse. Raises `KeyError` where something is missing."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})


def run_inversions(
    pipe: Any,
    cases: Sequence[Case],
    folder: Path,
    *,
    inversions: Mapping[str, Any] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    batch: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Reconstruct the drawings of `cases` and write inversion.jsonl, inversion.json and inversion.html into `folder`.

    A run that was stopped goes on where it was. progress: called with the number of drawings that are done and that
    of all. Returns the report.
    """
    if not cases:
        raise AdapEditError("there are no cases to invert; raise --limit")
    given = {n: make_inversion_settings(n) for n in INVERSIONS} if inversions is None else inversions
    chosen = {label: _uncached(settings) for label, settings in given.items()}
    about = {
        **about_model(pipe.model, guidance_scale),
        "settings": {label: settings.model_dump(mode="json") for label, settings in chosen.items()},
        "num_inference_steps": num_inference_steps,
    }
    store = ScoreStore(folder / f"{NAME}.jsonl", about, kind=InversionScore)
    options = {
        "inversions": chosen,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    known = {score.case for score in store.scores}
    missing = [case for case in cases if case.name not in known]
    done = len(cases) - len(missing)
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        store.append(_scores(part, _reconstructed(pipe, part, options)))
        done += len(part)
        if progress is not None:
            progress(done, len(cases))
    wanted = {case.name for case in cases}
    scores = [score for score in store.scores if score.case in wanted]
    versions = {name: version(name) for name in PACKAGES}
    report = {
        "study": NAME,
        **about,
        "versions": versions,
        "suite": digest(cases),
        **make_report(scores, [VAE, *chosen]),
    }
    shown = cases[:SHOWN]
    picture = _sheet(shown, _reconstructed(pipe, shown, options))
    write_whole(folder / f"{NAME}.json", json.dumps(report, indent=2) + "\n")
    write_whole(folder / f"{NAME}.html", _page(about, report, picture))
    return report


def make_report(scores: Sequence[InversionScore], labels: Sequence[str]) -> dict[str, Any]:
    """Means with 95 % intervals, and what each loses against the VAE alone, paired by drawing; ready for JSON."""
    by_label = {label: {s.case: s for s in scores if s.inversion == label} for label in labels}
    cases = sorted(set.intersection(*(set(found) for found in by_label.values())))
    values = {
        label: {
            name: [float(getattr(found[case], name)) for case in cases] for name in (*MEASURES, "seconds")
        }
        for label, found in by_label.items()
    }
    return {
        "cases": len(cases),
        "means": {
            label: {name: asdict(mean_interval(of[name])) for name in MEASURES}
            | {"seconds": float(np.mean(of["seconds"]))}
            for label, of in values.items()
        },
        "psnr lost": {
            label: asdict(paired_comparison(values[VAE]["psnr"], of["psnr"]))
            for label, of in values.items()
            if label != VAE
        },
    }


def _uncached(settings: Any) -> Any:
    """The same without a cache on disk: what is found there would be timed as if it had been made."""
    return settings.model_copy(update={"cache": "off"}) if isinstance(settings, NullText) else settings


def _reconstructed(
    pipe: Any, cases: Sequence[Case], options: Mapping[str, Any]
) -> list[list[Reconstruction]]:
    pictures = [(Image.fromarray(render(case.source).image), case.source_prompt) for case in cases]
    return reconstruct(pipe.model, pictures, **options)


def _scores(cases: Sequence[Case], found: Sequence[Sequence[Reconstruction]]) -> list[InversionScore]:
    return [
        InversionScore(
            case=case.name,
            inversion=one.inversion,
            psnr=one.psnr,
            ssim=one.ssim,
            latent_rmse=one.latent_rmse,
            seconds=one.seconds / len(cases),
        )
        for case, row in zip(cases, found, strict=True)
        for one in row
    ]


def _sheet(cases: Sequence[Case], found: Sequence[Sequence[Reconstruction]]) -> Image.Image:
    rows = []
    for case, row in zip(cases, found, strict=True):
        cells = [Cell(Image.fromarray(render(case.source).image), "drawing")]
        cells += [Cell(one.picture, one.inversion, f"{one.psnr:.1f} dB") for one in row]
        rows.append((case.source_prompt, cells))
    return sheet(rows, columns=8, cell=144)


def _page(about: Mapping[str, Any], report: Mapping[str, Any], picture: Image.Image) -> str:
    title = "What inversions lose without an edit"
    rows = [
        [
            escape(label),
            *(cell(found[name], None, 2 if name == "psnr" else 4) for name in MEASURES),
            f"{found['seconds']:.1f}",
            cell(report["psnr lost"][label]["difference"], None, 2) if label in report["psnr lost"] else "",
        ]
        for label, found in report["means"].items()
    ]
    head = ["", "PSNR", "SSIM", "latents RMSE", "seconds", "dB lost against the VAE"]
    intro = f"<p>{report['cases']} drawn scenes. Means with 95 % bootstrap intervals.</p>"
    parts = [f"<h1>{title}</h1>", intro, listing(about), table(head, rows), image_tag(picture)]
    return document(title, [*parts, "<h2>What the columns mean</h2>", listing(MEANING)])
