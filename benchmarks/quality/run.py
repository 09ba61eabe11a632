"""A study of the scene suite: what is not yet scored is edited and judged, then the report is written."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from adapedit import AdapEditError, EditRequest
from adapedit.sheets import Cell, sheet
from benchmarks.quality.judge import Judge, SceneReader, Verdict
from benchmarks.quality.page import write_report
from benchmarks.quality.report import paired, scenes_report
from benchmarks.quality.store import ScoreStore, about_model, digest
from benchmarks.quality.studies import Study, Variant
from benchmarks.quality.suite import Case, scene_suite
from benchmarks.scenes.drawing import render
from benchmarks.scenes.reader import load_reader
from benchmarks.scenes.world import Scene

SHOWN = 3
"""Cases of each contact sheet."""

Progress = Callable[[int, int], None]
"""Called with the number of edits that are done and that of all."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all edits of a run have in common.

    guidance_scale: None: the model's own. batch: cases that are edited together, each by all methods.
    inversion: sources are drawn, and the methods get them through this inversion; None: sources are generated.
    """

    num_inference_steps: int = 20
    guidance_scale: float | None = None
    batch: int = 4
    inversion: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise AdapEditError(f"batch is {self.batch}, wanted at least 1")

    def about(self, model: Any) -> dict[str, Any]:
        """What scores depend on besides method and case; ready for JSON."""
        found = {**about_model(model, self.guidance_scale), "num_inference_steps": self.num_inference_steps}
        return found if self.inversion is None else {**found, "sources": "drawn", "inversion": self.inversion}

    def request(
        self, source_prompt: str, target_prompt: str, seed: int, variant: Variant, **more: Any
    ) -> EditRequest:
        """The request of an edit by a variant."""
        return EditRequest.make(
            source_prompt=source_prompt, target_prompt=target_prompt, seed=seed, method=variant,
            num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale, **more,
        )  # fmt: skip

    def case_request(self, case: Case, variant: Variant) -> EditRequest:
        """The request that a case is to a variant."""
        more = {} if self.inversion is None else {"image": drawn(case.source), "inversion": self.inversion}
        return self.request(case.source_prompt, case.target_prompt, case.seed, variant, **more)


@dataclass(frozen=True, kw_only=True)
class Score(Verdict):
    """One edit of the suite by one variant, judged. variant: its label; settings: its digest."""

    case: str
    kind: str
    half: str
    prompts: str
    figures: int
    variant: str
    settings: str


def drawn(scene: Scene) -> Image.Image:
    """The drawing of a scene."""
    return Image.fromarray(render(scene).image)


def edit(pipe: Any, requests: Sequence[EditRequest]) -> list[Any]:
    """Results of a batch. Warnings say that a map points at nothing; over a suite the scores say it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(pipe.edit_batch(requests))


def scores_of(
    pipe: Any,
    work: Sequence[tuple[Case, Sequence[str]]],
    variants: Mapping[str, Variant],
    judge: Judge,
    setup: Setup,
) -> Iterator[list[Score]]:
    """Scores batch by batch, of cases with the labels of the variants that each wants."""
    for start in range(0, len(work), setup.batch):
        part = work[start : start + setup.batch]
        requests = [setup.case_request(case, variants[label]) for case, labels in part for label in labels]
        results = iter(edit(pipe, requests))
        scores: list[Score] = []
        for case, labels in part:
            edits = [next(results) for _ in labels]
            source = edits[0].source_image if setup.inversion is None else drawn(case.source)
            view = judge.view(case, source, drawn=setup.inversion is not None)
            verdicts = judge.verdicts(view, [one.target_image for one in edits])
            scores += [
                Score(
                    **vars(verdict), case=case.name, kind=case.kind, half=case.half, prompts=case.prompts,
                    figures=case.figures,
                    variant=label, settings=digest(variants[label]),
                )
                for label, verdict in zip(labels, verdicts, strict=True)
            ]  # fmt: skip
        yield scores


def run_study(
    pipe: Any,
    study: Study,
    cases: Sequence[Case],
    folder: Path,
    *,
    setup: Setup,
    reader: SceneReader | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score `cases` by the study's variants and write scores.jsonl, NAME.json and NAME.html into `folder`.

    What scores.jsonl has already, from this study or another over the same model, is not run again. reader: the trained
    one by default. Returns the report.
    """
    judge = Judge(load_reader() if reader is None else reader)
    about = {**setup.about(pipe.model), "suite": digest(repr(scene_suite()))}
    store = ScoreStore(folder / "scores.jsonl", about, Score)
    keys = {label: digest(variant) for label, variant in study.variants.items()}
    known = {(score.case, score.settings): score for score in store.scores}
    work = [(case, [label for label, key in keys.items() if (case.name, key) not in known]) for case in cases]
    work = [(case, labels) for case, labels in work if labels]
    total = len(cases) * len(keys)
    done = total - sum(len(labels) for _, labels in work)
    for part in scores_of(pipe, work, study.variants, judge, setup):
        store.append(part)
        known |= {(score.case, score.settings): score for score in part}
        done += len(part)
        if progress is not None:
            progress(done, total)
    scores = [
        dataclasses.replace(known[case.name, key], variant=label)
        for case in cases
        for label, key in keys.items()
    ]
    found = scenes_report(scores, study)
    sheets, settings = contact_sheets(pipe, study, cases, scores, setup)
    report = {"study": study.name, "title": study.title, "about": about, "settings": settings, **found}
    return write_report(folder, report, sheets, str(pipe.model.device))


def contact_sheets(
    pipe: Any, study: Study, cases: Sequence[Case], scores: Sequence[Score], setup: Setup
) -> tuple[dict[str, Image.Image], dict[str, Any]]:
    """Best, median and worst cases of the study's first variant, and what every variant ran with, by label.

    The pictures are made again: the same request gives the same picture, so none has to be kept.
    """
    table, by_name = paired(scores, list(study.variants)), {case.name: case for case in cases}
    first, found = next(iter(table.items()))
    chosen = extremes([score.product for score in found])
    rows, settings = {}, {}
    for place in {place for places in chosen.values() for place in places}:
        case = by_name[found[place].case]
        results = edit(pipe, [setup.case_request(case, variant) for variant in study.variants.values()])
        cells = [Cell(results[0].source_image, "source")]
        if setup.inversion is not None:
            cells = [Cell(drawn(case.source), "input"), Cell(drawn(case.target), "true edit"), *cells]
        for label, result in zip(study.variants, results, strict=True):
            cells.append(Cell(result.target_image, label, _note(table[label][place])))
            settings[label] = result.request.method.model_dump(mode="json")
        rows[place] = (f"{case.source_prompt} → {case.target_prompt}", cells)
    sheets = {
        f"{title} of {first}": sheet([rows[place] for place in places], columns=8, cell=144)
        for title, places in chosen.items()
    }
    return sheets, settings


def extremes(worth: Sequence[float]) -> dict[str, list[int]]:
    """Places of the best, median and worst edits."""
    order = sorted(range(len(worth)), key=lambda place: (-worth[place], place))
    middle = max(0, len(order) // 2 - SHOWN // 2)
    return {"Best": order[:SHOWN], "Median": order[middle : middle + SHOWN], "Worst": order[-SHOWN:]}


def _note(score: Score) -> str:
    seen, kept = "seen" if score.success else "not seen", "kept" if score.kept else "not kept"
    return f"{seen}, {kept}, background {score.background:.2f}"
