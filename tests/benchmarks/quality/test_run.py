"""An evaluation from end to end with an editor that draws: resumed, reported, shown; and the command line around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapedit.cli import evaluate as command
from adapedit.cli.entry import run as run_command
from adapedit.evaluation import run as runs
from benchmarks.quality.run import run_study, unet_rows
from benchmarks.quality.scores import judge_with
from benchmarks.quality.studies import WITH_BLEND, make_study
from benchmarks.quality.suite import scene_suite
from adapedit.pipeline import AdapEditPipeline
from tests.benchmarks.quality.fake_editor import DrawingEditor
from tests.helpers.tiny_model import save_tiny_model

CASES = scene_suite(limit=7)
FEW = ["adapedit", "masactrl", "plain"]


@pytest.fixture(autouse=True)
def free_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing has no UNet."""
    monkeypatch.setattr(runs, "unet_rows", lambda pipe, study, *rest: dict.fromkeys(study.variants, 4.0))


def test_it_writes_scores_a_report_and_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    editor, seen = DrawingEditor(), []
    report = run_study(
        editor,
        make_study("scenes", FEW),
        CASES,
        tmp_path,
        reader=editor.reader,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(12, 21), (21, 21)]
    assert json.loads((tmp_path / "scenes.json").read_text()) == json.loads(json.dumps(report))
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 22
    page = (tmp_path / "scenes.html").read_text()
    for wanted in ("<svg", "data:image/jpeg;base64,", "Worst of adapedit", "masactrl", "Two words"):
        assert wanted in page
    assert "http" not in page and len(page) < 2_000_000
    assert not list(tmp_path.glob(".*.part"))


def test_what_is_scored_is_not_run_again(tmp_path: Path) -> None:
    editor = DrawingEditor()
    first = run_study(editor, make_study("scenes", FEW[:2]), CASES[:5], tmp_path, reader=editor.reader)
    editor.requests.clear()
    whole = run_study(editor, make_study("scenes", FEW), CASES, tmp_path, reader=editor.reader)
    sheets = len(FEW) * len(CASES)  # of seven cases every one is among the best, the median or the worst
    assert len(editor.requests) == 5 + 2 * 3 + sheets
    editor.requests.clear()
    assert run_study(editor, make_study("scenes", FEW), CASES, tmp_path, reader=editor.reader) == whole
    assert len(editor.requests) == sheets and first["cases"] == 5 and whole["cases"] == 7
    # The study of the ablation has the whole method in common with it, under the same settings.
    editor.requests.clear()
    run_study(editor, make_study("ablation"), CASES, tmp_path, reader=editor.reader)
    # Without a model's own knobs, so is what looks at the target alone: seven variants, of which five are new.
    assert len(editor.requests) == 5 * 7 + 7 * 7


def test_equal_settings_are_run_once(tmp_path: Path) -> None:
    editor = DrawingEditor()
    study = make_study("knobs")
    report = run_study(editor, study, CASES[:1], tmp_path, reader=editor.reader)
    different = {settings.model_dump_json() for settings in study.variants.values()}
    assert len(editor.requests) == len(different) + len(study.variants) < 2 * len(study.variants)
    assert set(report["groups"]["all"]["means"]) == set(study.variants)
    assert [curve["knob"] for curve in report["curves"]] == ["lambda_tau", "lambda_s", "lambda_spatial"]


def test_the_cost_of_methods_is_counted_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pipe = AdapEditPipeline.from_pretrained(save_tiny_model(tmp_path / "tiny"))
    case = next(case for case in CASES if case.kind == "pose" and len(case.source_prompt.split()) < 9)
    costs = unet_rows(pipe, make_study("scenes", knobs={"sdedit": {"strength": 0.5}}), case, 4)
    assert costs == {
        "adapedit": 6,
        "prompt-to-prompt": 4,
        WITH_BLEND: 4,
        "masactrl": 4,
        "sdedit": 3,
        "instruct-pix2pix": 5,
        "plain": 4,
    }
    assert unet_rows(pipe, make_study("variants"), case, 4)["single pass"] == 4


def test_the_command_runs_a_study_and_says_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    editor = DrawingEditor()
    monkeypatch.setattr(command, "_load", lambda *arguments: editor)
    monkeypatch.setattr(runs, "judge_with", lambda reader: judge_with(editor.reader))
    arguments = ["eval", "scenes", "--methods", "adapedit,plain", "--limit", "3", "--half", "test"]
    arguments += ["--steps", "9", "--set", "adapedit.lambda_tau=0.5", "--out", str(tmp_path)]
    assert run_command(arguments) == 0
    assert "3 of 3 edits" in capsys.readouterr().out
    report = json.loads((tmp_path / "scenes.json").read_text())
    assert report["num_inference_steps"] == 9 and report["settings"]["adapedit"]["lambda_tau"] == 0.5
    assert run_command([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usable"] == 3
    before = (tmp_path / "scenes.json").read_bytes()
    assert run_command([*arguments, "--kinds", "pose", "--name", "mine"]) == 0
    assert json.loads((tmp_path / "mine.json").read_text())["study"] == "mine"
    assert (tmp_path / "mine.html").exists() and (tmp_path / "scenes.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "p2p"], "no method 'p2p'"),
        (["--set", "lambda_tau=1"], "names no method; write it as --set METHOD.KNOB=VALUE"),
        (["--set", "adapedit.lambda_t=1"], "adapedit has no knob 'lambda_t'"),
        (["--limit", "0"], "limit"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["eval", "scenes", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
