"""Drawn sources: methods get the drawing through an inversion, and are held to the true edit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adapedit import AdapEditPipeline
from adapedit.cli.drawn import Sources, sources_of
from benchmarks.quality.inversions import run_inversions
from benchmarks.quality.page import make_page
from benchmarks.quality.report import make_report
from benchmarks.quality.scores import evaluate
from benchmarks.quality.sources import Rendered
from benchmarks.quality.suite import scene_suite
from adapedit.inversion import make_inversion_settings
from adapedit.methods.settings import make_settings
from benchmarks.scenes.drawing import render
from adapedit import AdapEditError
from tests.benchmarks.quality.fake_editor import DrawingEditor
from tests.helpers.tiny_model import save_tiny_model

CASES = scene_suite(limit=6)


def test_methods_get_the_drawing_and_are_held_to_the_truth() -> None:
    editor = DrawingEditor()
    variants = {name: make_settings(name) for name in ("adapedit", "prompt-to-prompt")}
    sources = Rendered(make_inversion_settings("direct"))
    scores = evaluate(editor, CASES, variants, reader=editor.reader, sources=sources)
    for asked, case in zip(editor.requests[::2], CASES, strict=True):
        assert asked.image is not None and asked.inversion == sources.inversion
        assert np.array_equal(np.asarray(sources.picture(case)), render(case.source).image)
    true_edits = [s.verdict.truth_ssim or 0 for s in scores if s.variant == "adapedit"]
    copies = [s.verdict.truth_ssim or 0 for s in scores if s.variant == "prompt-to-prompt"]
    assert min(true_edits) > 0.99 and np.mean(copies) < np.mean(true_edits)

    report = make_report(scores, list(variants))
    means = report["groups"]["all"]["means"]
    assert means["adapedit"]["truth_psnr"]["value"] > means["prompt-to-prompt"]["truth_psnr"]["value"]
    page = make_page("Drawn", sources.about, report, {})
    assert "truth_ssim" in page and "rendered" in page


def test_generated_sources_have_no_truth() -> None:
    editor = DrawingEditor()
    scores = evaluate(editor, CASES, make_settings("adapedit"), reader=editor.reader)
    assert all(score.verdict.truth_psnr is None for score in scores)
    assert "truth_psnr" not in make_report(scores, ["adapedit"])["groups"]["all"]["means"]["adapedit"]
    assert all(asked.image is None for asked in editor.requests)


def test_an_inversion_of_generated_sources_is_refused() -> None:
    with pytest.raises(AdapEditError, match="use --sources rendered"):
        sources_of(Sources.generated, "direct", None)
    assert sources_of(Sources.generated, None, None) is None
    assert sources_of(Sources.rendered, None, None).inversion.name == "direct"
    assert sources_of(Sources.rendered, "edit-friendly", ["skip=0.2"]).inversion.skip == 0.2


def test_the_study_times_inversions_that_are_made(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pipe = AdapEditPipeline.from_pretrained(save_tiny_model(tmp_path / "model"))
    cache = tmp_path / "cache"
    named = {"null-text": make_inversion_settings("null-text", inner_steps=1, cache=str(cache))}
    run_inversions(pipe, CASES[:1], tmp_path / "out", inversions=named, num_inference_steps=2)
    assert not cache.exists()


def test_the_study_of_inversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    pipe = AdapEditPipeline.from_pretrained(save_tiny_model(tmp_path / "model"))
    inversions = {name: make_inversion_settings(name) for name in ("ddim", "direct", "edit-friendly")}
    out = tmp_path / "out"

    def study(count: int) -> dict:
        return run_inversions(pipe, CASES[:count], out, inversions=inversions, num_inference_steps=3, batch=2)

    study(2)
    first = (out / "inversion.jsonl").read_text()
    report = study(3)
    assert (out / "inversion.jsonl").read_text().startswith(first)
    means = report["means"]
    assert report["cases"] == 3 and list(means) == ["VAE alone", "ddim", "direct", "edit-friendly"]
    assert (
        means["direct"]["psnr"] == means["VAE alone"]["psnr"] and means["direct"]["latent_rmse"]["value"] == 0
    )
    assert means["edit-friendly"]["latent_rmse"]["value"] < 1e-3 < means["ddim"]["latent_rmse"]["value"]
    assert json.loads((out / "inversion.json").read_text())["means"] == json.loads(json.dumps(means))
    assert "dB lost" in (out / "inversion.html").read_text()
    with pytest.raises(AdapEditError, match="another evaluation"):
        run_inversions(pipe, CASES[:2], out, inversions=inversions, num_inference_steps=4)
