"""Studies of an editor whose worth is known: resumed, reported, shown."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapedit import AdapEditError
from benchmarks.quality.judge import Judge
from benchmarks.quality.report import scenes_report
from benchmarks.quality.run import Setup, drawn, run_study, scores_of
from benchmarks.quality.studies import Study, make_study
from benchmarks.quality.suite import scene_suite
from tests.benchmarks.quality.fake_editor import DrawingEditor

CASES = scene_suite(limit=7)
FEW = make_study("scenes", ["adapedit", "prompt-to-prompt", "plain"])


def study_of(editor: DrawingEditor, study: Study, count: int, folder: Path, **options: Any) -> dict[str, Any]:
    report = run_study(editor, study, CASES[:count], folder, setup=Setup(), reader=editor.reader, **options)
    return {name: value for name, value in report.items() if name not in ("date", "machine", "command")}


def scored(editor: DrawingEditor, study: Study, cases: Any = CASES, **setup: Any) -> list[Any]:
    work = [(case, list(study.variants)) for case in cases]
    return [*chain(*scores_of(editor, work, study.variants, Judge(editor.reader), Setup(**setup)))]


def test_it_writes_scores_a_report_and_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = study_of(DrawingEditor(), FEW, 7, tmp_path, progress=lambda *counts: seen.append(counts))
    assert seen == [(12, 21), (21, 21)]
    written = json.loads((tmp_path / "scenes.json").read_text())
    assert json.loads(json.dumps(report)).items() <= written.items()
    assert written["command"].startswith("python -m benchmarks.quality") and written["commit"]
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 22
    page = (tmp_path / "scenes.html").read_text()
    for wanted in ("<svg", "data:image/jpeg;base64,", "Worst of adapedit", "prompt-to-prompt", "Two words"):
        assert wanted in page
    assert "<link" not in page and 'src="http' not in page and len(page) < 2_000_000
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.slow
def test_what_is_scored_is_not_run_again(tmp_path: Path) -> None:
    editor, two = DrawingEditor(), make_study("scenes", ["adapedit", "prompt-to-prompt"])
    first = study_of(editor, two, 5, tmp_path)
    editor.requests.clear()
    whole = study_of(editor, FEW, 7, tmp_path)
    sheets = 3 * 7  # of seven cases every one is among the best, the median or the worst
    assert len(editor.requests) == 5 + 2 * 3 + sheets
    editor.requests.clear()
    assert study_of(editor, FEW, 7, tmp_path) == whole
    assert len(editor.requests) == sheets and first["cases"] == 5 and whole["cases"] == 7
    # The ablation has the whole method in common with it, under the same settings.
    editor.requests.clear()
    ablation = make_study("ablation")
    study_of(editor, ablation, 7, tmp_path)
    assert len(editor.requests) == (len(ablation.variants) - 1) * 7 + len(ablation.variants) * 7


def test_reports_say_what_edits_ran_with(tmp_path: Path) -> None:
    found = study_of(
        DrawingEditor(), make_study("scenes", ["sdedit"], {"sdedit": {"strength": 0.9}}), 1, tmp_path
    )
    assert found["settings"]["sdedit"]["strength"] == 0.9 and found["about"]["guidance_scale"] == 7.5


def test_requests_are_those_of_the_setup() -> None:
    editor = DrawingEditor()
    found = scored(
        editor, make_study("scenes", ["adapedit"], {"adapedit": {"lambda_tau": 0.5}}), num_inference_steps=7
    )
    assert [score.case for score in found] == [case.name for case in CASES]
    assert all(score.product > 0.98 and score.variant == "adapedit" for score in found)
    asked = {
        (request.num_inference_steps, request.method.lambda_tau, request.image) for request in editor.requests
    }
    assert asked == {(7, 0.5, None)} and all(score.truth_psnr is None for score in found)
    with pytest.raises(AdapEditError, match="batch is 0"):
        Setup(batch=0)


def test_drawn_sources_are_inverted_and_held_to_the_truth() -> None:
    editor, study = DrawingEditor(), make_study("scenes", ["adapedit", "prompt-to-prompt"])
    scores = scored(editor, study, CASES[:6], inversion="direct")
    for asked in editor.requests:
        assert asked.image is not None and asked.inversion.name == "direct"
    true_edits = [s.truth_ssim for s in scores if s.variant == "adapedit"]
    copies = [s.truth_ssim for s in scores if s.variant == "prompt-to-prompt"]
    assert min(true_edits) > 0.99 and np.mean(copies) < np.mean(true_edits)
    means = scenes_report(scores, study)["groups"]["all"]["means"]
    assert means["adapedit"]["truth_psnr"]["value"] > means["prompt-to-prompt"]["truth_psnr"]["value"]
    assert drawn(CASES[0].source).size == (128, 128)
