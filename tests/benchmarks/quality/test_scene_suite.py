"""The scene suite in small, with the trained model and the trained reader: the command, its files, and its judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adapedit.checkpoint import BUILTIN
from adapedit.cli.entry import run as run_command
from adapedit.evaluation import run as runs
from benchmarks.quality.judge import Judge
from benchmarks.quality.report import METRICS
from benchmarks.quality.studies import make_study
from benchmarks.quality.suite import scene_suite
from adapedit.methods.settings import METHODS
from adapedit.model import load_model
from adapedit.pipeline import AdapEditPipeline
from adapedit.request import EditRequest
from benchmarks.scenes.reader import BUILTIN as READER
from benchmarks.scenes.reader import load_reader
from benchmarks.scenes.drawing import render
from benchmarks.scenes.world import random_scene

CASES, STEPS = 4, 6
ARGUMENTS = [
    "eval",
    "scenes",
    "--limit",
    str(CASES),
    "--half",
    "test",
    "--steps",
    str(STEPS),
    "--device",
    "cpu",
]

pytestmark = pytest.mark.skipif(
    not (BUILTIN.exists() and READER.exists()), reason="the trained model or its reader is not in this tree"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's output, run once."""
    out = tmp_path_factory.mktemp("scenes")
    assert run_command([*ARGUMENTS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_method_is_in_the_table_with_numbers_that_can_be(folder: Path) -> None:
    report = json.loads((folder / "scenes.json").read_text())
    means = report["groups"]["all"]["means"]
    methods = make_study("scenes").for_model(load_model()).variants
    assert list(means) == list(methods) and set(METHODS) - set(means) <= {"instruct-pix2pix"}
    assert (report["cases"], report["num_inference_steps"]) == (CASES, STEPS) and 2 <= report[
        "usable"
    ] <= CASES
    for found in means.values():
        assert set(found) >= set(METRICS)
        for metric in METRICS:
            assert found[metric]["low"] <= found[metric]["value"] <= found[metric]["high"]
        assert all(0 <= found[metric]["value"] <= 1 for metric in METRICS[:4]) and found["moved"]["value"] > 0
    # Trained weights, not luck: with a broken model or method nothing is seen, or nothing is kept.
    assert means["adapedit"]["success"]["value"] >= 0.5 and means["adapedit"]["background"]["value"] > 0.8


def test_the_files_are_there_and_the_page_shows_every_method(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"scores.jsonl", "scenes.json", "scenes.html"}
    page = (folder / "scenes.html").read_text()
    report = json.loads((folder / "scenes.json").read_text())
    assert "data:image/jpeg;base64," in page and all(
        f"<td>{method}</td>" in page for method in report["settings"]
    )
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()[1:]]
    assert len(scores) == CASES * len(report["settings"])


def test_a_second_run_edits_nothing_that_is_scored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(folder, tmp_path / "copy"))
    asked: list[EditRequest] = []
    edit_batch = AdapEditPipeline.edit_batch

    def counted(self: AdapEditPipeline, requests: Sequence[EditRequest], **options: Any) -> Any:
        asked.extend(requests)
        return edit_batch(self, requests, **options)

    monkeypatch.setattr(AdapEditPipeline, "edit_batch", counted)
    monkeypatch.setattr(
        runs, "contact_sheets", lambda *arguments, **options: {}
    )  # makes pictures again, to be shown
    before, report = (folder / "scores.jsonl").read_bytes(), json.loads((folder / "scenes.json").read_text())
    assert run_command([*ARGUMENTS, "--out", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert asked == [] and (folder / "scores.jsonl").read_bytes() == before
    # A case more is edited, and only that.
    more = [*ARGUMENTS, "--out", str(folder), "--methods", "plain", "--limit", str(CASES + 1)]
    assert run_command(more) == 0
    assert [request.method.name for request in asked] == ["plain"]


def test_copies_succeed_never_the_truth_nearly_always_and_other_scenes_keep_little() -> None:
    judge, rows = Judge(load_reader()), []
    for case in scene_suite(limit=14):
        other = random_scene(np.random.default_rng(case.seed), two_figures=case.figures - 1)
        pictures = [Image.fromarray(render(scene).image) for scene in (case.source, case.target, other)]
        view = judge.view(case, pictures[0], rendered=True)
        if view.usable:
            rows.append(judge.verdicts(view, pictures))
    assert len(rows) >= 12
    copies, truths, others = zip(*rows, strict=True)
    assert not any(verdict.success or verdict.product for verdict in copies)
    assert all(verdict.kept and verdict.moved == 0 for verdict in copies)
    products = [np.mean([verdict.product for verdict in some]) for some in (copies, truths, others)]
    assert products[1] > 0.9 and max(products[0], products[2]) < 0.1
    assert (
        np.mean([verdict.kept for verdict in others])
        < 0.1
        < 0.9
        < np.mean([verdict.kept for verdict in truths])
    )
