"""An evaluation from end to end: what is not yet scored is run, then the report and its page are written."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from adapedit.checked import row_steps
from adapedit.evaluation.page import make_page
from adapedit.evaluation.report import make_report, paired
from adapedit.evaluation.scores import (
    BATCH,
    STEPS,
    Editor,
    Score,
    filled_settings,
    judge_with,
    request_of,
    run,
    settings_digest,
)
from adapedit.evaluation.sources import Rendered
from adapedit.evaluation.store import ScoreStore, about_model, fingerprint, write_whole
from adapedit.evaluation.studies import Study
from adapedit.evaluation.suite import Case, digest, scene_suite
from adapedit.sheets import Cell, sheet

SCORES, SHOWN = "scores.jsonl", 3
"""File of the scores; cases of each contact sheet."""

PACKAGES = ("adapedit", "torch", "diffusers", "transformers")
"""Their versions stand in the report."""


def run_study(
    pipe: Editor,
    study: Study,
    cases: Sequence[Case],
    folder: Path,
    *,
    reader: Any = None,
    num_inference_steps: int = STEPS,
    guidance_scale: float | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
    sources: Rendered | None = None,
) -> dict[str, Any]:
    """Score `cases` by the study's variants and write scores.jsonl, NAME.json and NAME.html into `folder`.

    What scores.jsonl has already, from this study or another over the same model, is not run again. progress: called
    with the number of edits that are scored and that of all. sources: see `evaluate`. Returns the report.
    """
    judge = judge_with(reader)
    about = {
        **about_model(pipe.model, guidance_scale),
        "reader": fingerprint(judge.reader),
        "suite": digest(scene_suite()),
        "num_inference_steps": num_inference_steps,
        **({} if sources is None else sources.about),
    }
    store = ScoreStore(folder / SCORES, about)
    digests = {label: settings_digest(pipe, settings) for label, settings in study.variants.items()}
    known = {(score.case, score.settings): score for score in store.scores}
    work = [
        (case, tuple(label for label, key in digests.items() if (case.name, key) not in known))
        for case in cases
    ]
    work = [(case, labels) for case, labels in work if labels]
    total, missing = len(cases) * len(digests), sum(len(labels) for _, labels in work)
    done = total - missing
    options = (num_inference_steps, guidance_scale, batch, sources)
    for part in run(pipe, work, study.variants, judge, *options):
        store.append(part)
        known |= {(score.case, score.settings): score for score in part}
        done += len(part)
        if progress is not None:
            progress(done, total)
    scores = [
        dataclasses.replace(known[case.name, key], variant=label)
        for case in cases
        for label, key in digests.items()
    ]
    report = {
        "study": study.name,
        **about,
        "versions": {name: version(name) for name in PACKAGES},
        "settings": {
            label: filled_settings(pipe, settings).model_dump() for label, settings in study.variants.items()
        },
        "rows of a step": unet_rows(pipe, study, cases[0], num_inference_steps, sources),
        **make_report(scores, list(digests), study.sweeps),
    }
    sheets = contact_sheets(pipe, study, cases, scores, num_inference_steps, guidance_scale, sources)
    write_whole(folder / f"{study.name}.json", json.dumps(report, indent=2) + "\n")
    rows = {f"UNet rows of {label}": f"{value:g} a step" for label, value in report["rows of a step"].items()}
    write_whole(folder / f"{study.name}.html", make_page(study.title, {**about, **rows}, report, sheets))
    return report


def unet_rows(
    pipe: Editor, study: Study, case: Case, steps: int, sources: Rendered | None = None
) -> dict[str, float]:
    """What an edit costs alone, per variant: rows of the UNet over all its passes, for each of `steps` steps.

    An inversion is not counted: it is run once for all edits of a picture.
    """
    costs = {}
    for label, settings in study.variants.items():
        costs[label] = row_steps(request_of(case, settings, steps, sources=sources), pipe.model) / steps
    return costs


def contact_sheets(
    pipe: Editor,
    study: Study,
    cases: Sequence[Case],
    scores: Sequence[Score],
    steps: int,
    guidance_scale: float | None,
    sources: Rendered | None = None,
) -> dict[str, Image.Image]:
    """Best, median and worst cases of the study's first variant, with all variants side by side.

    The pictures are made again: the same request gives the same picture, so none has to be kept.
    """
    table = paired(scores, list(study.variants))
    first, places = next(iter(study.variants)), range(len(next(iter(table.values()))))
    order = sorted(places, key=lambda place: (-table[first][place].verdict.product, place))
    middle = max(0, len(order) // 2 - SHOWN // 2)
    chosen = {
        f"Best of {first}": order[:SHOWN],
        f"Median of {first}": order[middle : middle + SHOWN],
        f"Worst of {first}": order[-SHOWN:],
    }
    by_name = {case.name: case for case in cases}
    rows = {}
    for place in {place for some in chosen.values() for place in some}:
        case = by_name[table[first][place].case]
        requests = [
            request_of(case, settings, steps, guidance_scale, sources) for settings in study.variants.values()
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = pipe.edit_batch(requests)
        cells = [Cell(results[0].source_image, "source")]
        if sources is not None:
            cells = [Cell(sources.picture(case), "input"), Cell(sources.truth(case), "true edit"), *cells]
        for label, result in zip(study.variants, results, strict=True):
            cells.append(Cell(result.target_image, label, _note(table[label][place])))
        rows[place] = (f"{case.source_prompt} → {case.target_prompt}", cells)
    return {
        title: sheet([rows[place] for place in some], columns=8, cell=144) for title, some in chosen.items()
    }


def _note(score: Score) -> str:
    found = score.verdict
    seen = "seen" if found.success else "not seen"
    return f"{seen}, {'kept' if found.kept else 'not kept'}, background {found.background:.2f}"
