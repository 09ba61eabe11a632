"""The scene suite in small, with the trained model and the trained reader: the command, its files, and its judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from adapedit import AdapEditPipeline, EditRequest
from benchmarks.quality import run as runs
from benchmarks.quality.__main__ import app
from benchmarks.quality.judge import Judge
from benchmarks.quality.report import COLUMNS_OF_SCENES, SHARES
from benchmarks.quality.studies import METHODS
from benchmarks.quality.suite import scene_suite
from benchmarks.scenes.drawing import render
from benchmarks.scenes.reader import load_reader
from benchmarks.scenes.world import random_scene

CASES = 4
ARGUMENTS = ["scenes", "--limit", str(CASES), "--half", "test", "--steps", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's output, run once."""
    out = tmp_path_factory.mktemp("scenes")
    assert CliRunner().invoke(app, [*ARGUMENTS, "--out", str(out)]).exit_code == 0
    return out


def test_every_method_is_in_the_table_with_numbers_that_can_be(folder: Path) -> None:
    report = json.loads((folder / "scenes.json").read_text())
    means = report["groups"]["all"]["means"]
    assert list(means) == list(METHODS) and report["cases"] == CASES and 2 <= report["usable"] <= CASES
    for found in means.values():
        for column in COLUMNS_OF_SCENES:
            assert found[column]["low"] <= found[column]["value"] <= found[column]["high"]
        assert all(0 <= found[column]["value"] <= 1 for column in SHARES) and found["moved"]["value"] > 0
    # Trained weights, not luck: with a broken model or method nothing is seen, or nothing is kept.
    assert means["adapedit"]["success"]["value"] >= 0.5 and means["adapedit"]["background"]["value"] > 0.8


def test_the_files_are_there_and_the_page_shows_every_method(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"scores.jsonl", "scenes.json", "scenes.html"}
    page = (folder / "scenes.html").read_text()
    assert "data:image/jpeg;base64," in page and all(f"<td>{label}</td>" in page for label in METHODS)
    assert len((folder / "scores.jsonl").read_text().splitlines()) == 1 + CASES * len(METHODS)


def test_a_second_run_edits_nothing_that_is_scored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(folder, tmp_path / "copy"))
    asked: list[EditRequest] = []
    edit_batch = AdapEditPipeline.edit_batch

    def counted(self: AdapEditPipeline, requests: Sequence[EditRequest], **options: Any) -> Any:
        asked.extend(requests)
        return edit_batch(self, requests, **options)

    monkeypatch.setattr(AdapEditPipeline, "edit_batch", counted)
    # It makes pictures again, to be shown.
    monkeypatch.setattr(runs, "contact_sheets", lambda *arguments: ({}, {}))
    before, report = (folder / "scores.jsonl").read_bytes(), json.loads((folder / "scenes.json").read_text())
    assert CliRunner().invoke(app, [*ARGUMENTS, "--out", str(folder)]).exit_code == 0
    assert json.loads((folder / "scenes.json").read_text())["groups"] == report["groups"]
    assert asked == [] and (folder / "scores.jsonl").read_bytes() == before
    # A case more is edited, and only that.
    more = [*ARGUMENTS, "--out", str(folder), "--only", "plain", "--limit", str(CASES + 1)]
    assert CliRunner().invoke(app, more).exit_code == 0
    assert [request.method.name for request in asked] == ["plain"]


@pytest.mark.slow
def test_copies_succeed_never_the_truth_nearly_always_and_other_scenes_keep_little() -> None:
    judge, rows = Judge(load_reader()), []
    for case in scene_suite(limit=14):
        other = random_scene(np.random.default_rng(case.seed), two_figures=case.figures - 1)
        pictures = [Image.fromarray(render(scene).image) for scene in (case.source, case.target, other)]
        view = judge.view(case, pictures[0], drawn=True)
        if view.usable:
            rows.append(judge.verdicts(view, pictures))
    assert len(rows) >= 12
    copies, truths, others = zip(*rows, strict=True)
    assert not any(verdict.success or verdict.product for verdict in copies)
    assert all(verdict.kept and verdict.moved == 0 for verdict in copies)
    products = [np.mean([verdict.product for verdict in some]) for some in (copies, truths, others)]
    assert products[1] > 0.9 and max(products[0], products[2]) < 0.1
    kept = [np.mean([verdict.kept for verdict in some]) for some in (others, truths)]
    assert kept[0] < 0.1 < 0.9 < kept[1]
