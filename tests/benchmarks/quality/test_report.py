"""What a report says of scores whose worth is known, and how it is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapedit import AdapEditError
from benchmarks.quality.page import plots_of, svg, write_report, write_tables
from benchmarks.quality.report import paired, scenes_report
from benchmarks.quality.studies import make_study
from benchmarks.quality.suite import scene_suite
from tests.benchmarks.quality.fake_editor import DrawingEditor
from tests.benchmarks.quality.test_run import FEW, scored

CASES = scene_suite(limit=9)


@pytest.fixture(scope="module")
def scores() -> list[Any]:
    return scored(DrawingEditor(), FEW, CASES)


@pytest.fixture(scope="module")
def knobs() -> dict[str, Any]:
    study = make_study("knobs", ["lambda_tau", "lambda_s"])
    return scenes_report(scored(DrawingEditor(), study, CASES[:7]), study)


def test_the_report_ranks_the_methods(scores: list[Any]) -> None:
    report = scenes_report(scores, FEW)
    means = report["groups"]["all"]["means"]
    assert means["adapedit"]["product"]["value"] > 0.98
    assert means["prompt-to-prompt"]["success"]["value"] == 0 == means["plain"]["product"]["value"]
    assert means["prompt-to-prompt"]["background"]["value"] == 1 > means["plain"]["background"]["value"]
    against = report["groups"]["all"]["against"]["plain"]["product"]
    assert against["difference"]["low"] > 0.9 and against["p_value"] < 0.01
    assert (against["better"], against["worse"]) == (9, 0)
    assert report["usable"] == report["cases"] == 9 and set(report["groups"]) >= {"all", "pose", "two words"}
    assert json.loads(json.dumps(report)) == report


def test_only_cases_that_all_variants_have_are_compared(scores: list[Any]) -> None:
    assert {len(found) for found in paired(scores[:-1], list(FEW.variants)).values()} == {8}
    with pytest.raises(AdapEditError, match="none of the 1 cases can be used"):
        scenes_report(scores[:1], FEW)


def test_curves_follow_their_knob(knobs: dict[str, Any]) -> None:
    curves = {curve["knob"]: curve for curve in knobs["curves"]}
    assert curves["lambda_s"]["success"]["rank correlation"]["value"] > 0.8
    assert curves["lambda_tau"]["success"]["rank correlation"]["value"] == 0


def test_plots_are_the_same_for_the_same_numbers(knobs: dict[str, Any]) -> None:
    one, other = (svg(plots_of({"study": "knobs", **knobs})["knobs-lambda_s.svg"]) for _ in range(2))
    assert one == other and one.startswith("<svg") and "<dc:date>" not in one


def test_tables_of_all_reports(scores: list[Any], knobs: dict[str, Any], tmp_path: Path) -> None:
    for name, found in (("scenes", scenes_report(scores, FEW)), ("knobs", knobs)):
        report = {"study": name, "title": name.capitalize(), "about": {"model": "drawn"}, **found}
        write_report(tmp_path, report, {}, "cpu")
    text = write_tables(tmp_path).read_text()
    for wanted in (
        "## scenes: Scenes",
        "| prompt-to-prompt | 0.000 (0.000 to 0.000) |",
        "![knobs-lambda_s.svg]",
    ):
        assert wanted in text
    assert "adapedit minus, pose" in text and "&" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows) and (tmp_path / "knobs-lambda_s.svg").exists()
