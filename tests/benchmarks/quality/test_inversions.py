"""What inversions give back of drawings, by a model of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapedit import AdapEditError, AdapEditPipeline
from adapedit.inversion.reconstruct import VAE
from benchmarks.quality.inversions import run_inversions
from benchmarks.quality.run import Setup
from benchmarks.quality.suite import scene_suite
from tests.helpers.tiny_model import save_tiny_model

CASES = sorted(
    scene_suite(limit=40), key=lambda case: len(case.source_prompt)
)  # the tiny model takes short prompts


def test_the_study_of_inversions(tmp_path: Path) -> None:
    pipe = AdapEditPipeline.from_pretrained(save_tiny_model(tmp_path / "model"))
    out, names = tmp_path / "out", ["ddim", "direct", "edit-friendly"]

    def study(count: int, steps: int = 3) -> dict:
        setup = Setup(num_inference_steps=steps, batch=2)
        return run_inversions(pipe, CASES[:count], out, setup=setup, only=names)

    report = study(2)
    first = (out / "inversions.jsonl").read_text()
    with pytest.raises(AdapEditError, match="another evaluation"):
        study(2, steps=4)
    assert study(2)["groups"] == report["groups"] and (out / "inversions.jsonl").read_text() == first
    means = report["groups"]["all"]["means"]
    assert report["cases"] == 2 and list(means) == [VAE, *names]
    assert means["direct"]["psnr"]["value"] == pytest.approx(means[VAE]["psnr"]["value"], abs=0.01)
    assert "SSIM" in (out / "inversions.html").read_text()
