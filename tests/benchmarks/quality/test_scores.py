"""Evaluation of editors whose worth is known, scores on disk, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.report import make_report, paired
from benchmarks.quality.scores import Score, evaluate
from benchmarks.quality.store import ScoreStore, StoreError, fingerprint
from benchmarks.quality.studies import ABLATIONS, SWEEPS, TITLES, WITH_BLEND, make_study
from benchmarks.quality.suite import scene_suite
from adapedit.methods.settings import METHODS, make_settings
from adapedit import AdapEditError
from tests.benchmarks.quality.fake_editor import DrawingEditor

CASES = scene_suite(limit=9)
METHODS_TRIED = ("adapedit", "prompt-to-prompt", "plain")


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    editor = DrawingEditor()
    variants = {name: make_settings(name) for name in METHODS_TRIED}
    return evaluate(editor, CASES, variants, reader=editor.reader)


def test_one_call_scores_cases_by_settings() -> None:
    editor, seen = DrawingEditor(), []
    settings = make_settings("adapedit", lambda_tau=0.5)
    found = evaluate(
        editor,
        CASES,
        settings,
        reader=editor.reader,
        num_inference_steps=7,
        batch=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [score.case for score in found] == [case.name for case in CASES]
    assert all(score.verdict.product > 0.98 and score.variant == "adapedit" for score in found)
    assert seen == [(4, 9), (8, 9), (9, 9)]
    assert {request.num_inference_steps for request in editor.requests} == {7}
    assert all(request.method == settings for request in editor.requests)


def test_the_report_ranks_the_methods(scores: list[Score]) -> None:
    report = make_report(scores, METHODS_TRIED)
    means = report["groups"]["all"]["means"]
    assert means["adapedit"]["product"]["value"] > 0.98
    assert means["prompt-to-prompt"]["success"]["value"] == 0 == means["plain"]["product"]["value"]
    assert means["prompt-to-prompt"]["background"]["value"] == 1 > means["plain"]["background"]["value"]
    against = report["groups"]["all"]["product against"]["plain"]
    assert against["difference"]["low"] > 0.9 and against["p_value"] < 0.01
    assert (against["better"], against["worse"]) == (9, 0)
    assert report["usable"] == report["cases"] == 9 and set(report["groups"]) >= {"all", "pose", "two words"}
    assert json.loads(json.dumps(report)) == report


def test_only_cases_that_all_variants_have_are_compared(scores: list[Score]) -> None:
    table = paired(scores[:-1], METHODS_TRIED)
    assert {len(found) for found in table.values()} == {8}
    with pytest.raises(AdapEditError, match="none of the 1 cases can be used"):
        make_report(scores[:1], METHODS_TRIED)


def test_scores_survive_the_disk_and_a_crash(scores: list[Score], tmp_path: Path) -> None:
    path, about = tmp_path / "scores.jsonl", {"steps": 30}
    ScoreStore(path, about).append(scores[:2])
    with path.open("a") as file:
        file.write('{"case": "pose-0')  # the machine went down here
    again = ScoreStore(path, about)
    assert again.scores == scores[:2]
    again.append(scores[2:])
    assert ScoreStore(path, about).scores == scores


def test_scores_of_something_else_are_refused(scores: list[Score], tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    ScoreStore(path, {"steps": 30})
    with pytest.raises(StoreError, match="another evaluation .steps was 30 and is 50 now"):
        ScoreStore(path, {"steps": 50})
    with path.open("a") as file:
        file.write('{"case": 3}\n')
    with pytest.raises(StoreError, match="line 2 of .* is no score"):
        ScoreStore(path, {"steps": 30})


def test_fingerprints_tell_weights_apart() -> None:
    one, other = DrawingEditor().model, DrawingEditor().model
    assert fingerprint(one.vae) == fingerprint(one.vae) == fingerprint(one.text_encoder)
    assert fingerprint(one.vae) != fingerprint(other.vae)


@pytest.mark.parametrize("name", TITLES)
def test_studies_compare_different_settings(name: str) -> None:
    study = make_study(name, knobs={"adapedit": {"alpha_tau": 0.2}})
    settings = [value.model_dump_json() for value in study.variants.values()]
    assert next(iter(study.variants)) == "adapedit"
    if name == "scenes":
        assert list(study.variants) == [*METHODS, WITH_BLEND]
    else:
        assert all(value.alpha_tau == 0.2 for value in study.variants.values())
    assert len(set(settings)) >= len(settings) - 3  # sweeps pass through the defaults


@pytest.mark.parametrize("off", [False, "false"])  # the command line gives text
def test_what_is_left_out_of_all_is_not_left_out_again(off: Any) -> None:
    study = make_study("ablation", knobs={"adapedit": {"local_blend": off}})
    assert [*make_study("ablation").variants] == [*ABLATIONS]
    assert "without the local blend" not in study.variants
    assert study.variants["without DPS"].local_blend is False
    assert study.variants["the local blend alone"].local_blend is True


def test_the_row_with_a_local_blend_has_the_knobs_of_its_method() -> None:
    for given, blend in (({}, True), ({"local_blend": False}, True), ({"local_blend": ("dog",)}, ("dog",))):
        knobs = {"cross_replace_steps": 0.9, **given}
        found = make_study("scenes", knobs={"prompt-to-prompt": knobs}).variants[WITH_BLEND]
        assert (found.cross_replace_steps, found.local_blend) == (0.9, blend)


def test_curves_follow_their_knob() -> None:
    editor = DrawingEditor()
    study = make_study("knobs")
    found = evaluate(editor, CASES[:7], study.variants, reader=editor.reader)
    curves = {curve["knob"]: curve for curve in make_report(found, list(study.variants), SWEEPS)["curves"]}
    assert curves["lambda_s"]["success"]["rank correlation"]["value"] > 0.8
    assert curves["lambda_tau"]["success"]["rank correlation"]["value"] == 0


def test_bad_studies_are_refused() -> None:
    with pytest.raises(AdapEditError, match="no suite 'photos'; use one of: scenes, ablation"):
        make_study("photos")
    with pytest.raises(AdapEditError, match="no method 'p2p'"):
        make_study("scenes", ["p2p"])
    with pytest.raises(AdapEditError, match="leave --methods out"):
        make_study("knobs", ["plain"])
    with pytest.raises(
        AdapEditError, match="'alpha_tau' is to be swept in knobs; the suite knobs sweeps lambda_tau"
    ):
        make_study("knobs", swept=["alpha_tau"])
    with pytest.raises(AdapEditError, match="'lambda_tau' is to be swept in variants"):
        make_study("variants", swept=["lambda_tau"])
    with pytest.raises(
        AdapEditError, match="'blend' is a part to go without in ablation; .* goes without fwt, dps, mask"
    ):
        make_study("ablation", parts=["dps", "blend"])
    with pytest.raises(AdapEditError, match="'dps' is a part to go without in scenes"):
        make_study("scenes", parts=["dps"])


def test_some_parts_alone_are_left_out() -> None:
    variants = make_study("ablation", None, {"adapedit": {"lambda_tau": 0.7}}, parts=["dps", "mask"]).variants
    assert list(variants) == ["adapedit", "without DPS", "without the mask"]
    assert [(one.fwt, one.dps, one.mask, one.lambda_tau) for one in variants.values()] == [
        (True, True, True, 0.7),
        (True, False, True, 0.7),
        (True, True, False, 0.7),
    ]


def test_some_knobs_alone_are_swept() -> None:
    study = make_study("knobs", swept=["lambda-tau"])
    assert [sweep.knob for sweep in study.sweeps] == ["lambda_tau"]
    assert set(study.variants) == {"adapedit", *(study.sweeps[0].label(v) for v in study.sweeps[0].values)}
